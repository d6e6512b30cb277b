"""Publishing for later on a broker that keeps nothing until then: topics of waits, and who carries on from them."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.engine.pushed import PushingDriver
from tests.engine.scenario import BEGAN, Recorder, VirtualWorld, turns, until, virtual
from things_kit import Broker, Message, UnsupportedError
from things_kit.engine.driver import Capabilities, Delivery
from things_kit.engine.surroundings import surroundings
from things_kit.engine.wait_topics import (
    CARRIER,
    DEAD_LETTER,
    LEASE,
    TOPIC,
    WAITS,
    is_wait_topic,
    put_off,
    wait_topics,
    waiting,
)
from things_kit.testing.stub import StubDriver, StubReceiver, broker_of

DAY = 86_400.0
LOG = Capabilities(retained=True, carried=30 * DAY)
TOPICS = wait_topics(partitions=False)


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    token = surroundings.set(VirtualWorld())
    yield
    surroundings.reset(token)


async def consumer(broker: Broker, handler: Any, **options: Any) -> Any:
    consumer = broker.consumer("orders", group="billing", handler=handler, **options)
    await consumer.start()
    return consumer


def carrying(driver: StubDriver) -> list[StubReceiver]:
    """The receivers of who carries on."""
    groups = [driver.groups[topic, CARRIER] for topic in TOPICS if (topic, CARRIER) in driver.groups]
    return [receiver for group in groups for receiver in group.receivers]


def test_wait_topics_are_known_by_their_names() -> None:
    assert all(map(is_wait_topic, [*TOPICS, *wait_topics(partitions=True), f"test-{TOPIC}-1s"]))
    assert not any(map(is_wait_topic, ["orders", DEAD_LETTER, f"{TOPIC}-3s", f"{TOPIC}er"]))


@virtual
async def test_a_message_waits_whole() -> None:
    message = Message("orders", b"\xff", b"k", {"a": "ü"}, 2, 7, datetime(2020, 1, 1, tzinfo=UTC), "i", 3)
    carrier = put_off(message, BEGAN + 100.0, partitions=False)
    found = waiting(carrier.value)
    assert carrier.key == b"k", "a broker that keeps the order of keys keeps it while they wait"
    assert (found.due, found.message) == (BEGAN + 100.0, message)


@virtual
async def test_each_time_that_it_is_put_off_it_has_another_id() -> None:
    """A broker that drops what it has seen would lose it: four times in a row it may wait for a second."""
    message = Message("orders", b"v", id="i")
    first = put_off(message, BEGAN + 4.0, partitions=False)
    await asyncio.sleep(1.0)
    second = put_off(message, BEGAN + 4.0, partitions=False)
    assert first.topic == second.topic
    assert len({"i", first.id, second.id}) == 3


@pytest.mark.parametrize(
    ("after", "topic", "wait"),
    [
        (0.3, "1s", 0.3),
        (1.9, "1s", 1.9),
        (2.5, "1s", 1.0),
        (4.9, "5s", 4.9),
        (60, "25s", 25.0),
        (400 * DAY, "1d", DAY),
    ],
)
def test_it_waits_in_the_topic_of_the_longest_wait_that_fits(after: float, topic: str, wait: float) -> None:
    @virtual
    async def scenario() -> None:
        carrier = put_off(Message("orders", b"v"), BEGAN + after, partitions=False)
        assert carrier.topic == f"{TOPIC}-{topic}"
        assert waiting(carrier.value).until == BEGAN + wait
        one = put_off(Message("orders", b"v"), BEGAN + after, partitions=True)
        assert one.topic == TOPIC
        assert one.partition is not None
        assert WAITS[one.partition][1] == topic

    scenario()


@virtual
async def test_it_arrives_when_it_is_due_as_it_was_published() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        message = Message(
            "orders", b"\xff", b"k", {"a": "ü"}, None, None, datetime(2020, 1, 1, tzinfo=UTC), "i"
        )
        afters = [0.0, 0.3, 1.0, 4.99, 5.01, 61.5, 3 * 3600.0 + 12.3]
        for after in afters:
            await broker.producer().publish(message, after=after)
        await until(lambda: len(recorder.seen) == len(afters), within=DAY)
        for (time, seen), after in zip(recorder.seen, afters, strict=True):
            assert after <= time < after + 0.2
            assert seen.replace(offset=None) == message
        assert all(driver.groups[topic, CARRIER].pending == [] for topic in TOPICS)
    assert not driver.breaches


@virtual
async def test_what_has_one_time_comes_in_its_order_and_a_key_goes_by_the_time() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        producer = broker.producer()
        await producer.publish(Message("orders", b"late", b"k"), after=90)
        batch = [Message("orders", b"%d" % number, b"k") for number in range(700)]
        await producer.publish_batch(batch, after=40.0)
        await producer.publish(Message("orders", b"now", b"k"))
        await until(lambda: len(recorder.seen) == 702)
        assert recorder.values == [b"now", *(message.value for message in batch), b"late"]


@virtual
async def test_what_arrives_late_comes_behind_what_waits_for_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a batch that is read in two parts, when the time comes between them and the timer has not rung yet."""
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        await broker.declare("orders", ["billing"])
        await broker.producer().publish(Message("orders", b"other"), after=5.0)
        recorder = Recorder()
        await consumer(broker, recorder)
        await until(lambda: (TOPICS[0], CARRIER) in driver.groups)
        await turns(100)
        due = VirtualWorld().now() + 0.5
        first, second = (
            put_off(Message("orders", value, id="i"), due, partitions=False) for value in (b"1", b"2")
        )
        carrier = broker._carrying._carrier
        assert carrier is not None
        inbox = carrier._pumps[0].inbox
        assert inbox is not None
        inbox.put([Delivery(first)])
        monkeypatch.setattr(VirtualWorld, "ahead", 1.0)
        inbox.put([Delivery(second)])
        await until(lambda: len(recorder.seen) == 2)
        assert recorder.values == [b"1", b"2"]


