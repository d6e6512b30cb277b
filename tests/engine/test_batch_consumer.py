"""Batch handlers: lists that fill, partial failure, and the order of keys through both."""

import asyncio
import random
from typing import Any

import pytest

from tests.engine.scenario import until, virtual
from things_kit import Batch, BatchError, ConfigError, Message, PublishError, Reject, Retry, RetryPolicy
from things_kit.engine.driver import Capabilities
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])


def message(value: str, key: str | None = None, topic: str = "t") -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value)


POLICY = RetryPolicy(attempts=3, first=1.0, jitter=0.0)


class Lists:
    """Notes each list, its attempts and its time; then fails what `fails` says by value and attempt."""

    def __init__(self, fails: dict[tuple[bytes, int], BaseException] | None = None) -> None:
        self.seen: list[list[bytes]] = []
        self.attempts: list[list[int]] = []
        self.times: list[float] = []
        self.done: list[bytes] = []
        self._fails = fails or {}

    async def handle(self, messages: list[Message]) -> None:
        self.seen.append([m.value for m in messages])
        self.attempts.append([m.attempt for m in messages])
        self.times.append(asyncio.get_running_loop().time())
        errors = {
            index: self._fails[m.value, m.attempt]
            for index, m in enumerate(messages)
            if (m.value, m.attempt) in self._fails
        }
        self.done += [m.value for index, m in enumerate(messages) if index not in errors]
        if errors:
            raise BatchError(errors)


@virtual
async def test_a_full_list_is_handled_at_once() -> None:
    driver, lists = StubDriver(), Lists()
    driver.put(*(message(str(n)) for n in range(10)))
    batch = Batch(size=5, wait=60)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch),
    ):
        await until(lambda: len(driver.acknowledged) == 10, within=1)
    assert [len(values) for values in lists.seen] == [5, 5]


@virtual
async def test_a_list_that_does_not_fill_is_handled_after_its_wait() -> None:
    driver, lists = StubDriver(), Lists()
    batch = Batch(size=5, wait=10)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch),
    ):
        await asyncio.sleep(3)
        driver.put(message("1"))
        await asyncio.sleep(4)
        driver.put(message("2"))
        await until(lambda: len(driver.acknowledged) == 2)
    assert lists.seen == [[b"1", b"2"]]
    assert lists.times == pytest.approx([13], abs=0.01)


@virtual
async def test_a_list_holds_several_of_a_key_in_order() -> None:
    driver, lists = StubDriver(), Lists()
    driver.put(*(message(str(n), f"k{n % 2}") for n in range(8)))
    batch = Batch(size=100, wait=1)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch),
    ):
        await until(lambda: len(driver.acknowledged) == 8)
    (values,) = lists.seen
    for key in (0, 1):
        assert [v for v in values if int(v) % 2 == key] == [str(n).encode() for n in range(key, 8, 2)]


@virtual
async def test_a_list_that_one_key_fills_is_handled_at_once() -> None:
    driver, lists = StubDriver(), Lists()
    driver.put(*(message(str(n), "k") for n in range(8)))
    batch = Batch(size=4, wait=60)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch),
    ):
        await until(lambda: len(driver.acknowledged) == 8, within=1)
    assert [len(values) for values in lists.seen] == [4, 4]


@virtual
async def test_a_list_is_never_longer_than_its_size() -> None:
    driver, lists = StubDriver(), Lists()
    driver.put(*(message(str(n), "k" if n % 3 else f"k{n}") for n in range(50)))
    batch = Batch(size=7, wait=0.5)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch),
    ):
        await until(lambda: len(driver.acknowledged) == 50)
    assert max(len(values) for values in lists.seen) == 7


@KINDS
@virtual
async def test_only_what_failed_comes_again_and_the_order_of_its_key_is_kept(native: Capabilities) -> None:
    driver = StubDriver(native)
    lists = Lists({(b"2", 1): ValueError("no"), (b"4", 1): ValueError("no")})
    driver.put(*(message(str(n), "k") for n in range(1, 6)), message("x", "other"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=Batch(size=10, wait=0.1), retry=POLICY),
    ):
        await until(lambda: len(driver.acknowledged) == 6)
    assert sorted(lists.seen[0]) == [b"1", b"2", b"3", b"4", b"5", b"x"]
    assert [v for values in lists.seen[1:] for v in values] == [b"2", b"4"]
    assert [a for attempts in lists.attempts[1:] for a in attempts] == [2, 2]
    assert not driver.breaches


