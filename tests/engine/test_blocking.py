"""Publishing from code that is not async."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from things_kit import (
    Broker,
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    Message,
    MessageTooLarge,
    PublishError,
    Topic,
    connect,
)
from things_kit.engine.blocking import BlockingProducer
from things_kit.testing.stub import StubDriver, broker_of


class Order(msgspec.Struct):
    id: str


orders = Topic("orders", Order, key="id")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


def lag(url: str) -> int | None:
    async def ask() -> int | None:
        async with connect(url) as broker:
            return await broker.lag("orders", group="g")

    return asyncio.run(ask())


def test_it_publishes_messages_payloads_and_batches(url: str) -> None:
    with connect(url).blocking() as producer:
        producer.publish(Message("orders", b"1"))
        producer.publish(orders, Order("o-1"), headers={"source": "shop"})
        producer.publish_batch([Message("orders", b"2"), Message("orders", b"3")])
    assert lag(url) == 4


def test_it_connects_when_it_is_first_used_and_leaves_no_thread(url: str, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    producer = connect(url).blocking()
    assert set(threading.enumerate()) <= before
    assert list(tmp_path.iterdir()) == []
    producer.publish(Message("orders", b"1"))
    producer.close()
    producer.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ClosedError, match="the producer is closed"):
        producer.publish(Message("orders", b"1"))


def test_many_threads_share_one(url: str) -> None:
    with connect(url).blocking() as producer, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: producer.publish(Message("orders", b"%d" % number)), range(200)))
    assert lag(url) == 200


def test_errors_are_those_of_every_producer(url: str) -> None:
    with connect(f"{url}?max_message_bytes=10").blocking() as producer:
        with pytest.raises(MessageTooLarge):
            producer.publish(Message("orders", b"x" * 11))
        with pytest.raises(PublishError) as raised:
            producer.publish_batch([Message("orders", b"1"), Message("orders", b"x" * 11)])
        assert list(raised.value.failures) == [1]
        with pytest.raises(TypeError):
            producer.publish(orders, "no order")  # type: ignore[misc]


def test_a_broker_that_is_not_there_is_said_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with (
        pytest.raises(BrokerUnavailable, match="did not answer within"),
        connect("redis://127.0.0.1:1?publish_timeout=0.3").blocking(),
    ):
        pass
    assert set(threading.enumerate()) <= before


async def test_inside_an_event_loop_it_says_what_to_do_instead(url: str) -> None:
    producer = connect(url).blocking()
    with pytest.raises(ConfigError, match="an event loop runs in this thread"):
        producer.publish(Message("orders", b""))
    await asyncio.to_thread(producer.publish, Message("orders", b""))
    await asyncio.to_thread(producer.close)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork_the_child_connects_anew(url: str) -> None:
    with connect(url).blocking() as producer:
        producer.publish(Message("orders", b"parent"))
        child = os.fork()
        if child == 0:  # nothing of pytest's may run here
            try:
                producer.publish(Message("orders", b"child"))
                producer.close()
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        producer.publish(Message("orders", b"parent again"))
    assert lag(url) == 3


def test_threads_that_publish_to_a_broker_that_is_away_do_not_wait_for_one_another() -> None:
    made: list[Broker] = []

    def make() -> Broker:
        made.append(connect("nats://127.0.0.1:1?publish_timeout=0.5"))
        return made[-1]

    producer, together = BlockingProducer(make), threading.Barrier(8)

    def publish() -> str:
        together.wait(20)
        with pytest.raises(BrokerUnavailable) as caught:
            producer.publish(Message("orders", b"1"))
        return str(caught.value)

    with ThreadPoolExecutor(8) as threads:
        said = [thread.result() for thread in [threads.submit(publish) for _ in range(8)]]
    producer.close()
    assert all("127.0.0.1:1" in each for each in said)
    assert len(made) < 8  # one, unless some thread slept until the first had failed


def test_who_closes_while_another_thread_connects_does_not_wait_and_leaves_nothing() -> None:
    before = set(threading.enumerate())
    driver, connecting, go_on = StubDriver(), threading.Event(), threading.Event()

    async def enter(call: str, receiver: object = None) -> None:
        if call == "open":
            connecting.set()
            await asyncio.to_thread(go_on.wait, 20)

    driver.enter = enter  # type: ignore[method-assign]
    producer = BlockingProducer(lambda: broker_of(driver))
    with ThreadPoolExecutor(1) as threads:
        publishing = threads.submit(producer.publish, Message("orders", b"1"))
        assert connecting.wait(20)
        producer.close()
        go_on.set()
        with pytest.raises(ClosedError):
            publishing.result(20)
    assert driver.calls[-1] == "close"
    assert set(threading.enumerate()) <= before
