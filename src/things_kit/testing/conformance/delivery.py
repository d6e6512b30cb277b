"""Delivery: lines 1 to 8 of the list, everything that needs neither crashes nor outages."""

import asyncio
from uuid import uuid4

import pytest

from things_kit import Broker, ConfigError, Message
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.history import History
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually, throughout


class DeliverySuite(Suite):
    """Messages arrive: all of them, at everybody who is to have them, and are kept until they are handled."""

    async def test_what_is_published_is_handled(self, stage: Stage) -> None:
        """Line 1: one message, as it was sent."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        [sent] = await stage.publish(topic, b'{"n": 1}', key=b"o-1", headers={"type": "order.created"})
        [message] = await recorder.until_done(1, stage.patience)
        assert (message.topic, message.value, message.key) == (topic, sent.value, sent.key)
        assert (message.headers, message.id, message.attempt) == ({"type": "order.created"}, sent.id, 1)
        assert message.timestamp is not None
        assert message.timestamp.tzinfo is not None
        await stage.until_lag(topic, group, 0)

    async def test_every_confirmed_message_of_many_publishers_is_handled_once(self, stage: Stage) -> None:
        """Line 2: thousands, through many producers and consumers of two connections, without loss or double work."""
        topic, group = stage.topic(), stage.group()
        other = await stage.open()
        history = History()
        recorders = [Recorder(history=history, name=str(number)) for number in range(4)]
        for number, recorder in enumerate(recorders):
            broker = stage.broker if number % 2 else other
            await stage.consume(topic, group, recorder, broker=broker, concurrency=8)
        confirmed: set[str] = set()

        async def publish(number: int) -> None:
            producer = (stage.broker if number % 2 else other).producer()
            for start in range(0, 400, 40):
                messages = [
                    Message(topic, b"x", key=b"%d" % (i % 50), id=f"{number}-{start + i}-{uuid4().hex}")
                    for i in range(40)
                ]
                if number % 3:
                    await producer.publish_batch(messages)
                else:
                    await asyncio.gather(*(producer.publish(message) for message in messages))
                confirmed.update(message.id or "" for message in messages)
            await producer.close()

        await asyncio.gather(*(publish(number) for number in range(8)))
        assert len(confirmed) == 3200
        await eventually(
            lambda: len(set(history.ids("done"))) >= 3200, 4 * stage.patience, "all 3200 are handled"
        )
        await stage.until_lag(topic, group, 0)
        assert set(history.ids("done")) == confirmed
        assert history.duplicates() == {}

    async def test_each_group_gets_all_messages(self, stage: Stage) -> None:
        """Line 3: a group's reading takes nothing from another's."""
        topic = stage.topic()
        first = await stage.record(topic, stage.group("billing"), concurrency=4)
        second = await stage.record(topic, stage.group("shipping"), concurrency=4)
        sent = [Message(topic, b"%d" % n, key=b"%d" % n, id=uuid4().hex) for n in range(100)]
        await stage.publish_all(sent)
        for recorder in (first, second):
            await recorder.until_done(100, stage.patience)
        for group in ("billing", "shipping"):
            await stage.until_lag(topic, stage.group(group), 0)
        for recorder in (first, second):
            assert recorder.ids == {message.id for message in sent}
            assert recorder.history.duplicates() == {}

    async def test_the_consumers_of_one_group_share_its_messages(self, stage: Stage) -> None:
        """Line 3: each message goes to one of them, and both have work; neither hoards what it cannot begin."""
        topic, group = stage.topic(), stage.group()
        other = await stage.open()
        gate = Gate()
        history = History()
        recorders = [Recorder(gate, history=history) for _ in range(2)]
        for recorder, broker in zip(recorders, (stage.broker, other), strict=True):
            await stage.consume(topic, group, recorder, broker=broker, max_in_flight=10)
        sent = [Message(topic, b"%d" % n, key=b"%d" % n, id=uuid4().hex) for n in range(100)]
        await stage.publish_all(sent)
        for recorder in recorders:
            await recorder.until_began(1, stage.patience)
        gate.open()
        await eventually(lambda: len(set(history.ids("done"))) >= 100, stage.patience, "all 100 are handled")
        await stage.until_lag(topic, group, 0)
        assert history.duplicates() == {}

    async def test_one_consumer_takes_several_topics(self, stage: Stage) -> None:
        """Line 4: each message says from which topic it came; each topic has a lag of its own."""
        topics, group = [stage.topic(word) for word in ("orders", "refunds", "returns")], stage.group()
        recorder = await stage.record(topics, group, concurrency=2)
        sent = [Message(topic, topic.encode(), id=uuid4().hex) for topic in topics for _ in range(10)]
        await stage.publish_all(sent)
        await recorder.until_done(30, stage.patience)
        assert {(message.id, message.topic) for message in recorder.done} == {(m.id, m.topic) for m in sent}
        assert all(message.value == message.topic.encode() for message in recorder.done)
        for topic in topics:
            await stage.until_lag(topic, group, 0)

    async def test_a_new_group_starts_at_the_earliest_message(self, stage: Stage) -> None:
        """Line 5: on a broker that retains, a group that did not exist gets what was published before it."""
        topic = stage.topic()
        await stage.broker.declare(topic)
        await stage.keep(topic)
        early = await stage.publish(topic, b"early", key=b"k")
        recorder = await stage.record(topic, stage.group(), start="earliest")
        late = await stage.publish(topic, b"late", key=b"k")
        expected = [*early, *late] if stage.capabilities.retained else late
        await recorder.until_done(len(expected), stage.patience)
        assert recorder.values == [message.value for message in expected]

    async def test_a_new_group_starts_at_the_latest_message(self, stage: Stage) -> None:
        """Line 5: with start="latest" it gets only what comes after; once it exists, it goes on where it was."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic)
        await stage.keep(topic)
        await stage.publish(topic, b"early")
        recorder = Recorder()
        consumer = await stage.consume(topic, group, recorder, start="latest")
        await stage.publish(topic, b"late")
        await recorder.until_done(1, stage.patience)
        await consumer.stop()
        await stage.publish(topic, b"between")
        await stage.consume(topic, group, recorder, start="latest")
        await recorder.until_done(2, stage.patience)
        assert recorder.values == [b"late", b"between"]

    async def test_a_declared_group_gets_what_is_published_before_its_consumer_starts(
        self, stage: Stage
    ) -> None:
        """Line 5: declare creates the group, so nothing is missed on any broker; declaring twice changes nothing."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        await stage.broker.declare(topic, groups=[group])
        await stage.publish(topic, b"1", b"2")
        await stage.broker.declare(topic, groups=[group])
        recorder = await stage.record(topic, group)
        await recorder.until_done(2, stage.patience)
        assert sorted(recorder.values) == [b"1", b"2"]

    async def test_a_consumer_without_a_group_gets_what_comes_from_now_on(self, stage: Stage) -> None:
        """Line 6: each has a group of its own, which is gone once it stops."""
        topic = stage.topic()
        await stage.broker.declare(topic)
        await stage.keep(topic)
        await stage.publish(topic, b"before", key=b"k")
        first, second = Recorder(), Recorder()
        consumer = await stage.consume(topic, None, first)
        await stage.consume(topic, None, second)
        await stage.publish(topic, b"one", key=b"k")
        for recorder in (first, second):
            await recorder.until_done(1, stage.patience)
        await consumer.stop()
        await stage.publish(topic, b"missed", key=b"k")
        again = await stage.record(topic, None)
        await stage.publish(topic, b"two", key=b"k")
        await again.until_done(1, stage.patience)
        await second.until_done(3, stage.patience)
        assert first.values == [b"one"]
        assert second.values == [b"one", b"missed", b"two"]
        assert again.values == [b"two"]

    async def test_where_nothing_may_be_created_what_is_missing_is_said_and_what_is_there_serves(
        self, stage: Stage
    ) -> None:
        """Lines 5 and 6: with ?declare=false; a consumer without a group needs but the topic."""
        topic, group, missing = stage.topic(), stage.group(), stage.topic("missing")
        await stage.broker.declare(topic, groups=[group])
        broker = await stage.open(declare="false")
        recorder = Recorder()
        with pytest.raises(ConfigError):
            await stage.consume(missing, group, recorder, broker=broker, dead_letter=None)
        with pytest.raises(ConfigError):
            await stage.consume(missing, None, recorder, broker=broker, dead_letter=None)
        await stage.consume(topic, group, recorder, broker=broker, dead_letter=None)
        await stage.consume(topic, None, recorder, broker=broker, dead_letter=None)
        await stage.publish(topic, b"both", broker=broker)
        await recorder.until_done(2, stage.patience)
        assert recorder.values == [b"both", b"both"]

    async def test_nothing_is_lost_when_everything_is_closed_and_reopened_twenty_times(
        self, stage: Stage
    ) -> None:
        """Line 7: each round publishes, begins to handle, and closes in the middle of it."""
        topic, group = stage.topic(), stage.group()
        await stage.keep(topic, group)
        if stage.target.durable:  # else the stage's own connection keeps the messages alive
            await stage.broker.close()
        history = History()
        sent: list[str] = []
        for number in range(20):
            broker = await stage.open()
            messages = [
                Message(topic, b"x", key=b"%d" % (n % 3), id=f"{number}-{n}-{uuid4().hex}") for n in range(15)
            ]
            await stage.publish_all(messages, broker)
            sent.extend(message.id or "" for message in messages)
            began = len(history.events)
            await stage.consume(topic, group, Recorder(history=history), broker=broker, concurrency=2)
            await eventually(lambda: len(history.events) > began, stage.patience, "a message is handled")  # noqa: B023
            await broker.close()
        last = await stage.open()
        await stage.consume(topic, group, Recorder(history=history), broker=last, concurrency=4)
        await eventually(lambda: set(history.ids("done")) >= set(sent), stage.patience, "all are handled")
        assert set(history.ids("done")) == set(sent)
        assert history.duplicates() == {}

    async def test_nothing_is_acknowledged_before_its_handler_ends(self, stage: Stage) -> None:
        """Line 8: while a handler runs, its message lags, whatever becomes of those beside it."""
        if not stage.capabilities.lag:
            pytest.skip(
                "this broker cannot say what is not acknowledged; the killed process shows it instead"
            )
        topic, group = stage.topic(), stage.group()
        gate = Gate(passing=lambda message: message.value != b"held")
        recorder = await stage.record(topic, group, gate, concurrency=4)
        await stage.publish(topic, b"held", b"1", b"2", b"3")
        await recorder.until_done(3, stage.patience)
        if (
            not stage.capabilities.partitions
        ):  # where only a prefix can be committed, those behind it lag as well
            await stage.until_lag(topic, group, 1)

        async def held() -> bool:
            return (await stage.lag(topic, group) or 0) >= 1

        await throughout(held, 0.5, "the message in its handler is not acknowledged")
        gate.open()
        await recorder.until_done(4, stage.patience)
        await stage.until_lag(topic, group, 0)

    async def test_a_closed_broker_leaves_what_it_had_not_finished(self, stage: Stage) -> None:
        """Line 8: a handler that does not end within drain_timeout has acknowledged nothing."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        other: Broker = await stage.open()
        hanging = Recorder(Gate())
        await stage.consume(topic, group, hanging, broker=other, drain_timeout=0.1, concurrency=3)
        sent = await stage.publish(topic, b"1", b"2", b"3")
        await hanging.until_began(3, stage.patience)
        await other.close()
        recorder = await stage.record(topic, group)
        await recorder.until_done(3, stage.patience)
        assert recorder.ids == {message.id for message in sent}
        assert recorder.attempts == [1, 1, 1]
