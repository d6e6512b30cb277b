"""Environments that share a broker: `?topic_prefix=`."""

from things_kit import Broker, Message, RetryPolicy
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.facts import Question
from things_kit.engine.looking import GroupRow, overview
from things_kit.messaging.names import CONSUMER_GROUP, ORIGINAL_TOPIC, REPLAY_GROUP
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import Stage

ONCE = RetryPolicy(attempts=1, first=0.01, jitter=0.0)
"""No second attempt: the first failure makes a dead letter."""

LATER = RetryPolicy(attempts=3, first=1.5, factor=1.0, limit=1.5, jitter=0.0, mode="delayed")
"""A wait that no broker keeps in this process's memory."""


async def _failing_once(message: Message) -> None:
    if message.attempt == 1 and REPLAY_GROUP not in message.headers:
        raise RuntimeError("the first time")


class PrefixSuite(Suite):
    """The broker's names have a prefix; handlers, headers and who looks see the names without it."""

    async def test_topics_and_groups_have_the_prefix_at_the_broker_and_nowhere_else(
        self, stage: Stage
    ) -> None:
        """Line 76: what one environment publishes, no other gets, though its topics and groups have the same names."""
        test, topic, group = await self._prefixed(stage)
        ours = await stage.record(topic, group, broker=test)
        theirs = await stage.record(topic, group)
        there = await stage.record(stage.name("test") + topic, stage.group("outside"))
        await stage.publish(topic, b"test", broker=test)
        await stage.publish(topic, b"live")
        await ours.until_done(1, stage.patience)
        await theirs.until_done(1, stage.patience)
        await there.until_done(1, stage.patience)
        assert [(message.topic, message.value) for message in ours.done] == [(topic, b"test")]
        assert [(message.topic, message.value) for message in theirs.done] == [(topic, b"live")]
        assert [message.value for message in there.done] == [b"test"]
        await stage.until_lag(stage.name("test") + topic, stage.name("test") + group, 0)

    async def test_a_dead_letter_tells_names_without_the_prefix_and_replay_reaches_the_group_that_failed(
        self, stage: Stage
    ) -> None:
        """Line 76: the driver that keeps what is replayed from other groups knows the group by the broker's name."""
        test, topic, group = await self._prefixed(stage)
        failed = await stage.record(topic, group, _failing_once, broker=test, retry=ONCE)
        other = await stage.record(topic, stage.group("other"), broker=test)
        looks = await stage.record(f"{topic}-dlq", stage.group("looks"), broker=test)
        await stage.publish(topic, b"x", broker=test)
        await other.until_done(1, stage.patience)
        [dead] = await looks.until_done(1, stage.patience)
        assert dead.topic == f"{topic}-dlq"
        assert (dead.headers[ORIGINAL_TOPIC], dead.headers[CONSUMER_GROUP]) == (topic, group)
        assert await test.replay(f"{topic}-dlq") == 1
        [again] = await failed.until_done(1, stage.patience)
        assert again.headers[REPLAY_GROUP] == group
        await stage.publish(topic, b"last", broker=test, headers={"last": "yes"})
        await other.until_done(2, stage.patience)
        assert sorted(other.values) == [b"last", b"x"]

    async def test_a_message_that_waits_for_its_next_attempt_keeps_its_topic(self, stage: Stage) -> None:
        """Line 76: in the broker, in a copy or in a retry topic."""
        test, topic, group = await self._prefixed(stage)
        recorder = await stage.record(topic, group, _failing_once, broker=test, retry=LATER)
        await stage.publish(topic, b"x", broker=test)
        [done] = await recorder.until_done(1, stage.patience)
        assert (done.topic, done.attempt) == (topic, 2)

    async def test_who_looks_sees_the_topics_of_the_prefix_alone_without_it(self, stage: Stage) -> None:
        """Line 76: listing, lag and doctor; and what is removed is gone."""
        test, topic, group = await self._prefixed(stage)
        foreign = stage.topic("foreign")
        await stage.broker.declare(foreign, groups=[group])
        recorder = await stage.record(topic, group, broker=test)
        await stage.publish(topic, b"x", broker=test)
        await recorder.until_done(1, stage.patience)
        for consumer in stage.consumers:
            await consumer.stop()
        tells = await stage.tells_names()
        if tells:
            rows = [row for row in await overview(test) if row.topic in {topic, foreign}]
            lag = 0 if stage.capabilities.lag else None
            assert rows == [GroupRow(topic, group, lag)]
        findings = await diagnose(test, Question(topic, group))
        assert not [each for each in findings if each.level == "error"]
        await test.remove(topic)
        if tells:
            assert topic not in {row.topic for row in await overview(test)}

    async def _prefixed(self, stage: Stage) -> tuple[Broker, str, str]:
        """A broker of another environment, and a topic and a group that both have."""
        prefix, topic = stage.name("test"), stage.topic()
        stage.sweep(prefix + topic, f"{prefix}{topic}-dlq")
        return await stage.open(topic_prefix=prefix), topic, stage.group()
