"""The throttle, and `Later` by which it holds messages back."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Batch, ConfigError, Handle, Message, RetryPolicy, connect
from things_kit.engine.driver import Capabilities
from things_kit.messaging.health import MiddlewareState
from things_kit.messaging.instrument import Endpoint
from things_kit.middleware import Later, throttle
from things_kit.middleware.metrics import Metrics
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])


def message(value: str, key: str | None = None) -> Message:
    return Message("t", value.encode(), None if key is None else key.encode(), id=value)


def most_in(times: list[float], per: float) -> int:
    """The most that began in any interval `per`."""
    return max(sum(begun <= each < begun + per - 1e-9 for each in times) for begun in times)


@virtual
async def test_a_message_put_off_keeps_the_place_at_the_head_of_its_key_and_counts_no_attempt() -> None:
    refused = 0

    async def answer(each: Message) -> None:
        nonlocal refused
        if each.value == b"a1" and refused < 3:
            refused += 1
            raise Later(60)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("a1", "a"), message("a2", "a"), message("b1", "b"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=RetryPolicy(attempts=1)),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert [each.value for each in recorder.ended] == [b"b1", b"a1", b"a2"]
    assert set(recorder.attempts) == {1}
    assert not driver.topics["t-dlq"]
    assert not driver.expired


@KINDS
@virtual
async def test_no_interval_has_more_attempts_than_the_rate_and_a_key_keeps_its_order(
    native: Capabilities,
) -> None:
    driver, recorder = StubDriver(native), Recorder()
    driver.put(*(message(str(n), f"k{n % 5}") for n in range(40)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=4, middleware=[throttle(3, per=10)]),
    ):
        await until(lambda: len(driver.acknowledged) == 40)
    assert most_in(recorder.times, 10) == 3
    assert recorder.times[-1] - recorder.times[0] < 140  # 13 intervals, and no more than that
    for key in range(5):
        mine = [int(value) for value in recorder.values if int(value) % 5 == key]
        assert mine == sorted(mine)


@pytest.mark.parametrize("native", [NATIVE_DELAY, NATIVE_LANES], ids=["delay", "lanes"])
@virtual
async def test_a_throttled_consumer_leaves_to_others_what_is_beyond_half_of_what_it_may_hold(
    native: Capabilities,
) -> None:
    driver, recorder, slow = StubDriver(native), Recorder(), Recorder()
    driver.put(*(message(str(n)) for n in range(100)))
    async with broker_of(driver) as broker:
        held_back = broker.consumer(
            "t", group="g", handler=slow, max_in_flight=10, middleware=[throttle(1, per=3600)]
        )
        async with held_back:
            await until(lambda: len(driver.acknowledged) == 1)
            async with broker.consumer("t", group="g", handler=recorder):
                await until(lambda: len(driver.acknowledged) >= 95, within=100)
    assert len(slow.ended) == 1
    assert len(recorder.ended) >= 94  # of the ten that it may hold it holds five


@virtual
async def test_what_others_would_take_for_an_attempt_is_not_given_back() -> None:
    driver, recorder = StubDriver(Capabilities(delay=True, counts_releases=True)), Recorder()
    driver.put(*(message(str(n)) for n in range(20)))
    limit = throttle(1, per=0.5)
    async with broker_of(driver) as broker:
        consumer = broker.consumer(
            "t", group="g", handler=recorder, concurrency=8, max_in_flight=8, middleware=[limit]
        )
        async with consumer:
            await until(lambda: len(driver.acknowledged) == 20)
            assert consumer.given_back == 0


@virtual
async def test_each_value_of_the_key_has_its_own_limit() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.put(message("a1", "a"), message("a2", "a"), message("b1", "b"), message("b2", "b"))
    limit = throttle(1, per=10, key=lambda each: each.key)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, middleware=[limit]),
    ):
        await until(lambda: len(driver.acknowledged) == 4)
    assert [round(time - recorder.times[0]) for time in recorder.times] == [0, 0, 10, 10]


@virtual
async def test_two_consumers_of_one_throttle_share_its_limit() -> None:
    driver, recorder, limit = StubDriver(), Recorder(), throttle(2, per=10)
    driver.put(*(message(str(n)) for n in range(8)))
    async with broker_of(driver) as broker:
        for _ in range(2):
            await broker.consumer("t", group="g", handler=recorder, middleware=[limit]).start()
        await until(lambda: len(driver.acknowledged) == 8)
    assert most_in(recorder.times, 10) == 2


@virtual
async def test_of_a_batch_all_waits_and_each_message_counts() -> None:
    begun: list[tuple[float, list[bytes]]] = []

    async def handle(messages: list[Message]) -> None:
        begun.append((asyncio.get_running_loop().time(), [each.value for each in messages]))

    driver = StubDriver()
    driver.put(*(message(str(n), "a") for n in range(6)))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=handle, batch=Batch(size=2, wait=0), middleware=[throttle(2, per=10)]
        ),
    ):
        await until(lambda: len(driver.acknowledged) == 6)
    assert [values for _, values in begun] == [[b"0", b"1"], [b"2", b"3"], [b"4", b"5"]]
    assert [round(time - begun[0][0]) for time, _ in begun] == [0, 10, 20]


@virtual
async def test_a_batch_larger_than_the_rate_is_refused_at_start() -> None:
    async def handle(messages: list[Message]) -> None: ...

    async with broker_of(StubDriver()) as broker:
        consumer = broker.consumer(
            "t", group="g", handler=handle, batch=Batch(size=3), middleware=[throttle(2)]
        )
        with pytest.raises(ConfigError, match="would never begin"):
            await consumer.start()


@virtual
async def test_it_says_when_messages_wait_and_when_no_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "things_kit.throttle")
    driver, recorder, limit = StubDriver(), Recorder(), throttle(2, per=10)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, middleware=[limit]) as consumer,
    ):
        assert consumer.health().middleware == (MiddlewareState("throttle", "free"),)
        driver.put(*(message(str(n)) for n in range(7)))
        await until(lambda: consumer.health().put_off == 5)
        assert consumer.health().middleware == (MiddlewareState("throttle", "throttling"),)
        await until(lambda: limit.state == "free")
        assert consumer.health().put_off == 0
    assert [record.getMessage() for record in caplog.records] == [
        "the throttle holds messages back: 2 began within 10 s",
        "the throttle is free: nothing waits any more",
    ]


@virtual
async def test_a_stop_gives_back_what_waits_uncounted() -> None:
    driver, recorder = StubDriver(NATIVE_LANES), Recorder()
    driver.put(message("1", "a"), message("2", "a"))
    async with broker_of(driver) as broker:
        async with broker.consumer("t", group="g", handler=recorder, middleware=[throttle(1, per=3600)]):
            await until(lambda: len(driver.acknowledged) == 1)
        async with broker.consumer("t", group="g", handler=recorder):
            await until(lambda: len(driver.acknowledged) == 2, within=60)
    assert recorder.attempts == [1, 1]


@virtual
async def test_middleware_is_bound_to_its_consumer_at_start() -> None:
    class Binding:
        bound: Any = None

        def bind(self, consumer: Any) -> None:
            self.bound = consumer

        def __call__(self, handle: Handle) -> Handle:
            return handle

    binding = Binding()
    async with broker_of(StubDriver()) as broker:
        consumer = broker.consumer(["t", "u"], group="g", handler=Recorder(), middleware=[binding])
        assert binding.bound is None
        async with consumer:
            seen: Any = binding.bound
            assert (seen.group, seen.topics, seen.batch, seen.paused) == ("g", ("t", "u"), None, False)
            seen.pause()
            assert consumer.paused


@virtual
async def test_middleware_may_be_made_for_each_consumer() -> None:
    class Named:
        """Notes for whom each message was handled."""

        def __init__(self, group: str = "nobody") -> None:
            self.group = group

        async def bind(self, consumer: Any) -> "Named":
            await asyncio.sleep(0)
            return Named(consumer.group)

        def __call__(self, handle: Handle) -> Handle:
            async def noted(each: Message) -> None:
                handled.append((self.group, each.value))
                await handle(each)

            return noted

        def handle_batch(self, handle: Any) -> Any:
            async def noted(messages: list[Message]) -> None:
                handled.append((f"{self.group} in batches", messages[0].value))
                await handle(messages)

            return noted

    async def handle_list(messages: list[Message]) -> None: ...

    handled: list[tuple[str, bytes]] = []
    driver, named = StubDriver(), Named()
    driver.put(Message("t", b"1", id="1"), Message("u", b"2", id="2"), Message("v", b"3", id="3"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="a", handler=Recorder(), middleware=[named]),
        broker.consumer("u", group="b", handler=Recorder(), middleware=[named]),
        broker.consumer("v", group="c", handler=handle_list, batch=Batch(size=1), middleware=[named]),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert sorted(handled) == [("a", b"1"), ("b", b"2"), ("c in batches", b"3")]


@virtual
async def test_middleware_that_refuses_its_consumer_lets_nothing_begin() -> None:
    class Refusing:
        async def bind(self, consumer: Any) -> None:
            raise ConfigError(f"not {consumer.group}")

        def __call__(self, handle: Handle) -> Handle:
            return handle

    driver, recorder = StubDriver(), Recorder()
    driver.put(message("1"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=recorder, middleware=[Refusing()])
        with pytest.raises(ConfigError, match="not g"):
            await consumer.start()
        assert not broker.consumers
    assert not recorder.seen


async def test_what_is_put_off_is_no_attempt_in_the_figures() -> None:
    reader = InMemoryMetricReader()
    metrics = Metrics(MeterProvider([reader]))

    async def put_off(_: object) -> None:
        raise Later(1)

    with pytest.raises(Later):
        await metrics.handling(Endpoint("memory"), "g")(put_off)(message("1"))
    with pytest.raises(Later):
        await metrics.handling_batches(Endpoint("memory"), "g")(put_off)([message("1")])
    assert reader.get_metrics_data() is None


@pytest.mark.parametrize("memory_or_file", ["memory://", "sqlite:///throttled.db"])
async def test_a_throttle_holds_on_a_broker_as_on_the_stub(
    memory_or_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done, recorder = asyncio.Event(), Recorder()

    async def handle(each: Message) -> None:
        await recorder.handle(each)
        if len(recorder.seen) == 12:
            done.set()

    async with connect(memory_or_file) as broker:
        limit = throttle(5, per=0.2)
        async with broker.consumer("t", group="g", handler=handle, concurrency=4, middleware=[limit]):
            await broker.producer().publish_batch([message(str(n), f"k{n % 3}") for n in range(12)])
            async with asyncio.timeout(30):
                await done.wait()
        assert await broker.lag("t", group="g") == 0
    assert set(recorder.attempts) == {1}
    for key in range(3):
        assert [int(value) for value in recorder.values if int(value) % 3 == key] == [*range(key, 12, 3)]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "5"])
def test_a_rate_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="rate"):
        throttle(wrong)


@pytest.mark.parametrize("wrong", [None, "soon", float("nan")])
def test_later_needs_a_duration(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="duration"):
        Later(wrong)
