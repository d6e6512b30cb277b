"""Publishing from code that is not async."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from things_kit import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    Message,
    MessageTooLarge,
    PublishError,
    Topic,
    connect,
)


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