@KINDS
@virtual
async def test_keys_keep_their_order_through_lists_that_fail_in_part(native: Capabilities) -> None:
    chance = random.Random(3)
    running: set[bytes | None] = set()
    overlaps: list[bytes | None] = []
    done: list[tuple[bytes | None, int]] = []

    async def handle(messages: list[Message]) -> None:
        keys = {m.key for m in messages}
        overlaps.extend(keys & running)
        running.update(keys)
        await asyncio.sleep(chance.random())
        errors: dict[int, BaseException] = {}
        stopped: set[bytes | None] = set()  # a handler that keeps order fails all that is behind a failure
        for index, m in enumerate(messages):
            if m.key in stopped or (m.attempt == 1 and chance.random() < 0.2):
                stopped.add(m.key)
                errors[index] = ValueError("once")
            else:
                done.append((m.key, int(m.value)))
        running.difference_update(keys)
        if errors:
            raise BatchError(errors)

    driver = StubDriver(native)
    driver.put(*(message(str(n), f"k{n % 4}") for n in range(80)))
    policy = RetryPolicy(attempts=99, first=0.5, jitter=0.1, limit=2.0)
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=handle, batch=Batch(size=6, wait=0.2), concurrency=3, retry=policy
        ),
    ):
        await until(lambda: len(driver.acknowledged) == 80)
    assert not overlaps
    for key in range(4):
        values = [value for k, value in done if k == f"k{key}".encode()]
        assert values == sorted(values)
    assert not driver.breaches


@virtual
async def test_every_other_error_fails_the_whole_list() -> None:
    failed: list[int] = []

    async def handle(messages: list[Message]) -> None:
        if not failed:
            failed.append(len(messages))
            raise ValueError("all of it")

    driver = StubDriver()
    driver.put(*(message(str(n)) for n in range(3)))
    batch = Batch(size=3, wait=1)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=batch, retry=POLICY),
    ):
        await asyncio.sleep(0.5)
        assert not driver.acknowledged
        await until(lambda: len(driver.acknowledged) == 3)


@virtual
async def test_reject_and_retry_mean_in_a_list_what_they_always_do() -> None:
    driver = StubDriver()
    lists = Lists({(b"1", 1): Reject("bad"), (b"2", 1): Retry(after=50)})
    driver.put(message("1"), message("2"), message("3"))
    batch = Batch(size=3, wait=1)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert [m.value for m in driver.topics["t-dlq"]] == [b"1"]
    assert lists.seen[1] == [b"2"]
    assert lists.times[1] - lists.times[0] == pytest.approx(51, abs=0.1)  # it waited, then the list did


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("kind", [Message, int])
@virtual
async def test_an_index_that_is_not_in_the_list_fails_all_of_it(wrong: int, kind: type) -> None:
    """Whatever the handler meant, it did not mean that all is well."""

    async def handle(messages: list[Any]) -> None:
        raise BatchError({wrong: ValueError("that one")})

    handle.__annotations__["messages"] = list[kind]  # type: ignore[valid-type]
    driver = StubDriver()
    driver.put(*(message(str(n)) for n in range(3)))
    batch = Batch(size=3, wait=1)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=batch, retry=POLICY),
    ):
        await asyncio.sleep(0.5)
        assert not driver.acknowledged


@virtual
async def test_a_timeout_fails_the_whole_list() -> None:
    took: list[float] = []

    async def handle(messages: list[Message]) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(100 if messages[0].attempt == 1 else 0)
        finally:
            took.append(asyncio.get_running_loop().time() - began)

    driver = StubDriver()
    driver.put(message("1"), message("2"))
    batch = Batch(size=2, wait=1)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=batch, timeout=5, retry=POLICY),
    ):
        await until(lambda: len(driver.acknowledged) == 2)
    assert took == pytest.approx([5, 0], abs=0.01)


@virtual
async def test_waiting_for_a_list_to_fill_is_no_part_of_its_timeout() -> None:
    lists, driver = Lists(), StubDriver()
    driver.put(message("1"))
    batch = Batch(size=2, wait=50)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=lists.handle, batch=batch, timeout=5),
    ):
        await until(lambda: len(driver.acknowledged) == 1)
    assert lists.attempts == [[1]]


@virtual
async def test_stop_while_a_list_fills_gives_it_back_at_once() -> None:
    driver, lists = StubDriver(), Lists()
    driver.put(message("1"), message("2", "k"))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=lists.handle, batch=Batch(size=5, wait=1000))
        await consumer.start()
        await asyncio.sleep(10)
        before = asyncio.get_running_loop().time()
        await consumer.stop()
        assert asyncio.get_running_loop().time() - before < 0.1
    assert not lists.seen
    assert [(r.attempt, r.delay) for r in driver.released] == [(1, 0.0)] * 2
    assert not driver.breaches


