import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.engine.scenario import turns, until, virtual
from things_kit import BrokerUnavailable, ClosedError, Message, MessageTooLarge, PublishError, connect
from things_kit.engine.driver import Capabilities, ConnectionLost
from things_kit.testing.stub import StubDriver, broker_of


def message(value: str, key: str | None = None, topic: str = "t") -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode())


@virtual
async def test_a_thousand_publishes_at_once_make_few_sends_in_order() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        producer = broker.producer()
        await asyncio.gather(*(producer.publish(message(str(n))) for n in range(1000)))
    assert len(driver.batches) <= 3
    assert [m.value for batch in driver.batches for m in batch] == [str(n).encode() for n in range(1000)]


@virtual
async def test_what_is_published_during_a_send_goes_with_the_next() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        producer = broker.producer()
        confirm = driver.hold("send")
        first = asyncio.create_task(producer.publish(message("first")))
        await until(lambda: driver.attempted)
        others = [asyncio.create_task(producer.publish(message(str(n)))) for n in range(50)]
        await turns()
        assert len(driver.attempted) == 1
        confirm.set()
        await asyncio.gather(first, *others)
    assert [len(batch) for batch in driver.batches] == [1, 50]


@virtual
async def test_a_publish_returns_only_when_it_is_confirmed() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        confirm = driver.hold("send")
        publishing = asyncio.create_task(broker.producer().publish(message("1")))
        await asyncio.sleep(5)
        assert not publishing.done()
        confirm.set()
        await publishing


@virtual
async def test_a_large_batch_is_sent_in_parts_that_the_broker_takes() -> None:
    driver = StubDriver(Capabilities(max_batch=10))
    async with broker_of(driver) as broker:
        await broker.producer().publish_batch([message(str(n)) for n in range(25)])
    assert [len(batch) for batch in driver.batches] == [10, 10, 5]
    assert not driver.breaches


@virtual
async def test_coalescing_respects_the_largest_batch() -> None:
    driver = StubDriver(Capabilities(max_batch=10))
    async with broker_of(driver) as broker:
        producer = broker.producer()
        await asyncio.gather(*(producer.publish(message(str(n))) for n in range(25)))
    assert max(len(batch) for batch in driver.batches) == 10
    assert not driver.breaches


@virtual
async def test_failures_are_named_by_their_index_across_parts() -> None:
    driver = StubDriver(Capabilities(max_batch=10, max_message_bytes=10))
    wrong = {3, 10, 17, 24}
    driver.refuse = lambda m: PublishError("no") if int(m.value) in wrong else None
    messages = [message(str(n)) for n in range(25)]
    messages[5] = message("x" * 11)
    async with broker_of(driver) as broker:
        with pytest.raises(
            PublishError, match=r"5 of 25 messages were not published; message 3: no"
        ) as raised:
            await broker.producer().publish_batch(messages)
    assert set(raised.value.failures) == wrong | {5}
    assert isinstance(raised.value.failures[5], MessageTooLarge)
    assert len(driver.topics["t"]) == 20


@virtual
async def test_a_failure_is_that_of_its_own_call() -> None:
    driver = StubDriver()
    driver.refuse = lambda m: PublishError("no") if m.value == b"bad" else None
    async with broker_of(driver) as broker:
        producer = broker.producer()
        calls = (
            producer.publish(message("good")),
            producer.publish(message("bad")),
            producer.publish_batch([message("good"), message("bad")]),
            producer.publish(message("good")),
        )
        one, two, three, four = await asyncio.gather(*calls, return_exceptions=True)
    assert (one, four) == (None, None)
    assert str(two) == "no"
    assert isinstance(three, PublishError)
    assert list(three.failures) == [1]


@virtual
async def test_a_message_with_a_wrong_field_fails_alone() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        producer = broker.producer()
        wrong = message("wrong").replace(timestamp=1700000000.0)
        good, bad = await asyncio.gather(
            producer.publish(message("good")), producer.publish(wrong), return_exceptions=True
        )
    assert good is None
    assert isinstance(bad, PublishError)


