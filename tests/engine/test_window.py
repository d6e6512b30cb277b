"""How much a consumer asks for."""

import asyncio

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Batch, Message
from things_kit.engine.window import Window
from things_kit.testing.stub import NATIVE_DELAY, StubDriver, broker_of


def many(count: int, key: bytes | None = None) -> list[Message]:
    return [Message("t", b"%d" % n, key, id=str(n)) for n in range(count)]


@virtual
async def test_it_begins_with_what_can_run_at_once() -> None:
    assert Window(3, lambda: 0).room == 3
    assert Window(3, lambda: 2).room == 1


@virtual
async def test_it_is_wider_by_what_was_finished_in_the_last_half_second() -> None:
    window = Window(1, lambda: 0)
    assert window.size == 1
    window.finished = 100
    assert window.size == 101
    await asyncio.sleep(0.4)
    assert window.size == 101
    await asyncio.sleep(0.7)
    assert window.size == 1


@virtual
async def test_after_a_long_while_without_a_look_it_is_the_pace_that_counts() -> None:
    window = Window(1, lambda: 0)
    assert window.size == 1
    await asyncio.sleep(10)
    window.finished = 1000  # in ten seconds
    assert window.size == 51


@virtual
async def test_a_slow_handler_leaves_to_others_what_it_cannot_begin() -> None:
    driver, slow, other = StubDriver(NATIVE_DELAY), Recorder(lambda _: asyncio.sleep(10)), Recorder()
    driver.put(*many(600))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=slow, concurrency=2) as consumer,
    ):
        await until(lambda: slow.running == 2)
        assert consumer.health().in_flight == 2
        async with broker.consumer("t", group="g", handler=other):
            await until(lambda: len(other.seen) == 598, within=10)


@virtual
async def test_two_slow_consumers_share_a_backlog() -> None:
    driver = StubDriver(NATIVE_DELAY)
    first, second = Recorder(lambda _: asyncio.sleep(0.02)), Recorder(lambda _: asyncio.sleep(0.02))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=first),
        broker.consumer("t", group="g", handler=second),
    ):
        driver.put(*many(600))
        await until(lambda: len(driver.acknowledged) == 600)
    assert min(len(first.seen), len(second.seen)) >= 240


@virtual
async def test_a_fast_handler_is_asked_for_more_and_more_at_a_time() -> None:
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder()
    driver.put(*many(3000))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(driver.acknowledged) == 3000)
    assert driver.calls.count("fetch") < 30


@virtual
async def test_what_waits_behind_its_key_counts_only_towards_max_in_flight() -> None:
    """Else one key that is slow would keep the workers from all others."""
    driver, recorder = StubDriver(), Recorder(lambda m: asyncio.sleep(100 if m.key == b"k" else 0))
    driver.put(*many(50, b"k"), *(Message("t", b"x%d" % n, b"o%d" % n, id=f"x{n}") for n in range(20)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2, max_in_flight=60, drain_timeout=0),
    ):
        await until(lambda: len(driver.acknowledged) == 20, within=5)
    assert driver.peak <= 60


@virtual
async def test_a_batch_handler_could_begin_a_whole_batch() -> None:
    driver, batches = StubDriver(NATIVE_DELAY), []

    async def handle(messages: list[Message]) -> None:
        batches.append(len(messages))

    driver.put(*many(100))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=Batch(size=100, wait=1)),
    ):
        await until(lambda: batches)
    assert batches == [100]


@virtual
async def test_a_full_consumer_asks_again_when_a_quarter_has_left_and_not_for_each_message() -> None:
    driver, recorder = StubDriver(NATIVE_DELAY), Recorder(lambda _: asyncio.sleep(0.001))
    driver.put(*many(1000))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=1, max_in_flight=40),
    ):
        await until(lambda: len(driver.acknowledged) == 1000)
    assert driver.calls.count("fetch") < 150