@virtual
async def test_a_list_that_stop_cancels_goes_back_uncounted() -> None:
    async def handle(messages: list[Message]) -> None:
        await asyncio.Event().wait()

    driver = StubDriver()
    driver.put(message("1"), message("2"))
    async with broker_of(driver) as broker:
        batch = Batch(size=2, wait=1)
        async with broker.consumer("t", group="g", handler=handle, batch=batch, drain_timeout=1):
            await asyncio.sleep(1)
    assert [r.attempt for r in driver.released] == [1, 1]


@virtual
async def test_a_partial_failure_made_of_the_cancellation_by_stop_is_no_failure() -> None:
    """`gather(..., return_exceptions=True)` answers a cancellation so."""

    async def handle(messages: list[Message]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise BatchError({1: error}) from None

    driver = StubDriver()
    driver.put(message("1"), message("2"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t",
            group="g",
            handler=handle,
            batch=Batch(size=2, wait=1),
            drain_timeout=1,
            retry=RetryPolicy(attempts=1),
        ),
    ):
        await asyncio.sleep(1)
    assert driver.topics["t-dlq"] == []
    assert [r.attempt for r in driver.released if r.delivery.message.value == b"2"] == [1]


@virtual
async def test_a_value_that_cannot_be_decoded_fails_alone() -> None:
    got: list[list[int]] = []

    async def handle(numbers: list[int]) -> None:
        got.append(numbers)
        if len(got) == 1:
            raise BatchError({1: ValueError("the second that could be read")})

    driver = StubDriver()
    driver.put(message("1"), message("x"), message("2"), message("y"), message("3"))
    batch = Batch(size=5, wait=1)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=batch, retry=POLICY),
    ):
        await until(lambda: len(driver.acknowledged) == 5)
    assert got == [[1, 2, 3], [2]]
    assert sorted(m.value for m in driver.topics["t-dlq"]) == [b"x", b"y"]


@virtual
@KINDS
async def test_several_of_a_key_whose_dead_letters_fail_keep_their_order(native: Capabilities) -> None:
    running: list[bytes | None] = []
    overlaps: list[bytes | None] = []
    refused = [True]

    async def handle(messages: list[Message]) -> None:
        overlaps.extend(key for key in {m.key for m in messages} if key in running)
        running.append(messages[0].key)
        await asyncio.sleep(5)
        running.pop()
        if refused[0]:
            raise Reject("all of them")

    driver = StubDriver(native)
    driver.refuse = lambda m: PublishError("full") if m.topic == "t-dlq" and refused[0] else None
    driver.put(message("1", "k"), message("2", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t",
            group="g",
            handler=handle,
            batch=Batch(size=5, wait=0.01),
            concurrency=3,
            retry=RetryPolicy(limit=10.0, jitter=1.0),
        ),
    ):
        await asyncio.sleep(200)
        refused[0] = False
        await until(lambda: len(driver.acknowledged) == 2)
    assert not overlaps


@virtual
@KINDS
async def test_what_comes_after_several_of_a_key_waits_for_the_one_whose_dead_letter_failed(
    native: Capabilities,
) -> None:
    """The second one's dead letter is confirmed while the first goes back: that frees nobody."""
    order: list[str] = []

    async def handle(messages: list[Message]) -> None:
        order.extend(str(m.id) for m in messages)
        if errors := {index: Reject("no") for index, m in enumerate(messages) if m.id != "3"}:
            raise BatchError(errors)

    refusals = iter([PublishError("full"), None, None, None, None])
    driver = StubDriver(native)
    driver.refuse = lambda m: next(refusals) if m.topic == "t-dlq" and m.value == b"1" else None
    driver.put(message("1", "k"), message("2", "k"), message("3", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=Batch(size=2, wait=0.01), retry=POLICY),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert sorted(m.value for m in driver.topics["t-dlq"]) == [b"1", b"2"]
    assert order[:2] == ["1", "2"]
    assert order.index("3") > order.index("1", 1), "the third came before the first was out of its way"
    assert order.count("2") == 1


def test_middleware_of_one_message_cannot_wrap_a_batch() -> None:
    with pytest.raises(ConfigError, match="needs a method handle_batch"):
        broker_of(StubDriver()).consumer(
            "t", group="g", handler=Lists().handle, batch=Batch(), middleware=[lambda handle: handle]
        )