@virtual
async def test_one_target_that_hangs_holds_up_no_other() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        await broker.declare("refunds", ["billing"])
        send, hang = driver.send, asyncio.Event()

        async def hanging(messages: Sequence[Message]) -> Sequence[Exception | None]:
            if messages[0].topic == "refunds":
                await hang.wait()
            return await send(messages)

        driver.send = hanging  # type: ignore[method-assign]
        batch = [Message(topic, b"%d" % n) for n in range(300) for topic in ("refunds", "orders")]
        await broker.producer().publish_batch(batch, after=2.0)
        await until(lambda: len(recorder.seen) == 300, within=3.0)
        assert driver.topics["refunds"] == []
        hang.set()
        await until(lambda: len(driver.topics["refunds"]) == 300, within=3.0)


@virtual
async def test_lag_counts_it_when_it_is_due_and_nobody_sees_where_it_waits() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        await broker.declare("orders", ["billing"])
        await broker.producer().publish(Message("orders", b"v"), after=60)
        await consumer(broker, Recorder(), start="latest")
        assert await broker.lag("orders", "billing") == 0
        assert len(broker.consumers) == 1
        health = await broker.health()
        assert len(health.consumers) == 1


@virtual
async def test_what_waits_is_leased_for_ten_seconds_whatever_the_lease_of_the_url() -> None:
    """Else what everybody has scheduled waits for an hour when a process dies whose own messages are leased for so long."""
    driver = StubDriver(Capabilities(retained=True, carried=30 * DAY, lease=3600.0))
    async with broker_of(driver) as broker:
        await consumer(broker, Recorder())
        await broker.producer().publish(Message("orders", b"v"), after=300)
        await until(lambda: any(receiver.out for receiver in carrying(driver)), within=60.0)
        for _ in range(3):
            before = driver.calls.count("extend")
            await asyncio.sleep(LEASE)
            assert driver.calls.count("extend") > before


@virtual
async def test_a_broker_on_which_nothing_was_scheduled_has_no_such_topics() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        await consumer(broker, Recorder())
        before = driver.calls.count("subscribe")
        await asyncio.sleep(100.0)
        assert not any(map(is_wait_topic, driver.topics))
        assert DEAD_LETTER not in driver.topics
        assert driver.calls.count("subscribe") - before <= 10