@virtual
async def test_no_messages_are_no_send() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        await broker.producer().publish_batch([])
    assert "send" not in driver.calls


@virtual
async def test_a_cancelled_publish_leaves_the_others_alone() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        producer = broker.producer()
        confirm = driver.hold("send")
        calls = [asyncio.create_task(producer.publish(message(str(n)))) for n in range(2)]
        await until(lambda: driver.attempted)
        calls += [asyncio.create_task(producer.publish(message(str(n)))) for n in range(2, 4)]
        await turns()
        calls[0].cancel()
        calls[2].cancel()
        await turns()
        confirm.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None)] * 2
    assert [m.value for m in driver.topics["t"]] == [b"0", b"1", b"3"]  # 2 had not been sent yet


@virtual
async def test_close_sends_what_is_waiting() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        producer = broker.producer()
        confirm = driver.hold("send")
        calls = [asyncio.create_task(producer.publish(message(str(n)))) for n in range(3)]
        await turns()
        closing = asyncio.create_task(producer.close())
        await asyncio.sleep(1)
        assert not closing.done()
        confirm.set()
        await closing
        assert all(call.done() for call in calls)
    assert len(driver.topics["t"]) == 3


@virtual
async def test_publish_after_close_is_a_closed_error() -> None:
    async with broker_of(StubDriver()) as broker:
        producer = broker.producer()
        await producer.close()
        await producer.close()
        with pytest.raises(ClosedError, match="the producer is closed"):
            await producer.publish(message("1"))
        with pytest.raises(ClosedError, match="the producer is closed"):
            await producer.publish_batch([message("1")])


@virtual
async def test_closing_the_broker_closes_its_producers() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    await broker.open()
    producer = broker.producer()
    publishing = asyncio.create_task(producer.publish(message("1")))
    await turns(1)
    await broker.close()
    await publishing
    with pytest.raises(ClosedError):
        await producer.publish(message("2"))


@virtual
async def test_a_publish_waits_out_an_outage_and_then_fails_in_time() -> None:
    driver = StubDriver()
    async with broker_of(driver, "?publish_timeout=10") as broker:
        producer = broker.producer()
        driver.fail("send", *[ConnectionLost("away")] * 3)
        await producer.publish(message("1"))
        driver.fail("send", *[ConnectionLost("away")] * 1000)
        before = asyncio.get_running_loop().time()
        with pytest.raises(BrokerUnavailable, match="did not answer within 10 s: away"):
            await producer.publish(message("2"))
        assert asyncio.get_running_loop().time() - before == pytest.approx(10, abs=0.01)


@virtual
async def test_an_outage_expires_the_old_and_not_the_young() -> None:
    driver = StubDriver()
    async with broker_of(driver, "?publish_timeout=10") as broker:
        producer = broker.producer()
        driver.fail("send", *[ConnectionLost("away")] * 1000)
        loop, ends = asyncio.get_running_loop(), []

        async def publish(value: str) -> None:
            begun = loop.time()
            try:
                await producer.publish(message(value))
            finally:
                ends.append((value, round(loop.time() - begun)))

        calls = []
        for n in range(4):
            calls.append(asyncio.create_task(publish(str(n))))
            await asyncio.sleep(4)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 4
    assert ends == [("0", 10), ("1", 10), ("2", 10), ("3", 10)]


class SlowToConfirm(StubDriver):
    """A broker that has what it was sent at once, and says so only later; for a while it says nothing at all."""

    takes = 1.0
    silent_until = 15.0

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        results = await super().send(messages)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(self.takes, self.silent_until - loop.time()))
        return results


