"""Brokers that take back a part of what a receiver has: `Subscription.let_go` and `Subscription.forget`."""

import asyncio

import pytest

from tests.engine.scenario import Recorder, turns, until, virtual
from things_kit import Batch, Message, Reject, Retry, RetryPolicy
from things_kit.engine.driver import Delivery
from things_kit.testing.stub import BARE, StubDriver, broker_of


def message(value: str, key: str | None = None, topic: str = "t") -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value)


def bad(delivery: Delivery) -> bool:
    return delivery.message.key == b"k"


async def slow_with_a_key(message: Message) -> None:
    if message.key is not None:
        await asyncio.sleep(10)


@virtual
async def test_letting_go_drops_what_was_not_begun() -> None:
    driver, recorder = StubDriver(), Recorder(slow_with_a_key)
    quick = [message(str(n)) for n in range(20)]  # after which the window is wide enough for all of these
    driver.put(*quick, message("a", "a"), message("1", "k"), message("2", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        await until(lambda: recorder.values[-1:] == [b"a"] and consumer.health().in_flight == 3)
        receiver = driver.receiver("t", "g")
        before = asyncio.get_running_loop().time()
        await receiver.subscription.inbox.let_go(bad)
        assert asyncio.get_running_loop().time() == before
        assert consumer.health().in_flight == 1
        receiver.take_back(bad)
        await until(lambda: len(driver.acknowledged) == 21)
        await asyncio.sleep(30)
    assert recorder.values[20:] == [b"a"]
    assert not driver.breaches


@virtual
async def test_letting_go_waits_for_what_was_begun_and_settles_it() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(10))
    driver.put(message("1", "k"), message("2", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: recorder.running)
        receiver = driver.receiver("t", "g")
        await receiver.subscription.inbox.let_go(bad)
        assert [m.value for m in driver.acknowledged] == [b"1"]
        receiver.take_back(bad)
        await asyncio.sleep(30)
    assert recorder.values == [b"1"]
    assert not driver.breaches


@virtual
async def test_letting_go_waits_no_longer_than_the_drain_timeout() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(100))
    driver.put(message("1", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, drain_timeout=20),
    ):
        await until(lambda: recorder.running)
        receiver = driver.receiver("t", "g")
        before = asyncio.get_running_loop().time()
        await receiver.subscription.inbox.let_go(bad)
        assert asyncio.get_running_loop().time() - before == pytest.approx(20, abs=0.1)
        receiver.take_back(bad)


@virtual
async def test_letting_go_does_not_wait_for_a_back_off() -> None:
    async def answer(_: Message) -> None:
        raise Retry(after=600)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: recorder.seen)
        receiver = driver.receiver("t", "g")
        before = asyncio.get_running_loop().time()
        await receiver.subscription.inbox.let_go(bad)
        assert asyncio.get_running_loop().time() == before
        receiver.take_back(bad)
        await asyncio.sleep(1000)
    assert recorder.values == [b"1"]
    assert not driver.breaches


@virtual
async def test_letting_go_does_not_wait_for_a_failure_meanwhile() -> None:
    async def answer(_: Message) -> None:
        await asyncio.sleep(5)
        raise Retry(after=600)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, drain_timeout=100),
    ):
        await until(lambda: recorder.seen)
        receiver = driver.receiver("t", "g")
        before = asyncio.get_running_loop().time()
        await receiver.subscription.inbox.let_go(bad)
        assert asyncio.get_running_loop().time() - before == pytest.approx(5, abs=0.1)
        receiver.take_back(bad)
        await asyncio.sleep(1000)
    assert recorder.values == [b"1"]


@virtual
async def test_letting_go_waits_for_a_dead_letter_on_its_way() -> None:
    async def answer(_: Message) -> None:
        raise Reject("bad")

    driver = StubDriver()
    driver.put(message("1", "k"))
    confirm = driver.hold("send")
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=answer):
        await until(lambda: driver.attempted)
        receiver = driver.receiver("t", "g")
        letting_go = asyncio.ensure_future(receiver.subscription.inbox.let_go(bad))
        await asyncio.sleep(3)
        assert not letting_go.done()
        confirm.set()
        await letting_go
        assert [m.value for m in driver.acknowledged] == [b"1"]
        receiver.take_back(bad)


