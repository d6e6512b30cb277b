"""Lost connections: lines 10, 11, 13, 40 and 42 as the engine sees them, on every broker.

Between the engine and the driver under test stands one that loses connections when it is told to, so these promises
are tested also where there is no server to kill.
"""

import asyncio
import random
import time
from uuid import uuid4

import pytest

from things_kit import Broker, BrokerUnavailable, Message, RetryPolicy, connect
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.faults import FaultyDriver
from things_kit.testing.conformance.history import assert_lanes
from things_kit.testing.conformance.recorder import Gate, Recorder, failing
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually, throughout


async def faulty(stage: Stage, **options: object) -> tuple[Broker, FaultyDriver]:
    """A broker of the target whose driver loses its connections, or its hearing, when it is told to."""
    url = stage.target.at(**options)
    driver = FaultyDriver(connect(url)._driver)  # noqa: SLF001 - there is no public way to one, nor need there be
    broker = Broker(driver, BrokerURL.parse(url))
    await broker.open()
    stage.closing(broker)
    return broker, driver


def _load(topic: str, count: int, keys: int = 7) -> tuple[list[Message], dict[object, list[str]]]:
    messages = [Message(topic, b"x", key=b"%d" % (n % keys), id=f"{n}-{uuid4().hex}") for n in range(count)]
    lanes: dict[object, list[str]] = {}
    for message in messages:
        lanes.setdefault(message.key, []).append(message.id or "")
    return messages, lanes


