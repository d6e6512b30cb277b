"""What a consumer does on its good days: order, concurrency, timeouts, retries, on every kind of broker."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import DISCARD, Message, PublishError, Reject, Retry, RetryPolicy
from things_kit.engine.driver import Capabilities, Delivery
from things_kit.engine.inbox import ConsumerInbox
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

EVERY_KIND = pytest.mark.parametrize(
    "native",
    [
        BARE,
        NATIVE_DELAY,
        NATIVE_LANES,
        Capabilities(lease=3.0),
        Capabilities(delay=True, attempts=True, lease=3.0),
    ],
    ids=["bare", "delay", "lanes", "lease", "delay+lease"],
)


def message(value: str, key: str | None = None, topic: str = "t", **fields: Any) -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value, **fields)


def steady(**fields: Any) -> RetryPolicy:
    return RetryPolicy(**{"jitter": 0.0, "first": 1.0, "factor": 2.0, "limit": 30.0, **fields})


@EVERY_KIND
@virtual
async def test_every_message_is_handled_and_acknowledged(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder()
    driver.put(*(message(str(n), f"k{n % 7}") for n in range(100)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, concurrency=4):
        await until(lambda: len(driver.acknowledged) == 100)
    assert sorted(recorder.values) == sorted(str(n).encode() for n in range(100))
    assert not driver.breaches


@EVERY_KIND
@virtual
async def test_messages_of_a_key_are_handled_in_order_and_never_at_once(native: Capabilities) -> None:
    chance = random.Random(7)

    async def answer(message: Message) -> None:
        await asyncio.sleep(chance.random())
        if message.attempt == 1 and chance.random() < 0.3:
            raise ValueError("once")

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(*(message(f"{n}", f"k{n % 5}") for n in range(60)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=16, retry=steady()),
    ):
        await until(lambda: len(driver.acknowledged) == 60)
    assert not recorder.overlaps
    for key in range(5):
        done = [int(m.value) for m in recorder.ended if m.key == f"k{key}".encode()]
        assert done == sorted(done)
    assert not driver.breaches


@virtual
async def test_a_key_waits_for_its_head_while_that_is_in_back_off() -> None:
    async def answer(message: Message) -> None:
        if message.value == b"1" and message.attempt < 3:
            raise ValueError("not yet")

    for native in (BARE, NATIVE_DELAY, NATIVE_LANES):
        driver, recorder = StubDriver(native), Recorder(answer)
        driver.put(message("1", "k"), message("2", "k"), message("3", "k"))
        async with (
            broker_of(driver) as broker,
            broker.consumer("t", group="g", handler=recorder, concurrency=4, retry=steady()),
        ):
            await until(lambda driver=driver: len(driver.acknowledged) == 3)  # type: ignore[misc]
        assert recorder.values == [b"1", b"1", b"1", b"2", b"3"]
        assert not driver.breaches


@EVERY_KIND
@virtual
async def test_a_key_in_back_off_occupies_no_worker(native: Capabilities) -> None:
    async def answer(message: Message) -> None:
        if message.key == b"bad":
            raise Retry(after=600)

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(message("bad", "bad"), message("worse", "bad"), message("free"), message("good", "good"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(recorder.seen) == 3, within=1.0)
        assert sorted(recorder.values) == [b"bad", b"free", b"good"]
    assert not driver.breaches


@EVERY_KIND
@virtual
async def test_concurrency_is_reached_and_never_passed(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(1))
    driver.put(*(message(str(n)) for n in range(40)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, concurrency=8):
        await until(lambda: len(driver.acknowledged) == 40)
    assert recorder.times[-1] - recorder.times[0] == pytest.approx(4.0, abs=0.01)
    assert recorder.most == 8


@EVERY_KIND
@virtual
async def test_max_in_flight_is_never_passed(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(0.1))
    driver.put(*(message(str(n), f"{n % 3}") for n in range(100)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=3, max_in_flight=10),
    ):
        await until(lambda: len(driver.acknowledged) == 100)
    assert driver.peak <= 10
    assert not driver.breaches


@virtual
async def test_max_in_flight_is_shared_by_the_topics() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(3600))
    driver.put(*(message(str(n), topic=topic) for n in range(20) for topic in ("a", "b", "c")))
    async with broker_of(driver) as broker:
        consumer = broker.consumer(
            ["a", "b", "c"], group="g", handler=recorder, concurrency=20, max_in_flight=10, drain_timeout=0
        )
        async with consumer:
            await asyncio.sleep(1)
            assert 8 < consumer.health().in_flight <= 10


@virtual
async def test_several_topics_come_to_one_handler() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.put(message("1", topic="a"), message("2", topic="b"))
    async with broker_of(driver) as broker, broker.consumer(["a", "b"], group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 2)
    assert {m.topic for _, m in recorder.seen} == {"a", "b"}


@EVERY_KIND
@virtual
async def test_waits_between_attempts_grow_as_the_policy_says(native: Capabilities) -> None:
    async def answer(_: Message) -> None:
        raise ValueError("never")

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(message("x", "k"))
    policy = steady(attempts=6, limit=5.0)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=policy):
        await until(lambda: len(driver.acknowledged) == 1)
    waits = [b - a for a, b in zip(recorder.times, recorder.times[1:], strict=False)]
    assert waits == pytest.approx([1, 2, 4, 5, 5], abs=0.05)
    assert recorder.attempts == [1, 2, 3, 4, 5, 6]
    assert len(driver.topics["t-dlq"]) == 1
    assert not driver.expired


@EVERY_KIND
@virtual
async def test_retry_after_is_when_the_next_attempt_comes(native: Capabilities) -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise Retry(after=77)

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(message("x", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 1)
    assert recorder.times[1] - recorder.times[0] == pytest.approx(77, abs=0.05)


@virtual
async def test_a_message_without_key_waits_its_back_off_in_a_broker_that_can() -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise Retry(after=77)

    driver, recorder = StubDriver(NATIVE_DELAY), Recorder(answer)
    driver.put(message("x"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        await until(lambda: driver.released)
        await until(lambda: consumer.health().in_flight == 0, within=1)
        await until(lambda: len(driver.acknowledged) == 1)
    assert [(r.delay, r.attempt) for r in driver.released] == [(77, 2)]


@pytest.mark.parametrize("mode", ["in_place", "delayed"])
@virtual
async def test_a_wait_that_is_too_short_for_the_broker_is_waited_out_here(mode: Any) -> None:
    async def answer(message: Message) -> None:
        if message.attempt < 3:
            raise Retry(after=0.5 * message.attempt)

    coarse = Capabilities(delay=True, delay_from=1.0, attempts=True)
    driver, recorder = StubDriver(coarse), Recorder(answer)
    driver.put(message("x"))
    policy = steady(mode=mode)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=policy):
        await until(lambda: len(driver.acknowledged) == 1)
    assert [(r.delay, r.attempt) for r in driver.released] == [(1.0, 3)]


@virtual
async def test_a_retry_of_a_broker_that_cannot_wait_keeps_its_message() -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise Retry(after=100)

    driver, recorder = StubDriver(Capabilities(lease=6.0)), Recorder(answer)
    driver.put(message("x", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 1)
    assert not driver.released
    assert not driver.expired
    assert driver.calls.count("extend") >= 100 / 2 - 2


@virtual
async def test_a_handler_longer_than_the_lease_gets_its_message_once() -> None:
    driver, recorder = StubDriver(Capabilities(lease=6.0)), Recorder(lambda _: asyncio.sleep(60))
    driver.put(message("x", "k"), message("y", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 2)
    assert recorder.values == [b"x", b"y"]
    assert not driver.expired


@EVERY_KIND
@virtual
async def test_delayed_mode_lets_the_key_go_on(native: Capabilities) -> None:
    async def answer(message: Message) -> None:
        if message.value == b"1" and message.attempt == 1:
            raise ValueError("later")

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"), message("3", "k"))
    policy = steady(mode="delayed", first=60.0, limit=60.0)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=policy, concurrency=3),
    ):
        await until(lambda: len(recorder.seen) == 3, within=1.0)
        assert recorder.values == [b"1", b"2", b"3"]
        if not native.lanes:  # the stub has no place aside
            await until(lambda: len(driver.acknowledged) == 3)
            assert recorder.values == [b"1", b"2", b"3", b"1"]
            assert recorder.times[3] - recorder.times[0] == pytest.approx(60, abs=0.1)
    assert driver.breaches == []


@virtual
async def test_delayed_mode_asks_a_broker_with_lanes_to_put_aside() -> None:
    async def answer(_: Message) -> None:
        raise ValueError("later")

    driver = StubDriver(NATIVE_LANES)
    driver.put(message("1", "k"))
    policy = steady(mode="delayed", first=60.0, limit=60.0)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=answer, retry=policy):
        await until(lambda: driver.released)
    (release,) = driver.released
    assert (release.aside, release.delay, release.attempt) == (True, 60.0, 2)


@virtual
async def test_a_message_put_aside_is_never_handled_beside_another_of_its_key() -> None:
    async def answer(message: Message) -> None:
        if message.value == b"1" and message.attempt == 1:
            raise ValueError("later")
        await asyncio.sleep(10)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"))
    policy = steady(mode="delayed", first=5.0)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=policy, concurrency=4),
    ):
        await until(lambda: len(driver.acknowledged) == 2)
    assert not recorder.overlaps


@virtual
async def test_a_partition_is_handled_in_strict_order_retries_included() -> None:
    async def answer(message: Message) -> None:
        if int(message.value) % 4 == 0 and message.attempt < 3:
            raise ValueError("again")

    driver, recorder = StubDriver(partitions=1), Recorder(answer)
    driver.put(*(message(str(n), f"k{n}") for n in range(20)))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=recorder, ordering="partition", concurrency=8, retry=steady()
        ),
    ):
        await until(lambda: len(driver.acknowledged) == 20)
    assert [int(m.value) for m in recorder.ended] == list(range(20))
    assert recorder.most == 1


@virtual
async def test_partitions_go_side_by_side() -> None:
    driver, recorder = StubDriver(partitions=2), Recorder(lambda _: asyncio.sleep(1))
    driver.put(*(message(str(n), f"k{n}") for n in range(20)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, ordering="partition", concurrency=8),
    ):
        await until(lambda: len(driver.acknowledged) == 20)
    assert recorder.most == 2


@virtual
async def test_ordering_none_handles_messages_of_a_key_at_once() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(1))
    driver.put(*(message(str(n), "k") for n in range(8)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, ordering="none", concurrency=8),
    ):
        await until(lambda: len(driver.acknowledged) == 8)
    assert recorder.most == 8


# --- outcomes


@virtual
async def test_a_timeout_cancels_exactly_when_it_is_over() -> None:
    ended: list[float] = []

    async def handle(_: Message) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(asyncio.get_running_loop().time() - began)

    driver = StubDriver()
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, timeout=2.5, concurrency=3, retry=steady(attempts=1)),
    ):
        for n in range(3):
            driver.put(message(str(n)))
            await asyncio.sleep(0.7)
        await until(lambda: len(driver.acknowledged) == 3)
    assert ended == pytest.approx([2.5, 2.5, 2.5], abs=0.01)
    assert [m.headers["error-type"] for m in driver.topics["t-dlq"]] == ["TimeoutError"] * 3


@virtual
async def test_a_handler_within_its_timeout_is_left_alone() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(2.4))
    driver.put(*(message(str(n)) for n in range(5)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, timeout=2.5):
        await until(lambda: len(driver.acknowledged) == 5)
    assert recorder.attempts == [1] * 5


@virtual
async def test_a_handler_that_swallows_its_timeout_has_handled_the_message() -> None:
    async def answer(_: Message) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(1)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1"), message("2"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, timeout=2):
        await until(lambda: len(driver.acknowledged) == 2)
    assert recorder.attempts == [1, 1]


@virtual
async def test_an_overrun_is_a_timeout_whatever_the_handler_makes_of_its_cancellation() -> None:
    async def handle(_: Message) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise Reject("a conversion of its own") from None

    driver = StubDriver()
    driver.put(message("1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, timeout=2, retry=steady(attempts=1)),
    ):
        await until(lambda: len(driver.acknowledged) == 1)
    assert driver.topics["t-dlq"][0].headers["error-type"] == "TimeoutError"


@virtual
async def test_a_cancelled_error_of_its_own_is_an_ordinary_failure() -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise asyncio.CancelledError

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1"), message("2"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=steady()):
        await until(lambda: len(driver.acknowledged) == 2)
    assert sorted(recorder.attempts) == [1, 1, 2, 2]


@virtual
async def test_a_rejected_message_is_a_dead_letter_at_once() -> None:
    async def answer(_: Message) -> None:
        raise Reject("no such customer")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 1, within=0.1)
    assert driver.topics["t-dlq"][0].headers["error"] == "no such customer"


@virtual
async def test_without_a_dead_letter_a_message_is_tried_for_ever() -> None:
    async def answer(message: Message) -> None:
        if message.attempt < 40:
            raise Reject("again and again")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, dead_letter=None, retry=steady(attempts=3)),
    ):
        await until(lambda: len(driver.acknowledged) == 1, within=5000)
    assert recorder.attempts == list(range(1, 41))
    assert list(driver.topics) == ["t"]


@virtual
async def test_discard_acknowledges_and_counts() -> None:
    async def answer(message: Message) -> None:
        if message.key == b"bad":
            raise Reject

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "bad"), message("2", "good"), message("3", "bad"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, dead_letter=DISCARD) as consumer,
    ):
        await until(lambda: len(driver.acknowledged) == 3)
        assert consumer.discarded == 2
    assert list(driver.topics) == ["t"]


@virtual
async def test_a_dead_letter_that_cannot_be_published_keeps_its_message() -> None:
    async def answer(_: Message) -> None:
        raise Reject("bad")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"))
    refused = [True]
    driver.refuse = lambda m: PublishError("full") if m.topic == "t-dlq" and refused[0] else None
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=steady(limit=10.0)),
    ):
        await until(lambda: len(recorder.seen) == 3)
        assert recorder.values == [b"1", b"1", b"1"]
        assert not driver.acknowledged
        refused[0] = False
        await until(lambda: len(driver.acknowledged) == 2)
    assert [m.value for m in driver.topics["t-dlq"]] == [b"1", b"2"]
    assert recorder.times[1] - recorder.times[0] == pytest.approx(10, abs=0.1)


@virtual
async def test_a_message_is_acknowledged_only_after_its_dead_letter_is_confirmed() -> None:
    async def answer(_: Message) -> None:
        raise Reject("bad")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"))
    confirm = driver.hold("send")
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: driver.attempted)
        await asyncio.sleep(5)
        assert not driver.acknowledged
        assert recorder.values == [b"1"]  # the key waits for it as well
        confirm.set()
        await until(lambda: len(driver.acknowledged) == 2)


@virtual
async def test_a_replay_for_another_group_is_skipped_and_acknowledged() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.put(
        message("1", headers={"replay-group": "other"}),
        message("2", headers={"replay-group": "g"}),
        message("3"),
    )
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 3)
    assert recorder.values == [b"2", b"3"]


@virtual
async def test_a_consumer_without_group_gets_what_comes_from_now_on() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.put(message("old"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group=None, handler=recorder, start="earliest"),
    ):
        driver.put(message("new"))
        await until(lambda: driver.acknowledged)
    assert recorder.values == [b"new"]


@virtual
async def test_a_hostile_error_is_an_ordinary_failure() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("it cannot even be printed")

    async def answer(message: Message) -> None:
        if message.value == b"bad":
            raise Hostile

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("bad"), message("good"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=steady(attempts=1)),
    ):
        await until(lambda: len(driver.acknowledged) == 2, within=10)
    assert driver.topics["t-dlq"][0].headers["error-type"].endswith("Hostile")


@pytest.mark.parametrize("after", ["soon", float("nan"), [5]], ids=["word", "nan", "list"])
@virtual
async def test_a_retry_after_no_duration_is_an_ordinary_failure(after: Any) -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise Retry(after=after)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1"), message("2"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=steady()):
        await until(lambda: len(driver.acknowledged) == 2, within=10)
    assert sorted(recorder.attempts) == [1, 1, 2, 2]


@virtual
async def test_back_offs_leave_the_rest_of_max_in_flight_to_others() -> None:
    async def answer(message: Message) -> None:
        if message.key is not None:
            raise Retry(after=3600)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(*(message(str(n), f"k{n}") for n in range(16)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, max_in_flight=20),
    ):
        await until(lambda: len(recorder.seen) == 16)
        driver.put(message("free"))
        await until(lambda: driver.acknowledged, within=60)
    assert recorder.values[16] == b"free"


@EVERY_KIND
@virtual
async def test_a_failure_does_not_look_through_all_that_is_held(
    native: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thousand in back-off that fail at once left a tenth of the speed to all others."""
    looks = 0

    class Held(dict[Delivery, float]):
        def __iter__(self) -> Iterator[Delivery]:
            nonlocal looks
            for each in super().__iter__():
                looks += 1
                yield each

    class Inbox(ConsumerInbox):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.held = Held()

    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise ConnectionError

    monkeypatch.setattr("things_kit.engine.pump.ConsumerInbox", Inbox)
    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(*(message(str(n), f"k{n}") for n in range(200)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=steady()):
        await until(lambda: len(driver.acknowledged) == 200)
    assert sorted(recorder.attempts) == [1] * 200 + [2] * 200
    assert looks < 10 * 200