@virtual
async def test_another_process_carries_on_what_was_scheduled_later_than_it_began() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as worker, broker_of(driver) as publisher:
        recorder = Recorder()
        await consumer(worker, recorder)
        await asyncio.sleep(100.0)
        await publisher.producer().publish(Message("orders", b"v"), after=60)
        await publisher.close()
        await until(lambda: recorder.values == [b"v"])
        assert recorder.times == [pytest.approx(160.0, abs=0.2)]


@virtual
async def test_who_comes_after_the_time_gets_it_at_once() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as publisher:
        await publisher.producer().publish(Message("orders", b"v"), after=60)
    await asyncio.sleep(DAY)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        await until(lambda: recorder.values == [b"v"], within=2.0)


@virtual
async def test_what_a_target_does_not_take_is_a_dead_letter_and_holds_back_nobody() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        driver.refuse_topic = lambda topic: ValueError("no such name") if topic == "gone" else None
        producer = broker.producer()
        await broker.declare("refunds")
        await producer.publish(Message("refunds", b"lost"), after=2.0)
        await producer.publish(Message("orders", b"v"), after=2.0)
        driver.refuse = lambda message: UnsupportedError("no") if message.topic == "refunds" else None
        await until(lambda: recorder.values == [b"v"], within=3.0)
        await until(lambda: driver.topics[DEAD_LETTER] != [])
        [dead] = driver.topics[DEAD_LETTER]
        assert dead.headers["error"] == "no"
        driver.refuse = lambda _: None
        assert await broker.replay(DEAD_LETTER) == 1
        await until(lambda: [message.value for message in driver.topics["refunds"]] == [b"lost"])


@virtual
async def test_while_the_broker_is_away_it_waits_on() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver, "?publish_timeout=5") as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        await broker.producer().publish(Message("orders", b"v"), after=2.0)
        back = driver.hold("send")
        await asyncio.sleep(3600.0)
        back.set()
        await until(lambda: recorder.values == [b"v"], within=10.0)
        assert driver.topics[DEAD_LETTER] == []


@virtual
async def test_what_is_not_ours_in_a_wait_topic_is_a_dead_letter() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        await consumer(broker, Recorder())
        await broker.producer().publish(Message("orders", b"v"), after=1.0)
        driver.put(Message(TOPICS[0], b"what?"))
        await until(lambda: [message.value for message in driver.topics[DEAD_LETTER]] == [b"what?"])


@virtual
async def test_a_carrier_that_breaks_begins_anew_and_the_consumers_go_on() -> None:
    driver = StubDriver(LOG)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        mine = await consumer(broker, recorder)
        await broker.producer().publish(Message("orders", b"v"), after=30)
        await until(lambda: driver.groups[TOPICS[-1], CARRIER].receivers)
        receiver = driver.receiver(TOPICS[0], CARRIER)
        receiver.lost = RuntimeError("a fault")
        receiver.woken.set()
        await until(lambda: recorder.values == [b"v"], within=60.0)
        assert mine.health().reason is None


@virtual
async def test_a_time_too_far_ahead_is_refused_at_the_call() -> None:
    async with broker_of(StubDriver(LOG)) as broker:
        with pytest.raises(UnsupportedError, match="keeps a message for 30 days at most"):
            await broker.producer().publish(Message("orders", b"v"), after=31 * DAY)
        with pytest.raises(UnsupportedError, match="schedule_id"):
            await broker.producer().publish(Message("orders", b"v"), after=1, schedule_id="a")
        with pytest.raises(UnsupportedError, match="cannot say what is scheduled"):
            await broker.schedules("orders")


@virtual
async def test_more_than_is_first_asked_for_may_wait_at_once_and_what_is_due_soon_comes_in_time() -> None:
    driver = PushingDriver()
    driver.capabilities = Capabilities(retained=True, partitions=True, carried=30 * DAY)
    async with broker_of(driver) as broker:
        recorder = Recorder()
        await consumer(broker, recorder)
        producer = broker.producer()
        await producer.publish_batch([Message("orders", b"later") for _ in range(1100)], after=25 * DAY)
        began = asyncio.get_running_loop().time()
        await producer.publish_batch([Message("orders", b"soon") for _ in range(300)], after=0.5)
        await until(lambda: len(recorder.seen) == 300)
        assert max(recorder.times) < began + 1.0
