"""What a broker and its consumers say of themselves, when they are well and when they are not."""

import asyncio
from datetime import UTC, datetime

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import ClosedError, Message, Retry, UnsupportedError
from things_kit.engine.driver import Capabilities, ConnectionLost
from things_kit.testing.stub import StubDriver, broker_of


def message(value: str, key: str | None = None, topic: str = "t") -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value)


@virtual
async def test_a_broker_is_not_well_before_it_is_open_and_after_it_is_closed() -> None:
    broker = broker_of(StubDriver())
    assert (await broker.health()).reason == "stub://stub is not open"
    async with broker:
        assert (await broker.health()).ok
    assert (await broker.health()).reason == "stub://stub is not open"


@virtual
async def test_a_broker_that_is_away_says_why() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        driver.fail("ping", ConnectionLost("no route"), UnsupportedError("never"))
        assert (await broker.health()).reason == "stub://stub: no route"
        assert (await broker.health()).reason == "stub://stub: never"
        assert (await broker.health()).ok


@virtual
async def test_a_broker_that_does_not_answer_is_not_well_after_five_seconds() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        driver.hold("ping")
        health = await broker.health()
        assert health.reason == "stub://stub: it did not answer within 5 s"
        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.01)


@virtual
async def test_a_consumer_that_works_is_well_and_says_what_it_holds() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(10))
    async with broker_of(driver) as broker, broker.consumer(["a", "b"], group="g", handler=recorder):
        (idle,) = (await broker.health()).consumers
        assert (idle.topics, idle.group, idle.running, idle.in_flight) == (("a", "b"), "g", True, 0)
        assert (idle.last_settled, idle.oldest_in_flight, idle.reason) == (None, None, None)
        driver.put(message("1", topic="a"))
        await asyncio.sleep(1)
        driver.put(message("2", topic="b"))
        await asyncio.sleep(4)
        (busy,) = (await broker.health()).consumers
        assert busy.in_flight == 2
        assert busy.oldest_in_flight == pytest.approx(5, abs=0.1)
        await until(lambda: len(driver.acknowledged) == 2)
        (done,) = (await broker.health()).consumers
        assert done.last_settled is not None
        assert abs((done.last_settled - datetime.now(UTC)).total_seconds()) < 10


@virtual
async def test_a_consumer_that_gets_nothing_done_is_stuck_and_well_again_afterwards() -> None:
    driver, go_on = StubDriver(), asyncio.Event()

    async def handle(_: Message) -> None:
        await go_on.wait()

    driver.put(message("1"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle):
        await asyncio.sleep(290)
        assert (await broker.health()).ok
        await asyncio.sleep(20)
        health = await broker.health()
        assert not health.ok
        assert health.reason == "t as g: it is stuck: no message was finished for 310 s"
        go_on.set()
        await until(lambda: driver.acknowledged)
        assert (await broker.health()).ok


@virtual
async def test_a_consumer_that_gets_others_done_is_not_stuck() -> None:
    driver = StubDriver()
    recorder = Recorder(lambda m: asyncio.sleep(2000 if m.value == b"long" else 1))
    driver.put(message("long"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2, drain_timeout=0),
    ):
        for n in range(20):
            await asyncio.sleep(50)
            driver.put(message(str(n)))
        assert (await broker.health()).ok


@virtual
async def test_a_long_back_off_is_not_stuck() -> None:
    async def handle(_: Message) -> None:
        raise Retry(after=3600)

    driver = StubDriver()
    driver.put(message("1", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle):
        await asyncio.sleep(1000)
        assert (await broker.health()).ok


@virtual
async def test_a_consumer_whose_broker_is_away_says_so() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        driver.fail("subscribe", *[ConnectionLost("no route")] * 5)
        driver.cut()
        await asyncio.sleep(0.5)
        assert (await broker.health()).reason == "t as g: the broker is away: no route"
        await asyncio.sleep(60)
        assert (await broker.health()).ok


@virtual
async def test_a_consumer_says_what_its_driver_says_of_it_until_it_subscribes_anew() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=Recorder()):
        receiver = driver.receiver("t", "g")
        receiver.subscription.inbox.ailing("it has no partition")
        assert (await broker.health()).reason == "t as g: it has no partition"
        receiver.subscription.inbox.ailing(None)
        assert (await broker.health()).ok
        receiver.subscription.inbox.ailing("it has no partition")
        driver.cut()
        await asyncio.sleep(60)
        assert (await broker.health()).ok


@virtual
async def test_a_handler_that_does_not_end_with_its_timeout_hangs() -> None:
    go_on = asyncio.Event()

    async def handle(_: Message) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    driver = StubDriver()
    driver.put(message("1"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, timeout=10):
        await asyncio.sleep(15)
        assert (await broker.health()).ok
        await asyncio.sleep(10)
        reason = (await broker.health()).reason
        assert reason == "t as g: 1 of 1 workers hang in a handler that overran its timeout"
        go_on.set()
        await until(lambda: driver.acknowledged)
        assert (await broker.health()).ok


@virtual
async def test_a_broker_knows_of_a_consumer_that_broke_until_it_is_stopped() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        await consumer.start()
        driver.fail("fetch", RuntimeError("a fault"))
        driver.put(message("1"))
        with pytest.raises(RuntimeError):
            await consumer.wait()
        await asyncio.sleep(10)
        assert (await broker.health()).reason == "t as g: it broke: a fault"
        await consumer.stop()
        assert (await broker.health()).ok


@virtual
async def test_health_can_be_asked_while_a_consumer_starts() -> None:
    driver = StubDriver()
    go_on = driver.hold("declare")
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        starting = asyncio.create_task(consumer.start())
        await asyncio.sleep(1)
        health = await broker.health()
        assert [c.group for c in health.consumers] == ["g"]
        go_on.set()
        await starting


@virtual
async def test_a_stopped_consumer_is_no_longer_of_the_brokers_concern() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        async with broker.consumer("t", group="g", handler=Recorder()) as consumer:
            pass
        assert (await broker.health()).consumers == ()
        assert not consumer.health().running
        assert consumer.health().reason is None


@virtual
async def test_a_closed_broker_gives_nothing() -> None:
    broker = broker_of(StubDriver())
    async with broker:
        pass
    with pytest.raises(ClosedError):
        broker.producer()
    with pytest.raises(ClosedError):
        broker.consumer("t", group="g", handler=Recorder())
    with pytest.raises(ClosedError):
        await broker.open()
    with pytest.raises(ClosedError):
        await broker.lag("t", "g")


@virtual
@pytest.mark.parametrize("part", ["pump", "settle", "leases", "watch", "run"])
async def test_a_consumer_of_which_a_part_was_cancelled_breaks_instead_of_waiting_for_ever(part: str) -> None:
    async with broker_of(StubDriver(Capabilities(lease=5.0))) as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        await consumer.start()
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == f"t as g {part}"]
        task.cancel()
        with pytest.raises(RuntimeError, match=f"t as g {part} was cancelled from outside"):
            await consumer.wait()
        health = await broker.health()
        assert health.reason == f"t as g: it broke: t as g {part} was cancelled from outside"
