"""Start, stop, and what breaks a consumer."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.engine.scenario import Recorder, turns, until, virtual
from things_kit import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    Message,
    Reject,
    Retry,
    RetryPolicy,
    ThingsKitError,
    connect,
)
from things_kit.engine.driver import Capabilities, ConnectionLost
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])


def message(value: str, key: str | None = None, topic: str = "t") -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value)


@KINDS
@virtual
async def test_stop_lets_what_has_begun_finish_and_gives_the_rest_back(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(5))
    driver.put(*(message(str(n), f"k{n % 4}") for n in range(20)))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder, concurrency=2)
        await consumer.start()
        await until(lambda: recorder.running == 2)
        await consumer.stop()
    assert len(driver.acknowledged) == len(recorder.ended) == 2
    assert len(driver.groups["t", "g"].pending) == 18
    assert not driver.breaches


@KINDS
@virtual
async def test_what_goes_back_at_stop_is_not_counted_as_an_attempt(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(5))
    driver.put(*(message(str(n), f"k{n % 2}") for n in range(6)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, drain_timeout=1, concurrency=6) as consumer,
    ):
        await until(lambda: recorder.running)
    assert {release.attempt for release in driver.released} == {1}
    assert len(driver.released) == consumer.given_back == 6
    assert not driver.topics["t-dlq"]


@pytest.mark.parametrize("url", ["memory://", "sqlite:///given-back.db"])
async def test_what_went_to_the_broker_to_wait_for_its_attempt_was_not_given_back(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def fail(_: Message) -> None:
        raise ValueError("boom")

    async with connect(url) as broker:
        policy = RetryPolicy(attempts=3, first=0.01)
        async with broker.consumer("t", group="g", handler=fail, retry=policy) as consumer:
            await broker.producer().publish(message("1", "k"))
            await eventually(lambda: consumer.handled == 1, 10, "it is a dead letter")
    assert consumer.given_back == 0


@virtual
async def test_handlers_that_overrun_the_drain_are_cancelled_then() -> None:
    cancelled: list[float] = []

    async def handle(_: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            raise

    driver = StubDriver()
    driver.put(message("1"), message("2"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=handle, concurrency=2, drain_timeout=7)
        await consumer.start()
        await asyncio.sleep(1)
        stopping = asyncio.get_running_loop().time()
        await consumer.stop()
    assert cancelled == pytest.approx([stopping + 7] * 2, abs=0.01)
    assert not driver.topics["t-dlq"]
    assert not driver.acknowledged


@virtual
async def test_an_error_made_of_the_cancellation_by_stop_is_no_failure() -> None:
    async def handle(_: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Reject("shut down") from None

    driver = StubDriver()
    driver.put(message("1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, drain_timeout=1),
    ):
        await asyncio.sleep(1)
    assert not driver.topics["t-dlq"]
    assert [release.attempt for release in driver.released] == [1]


@virtual
async def test_a_handler_that_finishes_though_cancelled_by_stop_has_handled_its_message() -> None:
    async def handle(_: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(1)

    driver = StubDriver()
    driver.put(message("1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, drain_timeout=1),
    ):
        await asyncio.sleep(1)
    assert len(driver.acknowledged) == 1
    assert not driver.breaches


@virtual
async def test_a_handler_that_ignores_its_cancellation_cannot_hold_up_the_stop() -> None:
    release = asyncio.Event()

    async def handle(_: Message) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    driver = StubDriver()
    driver.put(message("1"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=handle, drain_timeout=1)
        await consumer.start()
        await asyncio.sleep(1)
        before = asyncio.get_running_loop().time()
        await consumer.stop()
        assert asyncio.get_running_loop().time() - before <= 1 + 5 + 0.1
        assert len(driver.groups["t", "g"].pending) == 1
        release.set()
        await turns()
    assert not driver.acknowledged
    assert not driver.breaches


@KINDS
@virtual
async def test_what_fails_during_the_drain_goes_back_once_as_the_next_attempt(native: Capabilities) -> None:
    async def answer(_: Message) -> None:
        await asyncio.sleep(5)
        raise ValueError("bad luck")

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"), message("3", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=3),
    ):
        await until(lambda: recorder.running)
    assert driver.breaches == []
    assert sorted((r.delivery.message.value, r.attempt) for r in driver.released) == [
        (b"1", 2),
        (b"2", 1),
        (b"3", 1),
    ]


@pytest.mark.parametrize("key", ["k", None])
@virtual
async def test_a_key_that_fails_during_the_drain_is_not_overtaken_afterwards(key: str | None) -> None:
    """What has no key waits for its time instead."""

    async def answer(_: Message) -> None:
        await asyncio.sleep(5)
        raise Retry(after=60)

    driver, recorder, after = StubDriver(NATIVE_DELAY), Recorder(answer), Recorder()
    driver.put(message("1", key), message("2", key))
    async with broker_of(driver) as broker:
        async with broker.consumer("t", group="g", handler=recorder):
            await until(lambda: recorder.running)
        async with broker.consumer("t", group="g", handler=after):
            await until(lambda: len(after.seen) == 2)
    assert after.values == ([b"1", b"2"] if key else [b"2", b"1"])


@virtual
async def test_a_dead_letter_on_its_way_is_waited_for_by_the_stop() -> None:
    async def answer(_: Message) -> None:
        raise Reject("bad")

    driver = StubDriver()
    driver.put(message("1"))
    confirm = driver.hold("send")
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=answer)
        await consumer.start()
        await until(lambda: driver.attempted)
        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(3)
        assert not stopping.done()
        confirm.set()
        await stopping
    assert len(driver.acknowledged) == 1


@virtual
async def test_back_offs_do_not_hold_up_the_stop() -> None:
    async def answer(_: Message) -> None:
        raise Retry(after=3600)

    for native in (BARE, NATIVE_DELAY, NATIVE_LANES):
        driver, recorder = StubDriver(native), Recorder(answer)
        driver.put(message("1", "k"), message("2", "k"))
        async with broker_of(driver) as broker:
            consumer = broker.consumer("t", group="g", handler=recorder)
            await consumer.start()
            await until(lambda recorder=recorder: recorder.seen)  # type: ignore[misc]
            await asyncio.sleep(1)
            before = asyncio.get_running_loop().time()
            await consumer.stop()
            assert asyncio.get_running_loop().time() - before < 0.1
        assert not driver.breaches


@virtual
async def test_stopping_twice_and_at_once_is_fine() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(5))
    driver.put(message("1"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        await until(lambda: recorder.running)
        await asyncio.gather(consumer.stop(), consumer.stop(), consumer.stop())
        await consumer.stop()
        await consumer.wait()
    assert len(driver.acknowledged) == 1


@virtual
async def test_a_cancelled_stop_goes_on() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(5))
    driver.put(message("1"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        await until(lambda: recorder.running)
        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(1)
        stopping.cancel()
        await consumer.wait()
    assert len(driver.acknowledged) == 1


@virtual
async def test_a_handler_may_stop_its_own_consumer() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:

        async def handle(_: Message) -> None:
            await consumer.stop()

        consumer = broker.consumer("t", group="g", handler=handle)
        await consumer.start()
        driver.put(message("1"), message("2"))
        await consumer.wait()
    assert [m.value for m in driver.acknowledged] == [b"1"]
    assert not driver.breaches


@virtual
async def test_a_handler_that_stops_its_own_consumer_may_finish_as_any_other() -> None:
    driver = StubDriver()
    ended: list[bytes] = []
    async with broker_of(driver) as broker:

        async def handle(message: Message) -> None:
            await consumer.stop()
            await asyncio.sleep(3)
            ended.append(message.value)

        consumer = broker.consumer("t", group="g", handler=handle)
        await consumer.start()
        driver.put(message("1"), message("2"))
        await consumer.wait()
        await until(lambda: ended)
        await turns()
    assert driver.breaches == []
    assert [m.value for m in driver.acknowledged] == [b"1"]


@virtual
async def test_stop_while_the_broker_is_away_does_not_wait_for_it() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        driver.fail("subscribe", *[ConnectionLost("gone")] * 1000)
        driver.cut()
        await asyncio.sleep(60)
        before = asyncio.get_running_loop().time()
        await consumer.stop()
        assert asyncio.get_running_loop().time() - before <= 5.1


@virtual
async def test_stop_while_subscribing_again_does_not_wait_for_the_broker() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        driver.hold("subscribe")
        driver.cut()
        await asyncio.sleep(60)
        before = asyncio.get_running_loop().time()
        await consumer.stop()
        assert asyncio.get_running_loop().time() - before <= 5.1


@virtual
async def test_a_stop_that_meets_a_fresh_subscription_ends_as_soon_as_any() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        go_on = driver.hold("subscribe")
        driver.cut()
        await asyncio.sleep(60)
        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(0.1)
        go_on.set()
        before = asyncio.get_running_loop().time()
        await stopping
        assert asyncio.get_running_loop().time() - before < 1
    assert not driver.groups["t", "g"].receivers


@virtual
async def test_stop_during_start_leaves_nothing_running() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.put(message("1"))
    go_on = driver.hold("declare")
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        starting = asyncio.create_task(consumer.start())
        await asyncio.sleep(1)
        await consumer.stop()
        go_on.set()
        with pytest.raises(ClosedError):
            await starting
        await asyncio.sleep(20)
    assert not recorder.seen


@virtual
async def test_a_cancelled_start_leaves_nothing_running() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.hold("subscribe")
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        starting = asyncio.create_task(consumer.start())
        await asyncio.sleep(1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await consumer.wait()


@virtual
async def test_start_returns_once_messages_can_arrive() -> None:
    driver, recorder = StubDriver(), Recorder()
    go_on = driver.hold("subscribe")
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        starting = asyncio.create_task(consumer.start())
        await asyncio.sleep(1)
        assert not starting.done()
        go_on.set()
        await starting
        assert driver.groups["t", "g"].receivers
        await consumer.stop()


@virtual
async def test_starting_a_running_consumer_changes_nothing() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        await consumer.start()
        assert driver.calls.count("subscribe") == 1
        await consumer.stop()


@virtual
async def test_a_stopped_consumer_cannot_be_started_again() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        await consumer.stop()
        with pytest.raises(ClosedError, match="make a new one"):
            await consumer.start()
        never_started = broker.consumer("t", group="g", handler=recorder)
        await never_started.stop()
        with pytest.raises(ClosedError, match="make a new one"):
            await never_started.start()


@virtual
async def test_a_consumer_of_a_broker_that_is_not_open_can_be_started_later() -> None:
    driver, recorder = StubDriver(), Recorder()
    broker = broker_of(driver)
    consumer = broker.consumer("t", group="g", handler=recorder)
    with pytest.raises(ClosedError, match="not open"):
        await consumer.start()
    async with broker:
        await consumer.start()
        driver.put(message("1"))
        await until(lambda: recorder.seen)


@virtual
async def test_a_consumer_that_could_not_start_can_be_stopped() -> None:
    consumer = broker_of(StubDriver()).consumer("t", group="g", handler=Recorder())
    with pytest.raises(ClosedError, match="not open"):
        await consumer.start()
    await consumer.stop()


@virtual
async def test_starting_without_a_broker_fails_in_time() -> None:
    driver = StubDriver()
    driver.fail("subscribe", *[ConnectionLost("nobody there")] * 1000)
    async with broker_of(driver, "?publish_timeout=10") as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        with pytest.raises(BrokerUnavailable, match="within 10 s: nobody there"):
            await consumer.start()
        assert asyncio.get_running_loop().time() == pytest.approx(10, abs=5.1)


@virtual
async def test_a_topic_the_broker_cannot_have_fails_the_start() -> None:
    driver = StubDriver()
    driver.fail("subscribe", ConfigError("no such name"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        with pytest.raises(ConfigError, match="no such name"):
            await consumer.start()
        with pytest.raises(ConfigError, match="no such name"):
            await consumer.wait()


@virtual
async def test_a_consumer_declares_its_topics_and_dead_letters() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker, broker.consumer(["a", "b"], group="g", handler=Recorder()):
        assert set(driver.topics) == {"a", "b", "a-dlq", "b-dlq"}
        assert ("a-dlq", "dead-letters") in driver.groups
        assert ("b-dlq", "dead-letters") in driver.groups


@virtual
async def test_nothing_is_declared_when_told_so() -> None:
    driver = StubDriver()
    driver.put(message("1"))
    async with (
        broker_of(driver, "?declare=false") as broker,
        broker.consumer("t", group="g", handler=Recorder()),
    ):
        assert "declare" not in driver.calls
        (receiver,) = driver.groups["t", "g"].receivers
        assert not receiver.subscription.create


@virtual
async def test_a_driver_that_breaks_stops_the_consumer_and_wait_raises_why() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        driver.fail("settle", RuntimeError("the driver has a fault"))
        driver.put(message("1"))
        with pytest.raises(RuntimeError, match="the driver has a fault"):
            await consumer.wait()
        health = consumer.health()
        assert not health.running
        assert health.reason == "it broke: the driver has a fault"
        await consumer.stop()


@pytest.mark.parametrize("call", ["fetch", "extend", "subscribe"])
@virtual
async def test_a_fatal_error_of_any_call_breaks_the_consumer(call: str) -> None:
    driver, recorder = StubDriver(Capabilities(lease=3.0)), Recorder(lambda _: asyncio.sleep(2))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder)
        await consumer.start()
        driver.fail(call, ConfigError("no longer allowed"))
        driver.put(message("1"))
        if call == "subscribe":
            driver.cut()
        with pytest.raises(ConfigError, match="no longer allowed"):
            await consumer.wait()


@virtual
async def test_a_worker_that_is_cancelled_from_outside_is_an_error_like_any_other() -> None:
    """A bare CancelledError could not be told from the caller's own."""
    async with broker_of(StubDriver()) as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        await consumer.start()
        [worker] = [task for task in asyncio.all_tasks() if "worker" in task.get_name()]
        worker.cancel()
        with pytest.raises(ThingsKitError, match="cancelled from outside"):
            await consumer.wait()
        assert not (await broker.health()).ok


