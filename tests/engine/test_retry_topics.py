"""Delayed retries on a broker that keeps a log and has no delays: what waits has topics of its own."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import DecodeError, Message, PublishError, RetryPolicy
from things_kit.engine.clock import steady
from things_kit.engine.driver import Capabilities, Delivery, Later
from things_kit.engine.retry_topics import is_retry_topic, postpone, remaining, restore, retry_topics
from things_kit.testing.conformance.clocks import clock_set_back
from things_kit.testing.stub import StubDriver, broker_of

LOG = Capabilities(retained=True, partitions=True)
LATER = RetryPolicy(mode="delayed", first=60.0, limit=60.0, jitter=0.0)
WHOLE = Message(
    "t",
    b"\xff",
    b"k",
    {"a": "ü"},
    partition=1,
    offset=2,
    timestamp=datetime(2020, 1, 1, tzinfo=UTC),
    id="i",
    attempt=3,
)


def later(wait: float) -> Later:
    return Later(WHOLE, "g", datetime.now(UTC) + timedelta(seconds=wait), WHOLE.attempt)


def message(value: str, key: str | None = None) -> Message:
    return Message("t", value.encode(), None if key is None else key.encode(), id=value)


async def fail_once(message: Message) -> None:
    if message.attempt == 1:
        raise ValueError("later")


def test_a_retry_topic_is_known_by_its_name() -> None:
    assert all(map(is_retry_topic, retry_topics("orders", "billing")))
    assert not is_retry_topic("orders")
    assert not is_retry_topic("orders-retry")


def test_a_message_comes_out_of_a_retry_topic_as_it_went_in() -> None:
    carrier = postpone(later(60.0))
    assert restore(carrier) == WHOLE
    assert 59 < remaining(carrier) <= 60


def test_who_waits_waits_no_longer_when_the_clock_is_set_back() -> None:
    carrier = postpone(later(60.0))
    with clock_set_back():
        assert 50 < remaining(carrier) <= 60
        moment = datetime.fromtimestamp(steady() + 60.0, UTC)
        assert postpone(Later(WHOLE, "g", moment, WHOLE.attempt)).topic == "t-g-retry-2m"


@pytest.mark.parametrize(
    ("wait", "tier"), [(1.5, "10s"), (10, "10s"), (11, "2m"), (121, "30m"), (10**8, "1d")]
)
def test_each_length_of_wait_has_its_topic(wait: float, tier: str) -> None:
    carrier = postpone(later(wait - 0.1))
    assert carrier.topic == f"t-g-retry-{tier}"
    assert carrier.topic in retry_topics("t", "g")
    assert carrier.key == b"k"


@pytest.mark.parametrize("value", [b"", b"{}", b"\x81", b"\x93\x01\x02\x03"])
def test_what_a_stranger_put_there_is_a_decode_error(value: bytes) -> None:
    with pytest.raises(DecodeError, match="was not put there by a consumer"):
        restore(Message("t-g-retry-2m", value))


@virtual
async def test_a_message_waits_in_its_topic_and_is_acknowledged_where_it_was() -> None:
    driver, recorder = StubDriver(LOG), Recorder(fail_once)
    driver.put(message("1", "k"), message("2", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=LATER):
        await until(lambda: len(driver.topics["t-g-retry-2m"]) == 2, within=5)
        await until(lambda: len(driver.acknowledged) == 2, within=5)
        await until(lambda: len(driver.acknowledged) == 4)
    assert sorted((m.value, m.topic, m.attempt, m.id) for _, m in recorder.seen[2:]) == [
        (b"1", "t", 2, "1"),
        (b"2", "t", 2, "2"),
    ]
    # When it is due is said in the time of the wall, which runs on beside the virtual one
    assert recorder.times[2] - recorder.times[0] == pytest.approx(60, abs=20)
    assert not driver.breaches


@virtual
async def test_a_message_that_cannot_be_put_there_waits_in_memory() -> None:
    driver, recorder = StubDriver(LOG), Recorder(fail_once)
    driver.refuse = lambda m: PublishError("full") if "retry" in m.topic else None
    driver.put(message("1", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=LATER):
        await until(lambda: driver.acknowledged)
    assert recorder.attempts == [1, 2]
    assert recorder.times[1] == pytest.approx(60, abs=1)


@virtual
async def test_a_message_from_a_retry_topic_is_never_handled_beside_another_of_its_key() -> None:
    async def answer(message: Message) -> None:
        await fail_once(message) if message.value == b"1" else None
        await asyncio.sleep(100)

    driver, recorder = StubDriver(LOG), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=LATER, concurrency=4),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert recorder.overlaps == []


@virtual
async def test_a_driver_finds_in_a_delivery_the_place_that_it_has_there() -> None:
    """It may settle, and take back, by topic, partition and offset: see `Delivery`."""
    driver, places = StubDriver(LOG), []

    def which(delivery: Delivery) -> bool:
        places.append((delivery.message.topic, delivery.message.offset))
        return False

    driver.put(message("0"), message("1", "k"))

    async def handle(message: Message) -> None:
        if message.value == b"1":
            raise ValueError("later")

    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, retry=LATER):
        await until(lambda: driver.topics["t-g-retry-2m"])
        await asyncio.sleep(1)
        driver.receiver("t-g-retry-2m", "g").subscription.inbox.forget(which)
    assert set(places) == {("t-g-retry-2m", 0)}


@virtual
async def test_what_a_stranger_put_there_is_not_lost_unasked() -> None:
    driver, recorder = StubDriver(LOG), Recorder()
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=LATER, dead_letter=None) as consumer,
    ):
        driver.put(Message("t-g-retry-2m", b"?", b"k"))
        await asyncio.sleep(30)
        assert consumer.discarded == 0
        assert not driver.acknowledged


@virtual
async def test_lag_counts_what_waits_for_its_retry() -> None:
    driver, recorder = StubDriver(LOG), Recorder(fail_once)
    driver.put(message("1", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=LATER):
        await until(lambda: driver.acknowledged)
        assert await broker.lag("t", group="g") == 1