@virtual
async def test_the_rest_goes_on_while_a_part_is_let_go() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(5))
    driver.put(message("1", "k"), message("a", "a"), message("b", "b"), message("c", "c"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, concurrency=2):
        await until(lambda: recorder.running == 2)
        await driver.receiver("t", "g").subscription.inbox.let_go(bad)
        driver.receiver("t", "g").take_back(bad)
        await until(lambda: len(driver.acknowledged) == 4)
    assert not driver.breaches


@virtual
async def test_what_a_handler_answers_to_a_forgotten_message_is_not_settled() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(10))
    driver.put(message("1", "k"), message("a", "a"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: recorder.running)
        driver.receiver("t", "g").take_back(bad)
        await until(lambda: [m.value for m in driver.acknowledged] == [b"a"])
    assert driver.breaches == []


@virtual
async def test_a_forgotten_message_that_fails_is_not_tried_again_here() -> None:
    async def answer(message: Message) -> None:
        await asyncio.sleep(5)
        if message.key == b"k":
            raise ValueError("no")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"), message("a", "a"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=3),
    ):
        await until(lambda: recorder.running)
        driver.receiver("t", "g").take_back(bad)
        await asyncio.sleep(100)
    assert recorder.values == [b"1", b"a"]
    assert driver.breaches == []


@virtual
async def test_a_forgotten_message_that_fails_for_good_is_no_dead_letter_of_ours() -> None:
    async def answer(_: Message) -> None:
        await asyncio.sleep(5)
        raise Reject("bad")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: recorder.running)
        driver.receiver("t", "g").take_back(bad)
        await asyncio.sleep(100)
    assert driver.topics["t-dlq"] == []
    assert driver.breaches == []


@virtual
async def test_a_batch_that_gathers_drops_what_was_let_go() -> None:
    driver, batches = StubDriver(), []

    async def handle(messages: list[Message]) -> None:
        batches.append([m.value for m in messages])

    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=Batch(size=10, wait=30)),
    ):
        driver.put(message("1", "k"), message("a", "a"))
        await asyncio.sleep(1)
        await driver.receiver("t", "g").subscription.inbox.let_go(bad)
        driver.receiver("t", "g").take_back(bad)
        await until(lambda: batches)
        await asyncio.sleep(100)
    assert batches == [[b"a"]]
    assert driver.breaches == []


@virtual
async def test_a_part_that_comes_back_is_not_handled_beside_what_is_still_running() -> None:
    for mode in ("in_place", "delayed"):

        async def answer(message: Message) -> None:
            if message.value == b"1" and message.attempt == 1:
                raise ValueError("later")
            await asyncio.sleep(20)

        driver, recorder = StubDriver(BARE), Recorder(answer)
        driver.put(message("1", "k"), message("2", "k"))
        async with (
            broker_of(driver) as broker,
            broker.consumer(
                "t",
                group="g",
                handler=recorder,
                concurrency=4,
                retry=RetryPolicy(first=0.9, jitter=0.0, mode=mode),
            ),
        ):
            await until(lambda recorder=recorder: recorder.running)  # type: ignore[misc]
            receiver = driver.receiver("t", "g")
            entries = list(receiver.out.values())
            receiver.take_back(bad)
            driver.groups["t", "g"].give(entries)
            await asyncio.sleep(100)
        assert recorder.overlaps == [], mode


@virtual
async def test_forgetting_makes_room() -> None:
    driver, recorder = StubDriver(), Recorder(lambda m: asyncio.sleep(1000 if m.key == b"k" else 0))
    driver.put(*(message(str(n), "k") for n in range(4)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, max_in_flight=4, concurrency=2, drain_timeout=0),
    ):
        await until(lambda: recorder.running)
        driver.put(message("a", "a"))
        await turns()
        driver.receiver("t", "g").take_back(bad)
        await until(lambda: driver.acknowledged, within=5)


@virtual
async def test_letting_go_of_nothing_is_fine() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        subscription = driver.receiver("t", "g").subscription
        await subscription.inbox.let_go(bad)
        subscription.inbox.forget(bad)
    await subscription.inbox.let_go(bad)
    subscription.inbox.forget(bad)