@virtual
async def test_closing_the_broker_stops_its_consumers_side_by_side_then_disconnects() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(10))
    driver.put(message("1", topic="a"), message("2", topic="b"))
    broker = broker_of(driver)
    await broker.open()
    for topic in ("a", "b"):
        await broker.consumer(topic, group="g", handler=recorder).start()
    await until(lambda: recorder.running == 2)
    before = asyncio.get_running_loop().time()
    await broker.close()
    assert asyncio.get_running_loop().time() - before == pytest.approx(10, abs=0.5)
    assert len(driver.acknowledged) == 2
    assert driver.calls[-1] == "close"


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"topic": []}, "needs a topic"),
        ({"topic": ""}, "topic must be a name"),
        ({"topic": ["a", "a"]}, "must differ"),
        ({"group": ""}, "group must be a name"),
        ({"group": 5}, "group must be a name"),
        ({"group": "\ud800"}, "not text that UTF-8 can carry"),
        ({"topic": ["a", 5]}, "topic must be a name"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"concurrency": True}, "concurrency must be a whole number from 1"),
        ({"max_in_flight": 0}, "max_in_flight must be a whole number from 1"),
        ({"topic": ["a", "b"], "max_in_flight": 1}, "max_in_flight must be a whole number from 2"),
        ({"ordering": "keys"}, "ordering must be one of 'key', 'partition', 'none'"),
        ({"start": "now"}, "start must be one of 'earliest', 'latest'"),
        ({"retry": 5}, "retry must be a RetryPolicy"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": -1}, "timeout must be a duration"),
        ({"timeout": "5"}, "timeout must be a duration"),
        ({"timeout": float("inf")}, "timeout must be at most 31622400 seconds, a year; it is inf"),
        ({"drain_timeout": timedelta.max}, "drain_timeout must be at most 31622400 seconds, a year"),
        ({"drain_timeout": -1}, "drain_timeout must be a duration"),
        ({"batch": 5}, "batch must be a Batch"),
        ({"dead_letter": ""}, "dead_letter must be a topic's name, DISCARD or None; it is ''"),
        ({"dead_letter": 5}, "dead_letter must be a topic's name, DISCARD or None"),
        ({"dead_letter": "{topic}"}, "names the topic 't' itself"),
        ({"dead_letter": "{nothing}"}, "only the fields {topic} and {group}"),
        ({"handler": 5}, "a handler is a function"),
        ({"middleware": [5]}, "middleware is a function"),
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_understood_is_refused_with_a_sentence(
    arguments: dict[str, Any], sentence: str
) -> None:
    everything = {"topic": "t", "group": "g", "handler": Recorder(), **arguments}
    with pytest.raises(ConfigError) as raised:
        broker_of(StubDriver()).consumer(everything.pop("topic"), **everything)
    assert sentence in str(raised.value)


@virtual
async def test_a_concurrency_beyond_all_that_may_be_held_costs_nothing() -> None:
    """Who wants no limit says a huge number; there is never more to handle at once than `max_in_flight`."""
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(5))
    driver.put(*(message(str(n)) for n in range(20)))
    arguments: dict[str, Any] = {"handler": recorder, "concurrency": 10**12, "max_in_flight": 8}
    async with broker_of(driver) as broker, broker.consumer("t", group="g", **arguments):
        await until(lambda: len(recorder.ended) == 20)
    assert recorder.most == 8