class ConnectionSuite(Suite):
    """A connection may go at any moment: nothing is lost, nobody is doubled, and all ends in time."""

    async def test_connections_lost_under_load_lose_no_message_and_no_order(self, stage: Stage) -> None:
        """Lines 10 and 11: ten cuts while publishing and consuming, with failures in between."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        fail = failing(1)

        async def act(message: Message) -> None:
            await asyncio.sleep(0.001)
            if hash(message.id) % 5 == 0:
                await fail(message)

        recorder = Recorder(act)
        await stage.consume(topic, group, recorder, broker=broker, concurrency=8)
        messages, lanes = _load(topic, 300)
        producer = broker.producer()
        for number in range(10):
            await producer.publish_batch(messages[number * 30 : number * 30 + 30])
            count = len(recorder.done)
            await eventually(lambda: len(recorder.done) > count, stage.patience, "it goes on")  # noqa: B023
            driver.cut()
        await eventually(lambda: len(recorder.ids) == 300, 2 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert_lanes(recorder.history, lanes)

    async def test_a_slow_connection_does_not_disturb_the_order_of_a_key(self, stage: Stage) -> None:
        """Line 27: what is given back is still on its way while more of its key arrives, again and again."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        driver.latency = 0.02
        chance, fail = random.Random(27), failing(2)  # noqa: S311 - a plan, no secret
        messages, lanes = _load(topic, 300, keys=20)
        unlucky = {message.id for message in messages if chance.random() < 0.25}

        async def act(message: Message) -> None:
            await asyncio.sleep(0)
            if message.id in unlucky:
                await fail(message)

        policy = RetryPolicy(attempts=3, first=0.002, limit=0.01, jitter=1.0)
        recorder = await stage.record(topic, group, act, broker=broker, concurrency=16, retry=policy)
        producer = broker.producer()
        for start in range(0, len(messages), 10):  # a trickle, so that the consumer always waits for more
            await producer.publish_batch(messages[start : start + 10])
        await eventually(lambda: len(recorder.ids) == 300, 2 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert_lanes(recorder.history, lanes)

    async def test_an_outage_under_load_loses_no_message(self, stage: Stage) -> None:
        """Line 10: publishing waits, consuming comes back by itself."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        recorder = await stage.record(topic, group, broker=broker, concurrency=4)
        messages, lanes = _load(topic, 200)
        producer = broker.producer()
        await producer.publish_batch(messages[:100])
        await recorder.until_done(1, stage.patience)
        driver.go_away()
        publishing = asyncio.create_task(producer.publish_batch(messages[100:]))
        done, _ = await asyncio.wait({publishing}, timeout=0.2)
        assert not done, "publish ended while the broker was away"
        driver.come_back()
        await asyncio.wait_for(publishing, stage.patience)
        await eventually(lambda: len(recorder.ids) == 200, 2 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert_lanes(recorder.history, lanes)

    async def test_after_cuts_there_is_one_receiver_and_each_message_comes_once(self, stage: Stage) -> None:
        """Line 11: no consumer is left over from before."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        recorder = await stage.record(topic, group, broker=broker, concurrency=4)
        for round_ in range(3):
            driver.cut()
            await stage.publish(topic, b"%d" % round_, broker=broker)
            await recorder.until_done(round_ + 1, stage.patience)
            await stage.until_lag(topic, group, 0)  # what is not acknowledged yet may come twice after a cut
        messages, _ = _load(topic, 50)
        await stage.publish_all(messages, broker)
        await eventually(lambda: len(recorder.ids) == 53, stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert driver.subscribed == 1
        assert recorder.history.duplicates() == {}

    async def test_a_handler_that_outlives_its_connection_is_not_doubled(self, stage: Stage) -> None:
        """Line 11: what comes again over the new connection waits until its first handling has ended."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        gate = Gate(passing=lambda message: message.key != b"k")
        recorder = await stage.record(topic, group, gate, broker=broker, concurrency=4)
        await stage.publish(topic, b"1", b"2", key=b"k", broker=broker)
        await recorder.until_began(1, stage.patience)
        driver.cut()
        await stage.publish(topic, b"other", key=b"o", broker=broker)
        await recorder.until_done(1, stage.patience)
        await throughout(lambda: recorder.running == 1, 0.3, "one handler of the key at a time")
        gate.open()
        await eventually(lambda: {b"1", b"2", b"other"} <= set(recorder.values), stage.patience)
        await stage.until_lag(topic, group, 0)
        keyed = [message.value for message in recorder.began if message.key == b"k"]
        assert keyed in ([b"1", b"2"], [b"1", b"1", b"2"])

    async def test_a_lost_answer_to_a_publish_is_no_lost_message(self, stage: Stage) -> None:
        """Line 10: it is sent again, under the same id."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        recorder = await stage.record(topic, group, broker=broker)
        driver.lost_answers = 2
        [sent] = await stage.publish(topic, b"x", broker=broker)
        assert driver.lost_answers == 0
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)
        assert recorder.ids == {sent.id}

    async def test_a_lost_answer_to_an_acknowledgement_changes_nothing(self, stage: Stage) -> None:
        """Line 11: what the broker had taken stays taken, and the consumer goes on."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        recorder = await stage.record(topic, group, broker=broker)
        for round_ in range(3):
            driver.lost_settlements = 1
            await stage.publish(topic, b"%d" % round_, key=b"k", broker=broker)
            await recorder.until_done(round_ + 1, stage.patience)
            await eventually(lambda: driver.lost_settlements == 0, stage.patience, "its answer is lost")
            await stage.until_lag(topic, group, 0)
        assert recorder.values == [b"0", b"1", b"2"]

    async def test_a_consumer_stops_and_a_broker_closes_while_the_connection_is_lost(
        self, stage: Stage
    ) -> None:
        """Line 13: neither waits for the broker to return, and what was in hand comes again."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        hanging = Recorder(Gate())
        consumer = await stage.consume(topic, group, hanging, broker=broker, drain_timeout=0.2)
        await stage.publish(topic, b"x", broker=broker)
        await hanging.until_began(1, stage.patience)
        driver.go_away()
        await asyncio.wait_for(consumer.stop(), stage.patience)
        await asyncio.wait_for(broker.close(), stage.patience)
        recorder = await stage.record(topic, group)
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)

    async def test_publish_fails_in_time_while_the_connection_is_lost(self, stage: Stage) -> None:
        """Line 40: each call after publish_timeout, with BrokerUnavailable, and works again afterwards."""
        topic = stage.topic()
        await stage.keep(topic)
        broker, driver = await faulty(stage, publish_timeout=1.0)
        producer = broker.producer()
        await stage.until_published(producer, Message(topic, b"before"))
        driver.go_away()
        began = time.monotonic()
        calls = [producer.publish(Message(topic, b"x")) for _ in range(5)]
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), stage.patience)
        assert [type(result) for result in results] == [BrokerUnavailable] * 5
        assert 0.95 <= time.monotonic() - began <= 3.0
        with pytest.raises(BrokerUnavailable):
            await broker.lag(topic, group=stage.group())
        driver.come_back()
        await stage.until_published(producer, Message(topic, b"after"))

    async def test_health_follows_the_connection(self, stage: Stage) -> None:
        """Line 42: bad with a reason while it is lost, good again by itself."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        await stage.record(topic, group, broker=broker)

        async def ok() -> bool:
            return (await broker.health()).ok

        assert await ok()
        driver.go_away()
        health = await broker.health()
        assert not health.ok
        assert health.reason
        driver.come_back()
        await eventually(ok, stage.patience, "health is good again")

    async def test_health_stays_bad_when_the_pump_died(self, stage: Stage) -> None:
        """Line 42: a fault of the driver ends the consumer; `wait` raises it, and health does not forget it."""
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        recorder = Recorder()
        consumer = await stage.consume(topic, group, recorder, broker=broker)
        driver.broken = RuntimeError("a fault of the driver")
        await stage.publish(topic, b"x")  # wakes whoever waits in a call from before
        with pytest.raises(RuntimeError, match="a fault of the driver"):
            await asyncio.wait_for(consumer.wait(), stage.patience)
        driver.broken = None

        async def ill() -> bool:
            health = await broker.health()
            return not health.ok and "fault of the driver" in (health.reason or "")

        await throughout(ill, 0.2, "health says that the consumer broke")

    async def test_a_fault_of_the_driver_fails_a_publish_instead_of_hanging_it(self, stage: Stage) -> None:
        """Line 40: whatever a driver raises, nobody waits for ever, and the next publish works."""
        topic = stage.topic()
        await stage.keep(topic)
        broker, driver = await faulty(stage)
        producer = broker.producer()
        await producer.publish(Message(topic, b"before"))
        driver.broken = RuntimeError("a fault of the driver")
        with pytest.raises(Exception, match=r"a fault of the driver|not known"):
            await asyncio.wait_for(producer.publish(Message(topic, b"x")), stage.patience)
        driver.broken = None
        await asyncio.wait_for(producer.publish(Message(topic, b"after")), stage.patience)