@virtual
async def test_what_a_slow_broker_has_is_not_sent_again_for_each_caller_whose_time_is_over() -> None:
    """A soak found it: each send ended with the time of its oldest caller, and what was in it came dozens of times."""
    driver = SlowToConfirm()
    async with broker_of(driver, "?publish_timeout=10") as broker:
        producer = broker.producer()
        loop, calls, took = asyncio.get_running_loop(), [], []

        async def publish(value: str) -> None:
            began = loop.time()
            try:
                await producer.publish(message(value))
            finally:
                took.append(loop.time() - began)

        for n in range(300):
            calls.append(asyncio.create_task(publish(str(n))))
            await asyncio.sleep(0.1)
        results = await asyncio.gather(*calls, return_exceptions=True)
    copies = Counter(m.value for m in driver.topics["t"])
    assert max(copies.values()) <= 2
    assert max(took) < 10.01
    assert results[60:] == [None] * 240, "what was published later went through"
    assert {type(result) for result in results[:60]} <= {BrokerUnavailable, type(None)}


@virtual
async def test_the_young_are_published_in_order_once_the_broker_is_back() -> None:
    driver = StubDriver()
    async with broker_of(driver, "?publish_timeout=10") as broker:
        producer = broker.producer()
        driver.fail("send", *[ConnectionLost("away")] * 1000)
        old = [asyncio.create_task(producer.publish(message("first")))]
        await asyncio.sleep(2)
        old.append(asyncio.create_task(producer.publish(message("old"))))
        await asyncio.sleep(5)
        young = [asyncio.create_task(producer.publish(message(str(n), "k"))) for n in range(5)]
        await asyncio.sleep(
            6
        )  # once the first expired they were tried together with the old one, which expired too
        driver._failures["send"].clear()
        await asyncio.gather(*young)
        results = await asyncio.gather(*old, return_exceptions=True)
    assert [type(result) for result in results] == [BrokerUnavailable] * 2
    assert [m.value for m in driver.topics["t"]] == [b"0", b"1", b"2", b"3", b"4"]


@virtual
async def test_a_message_that_is_sent_again_keeps_the_id_it_was_given() -> None:
    """Nobody knows whether the first send arrived: only the same id tells two copies from two messages."""
    driver = StubDriver()
    async with broker_of(driver, "?publish_timeout=10") as broker:
        producer = broker.producer()
        driver.fail("send", *[ConnectionLost("away")] * 1000)
        calls = [asyncio.create_task(producer.publish(message("first")))]
        await asyncio.sleep(5)
        calls.append(asyncio.create_task(producer.publish(message("old"))))
        await asyncio.sleep(3)
        calls.append(asyncio.create_task(producer.publish(message("young"))))
        await asyncio.sleep(
            8
        )  # since the first expired, old and young are tried together, until old expires too
        driver._failures["send"].clear()
        await asyncio.gather(*calls, return_exceptions=True)
    tried = [m for batch in driver.attempted for m in batch if m.value == b"young"]
    assert len(tried) > 1
    assert len({m.id for m in tried}) == 1


@virtual(clean=False)
async def test_a_sender_that_is_cancelled_leaves_nobody_waiting() -> None:
    for after in (0, 1, 5):
        driver = StubDriver()
        broker = broker_of(driver)
        await broker.open()
        driver.hold("send")
        producer = broker.producer()
        publishing = asyncio.ensure_future(producer.publish(message("1")))
        await turns(1)
        await turns(after)
        (sender,) = (t for t in asyncio.all_tasks() if t.get_name() == "things_kit producer")
        sender.cancel()
        await turns()
        assert publishing.done(), f"after {after} turns"
        with pytest.raises(BrokerUnavailable, match="interrupted"):
            await publishing


@virtual(clean=False)
async def test_a_fault_of_the_driver_fails_the_publish_and_not_the_next() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        producer = broker.producer()
        driver.fail("send", RuntimeError("a fault"))
        with pytest.raises(BrokerUnavailable, match="whether the message arrived is not known") as raised:
            await producer.publish(message("1"))
        assert isinstance(raised.value.__cause__, RuntimeError)
        await producer.publish(message("2"))


class Noted(dict[str, str]):
    """Headers of which one can tell whether anybody still has them."""


async def test_nothing_of_what_was_published_last_stays_in_memory() -> None:
    async with connect("memory://") as broker:
        producer = broker.producer()
        headers = Noted(kind="a")
        left = weakref.ref(headers)
        await producer.publish_batch([Message("t", b"", headers=headers)])
        del headers
        gc.collect()
        assert left() is None
