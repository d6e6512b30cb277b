"""Messages that come later: lines 63 to 66."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from things_kit import ConfigError, Message, UnsupportedError
from things_kit.engine.wait_topics import LEASE
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

SOON = 0.6
"""Seconds ahead: enough to see that nothing came before."""


def _now() -> datetime:
    return datetime.now(UTC)


class ScheduleSuite(Suite):
    """What is published with a time arrives then and not before, whatever happened meanwhile."""

    async def _needs(self, stage: Stage, *, ids: bool = False) -> None:
        if not stage.schedules:
            pytest.skip("this broker keeps nothing until later, and says so: see the test of that")
        if ids and not stage.capabilities.schedule_ids:
            pytest.skip("this broker knows no schedule_id, and says so: see the test of that")
        await stage.ready_to_schedule()

    async def test_what_a_broker_cannot_schedule_is_refused_at_the_call(self, stage: Stage) -> None:
        """Line 63: UnsupportedError by the call that asks, never later."""
        topic = stage.topic()
        await stage.keep(topic)
        producer, message = stage.broker.producer(), Message(topic, b"v")
        if not stage.schedules:
            with pytest.raises(UnsupportedError):
                await producer.publish(message, after=1)
            with pytest.raises(UnsupportedError):
                await producer.publish_batch([message], at=_now())
        if not stage.capabilities.schedule_ids:
            with pytest.raises(UnsupportedError):
                await producer.publish(message, after=1, schedule_id="a")
            with pytest.raises(UnsupportedError):
                await stage.broker.cancel(topic, "a")
        if not stage.capabilities.schedules:
            with pytest.raises(UnsupportedError):
                await stage.broker.schedules(topic)

    async def test_a_time_that_is_none_is_refused(self, stage: Stage) -> None:
        """Line 63: a naive time, NaN, a negative one, two at once, a name without one, or that no broker can keep."""
        producer, message = stage.broker.producer(), Message(stage.topic(), b"v")
        naive = datetime(2030, 1, 1)
        for wrong in (float("nan"), -1, float("inf"), 10**400, timedelta(-1), timedelta.max):
            with pytest.raises(ConfigError):
                await producer.publish(message, after=wrong)
        with pytest.raises(ConfigError):
            await producer.publish(message, at=naive)
        for name in ("", "\ud800", "a\0b", "\u00e9" * 300):
            with pytest.raises(ConfigError):
                await producer.publish(message, after=1, schedule_id=name)
            with pytest.raises(ConfigError):
                await stage.broker.cancel(message.topic, name)
        with pytest.raises(ConfigError):
            await producer.publish(message, after=1, at=_now())
        with pytest.raises(ConfigError):
            await producer.publish(message, schedule_id="a")

    async def test_a_scheduled_message_arrives_when_it_is_due_and_not_before(self, stage: Stage) -> None:
        """Line 63: with the time of its publish, what is due first coming first."""
        await self._needs(stage)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        producer = stage.broker.producer()
        await producer.publish(Message(topic, b"before", key=b"k"), after=0.01)
        await recorder.until_done(1, stage.patience)  # what a broker makes for the first one is there
        began = _now()
        await asyncio.gather(
            producer.publish(Message(topic, b"second", key=b"k"), after=2 * SOON),
            producer.publish(Message(topic, b"first", key=b"k"), at=began + timedelta(seconds=SOON)),
            producer.publish(Message(topic, b"now", key=b"k")),
        )
        _, *messages = await recorder.until_done(4, stage.patience)
        assert [message.value for message in messages] == [b"now", b"first", b"second"]
        assert _now() - began >= timedelta(seconds=2 * SOON)
        assert messages[2].timestamp is not None
        assert messages[2].timestamp < began + timedelta(seconds=SOON)
        await stage.until_lag(topic, group, 0)

    async def test_what_is_not_due_is_in_no_lag_unless_the_broker_counts_it(self, stage: Stage) -> None:
        """Line 63: also while other messages are handled; whether it is counted is one of the capabilities."""
        await self._needs(stage)
        if not stage.capabilities.lag:
            pytest.skip("this broker cannot say how much waits, and says so")
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, [group])
        producer, ahead = stage.broker.producer(), int(stage.capabilities.scheduled_in_lag)
        await producer.publish(Message(topic, b"in an hour"), after=3600)
        await producer.publish(Message(topic, b"now"))
        await stage.until_lag(topic, group, ahead + 1)
        recorder = await stage.record(topic, group)
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, ahead)

    async def test_the_past_is_now(self, stage: Stage) -> None:
        """Line 63: a time that is over, and none at all, do not hold a message back."""
        await self._needs(stage)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        producer = stage.broker.producer()
        await producer.publish(Message(topic, b"a"), at=_now() - timedelta(days=400))
        await producer.publish(Message(topic, b"b"), after=0)
        assert {m.value for m in await recorder.until_done(2, stage.patience)} == {b"a", b"b"}

    async def test_a_year_ahead_is_kept_or_refused_at_once(self, stage: Stage) -> None:
        """Line 63: what a broker cannot keep for so long is UnsupportedError; what it keeps does not come now."""
        await self._needs(stage)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        producer = stage.broker.producer()
        with contextlib.suppress(UnsupportedError):
            await producer.publish(Message(topic, b"a year"), after=365 * 86_400.0)
        await producer.publish(Message(topic, b"soon"), after=0.2)
        await recorder.until_done(1, stage.patience)
        assert [message.value for message in recorder.began] == [b"soon"]

    async def test_a_batch_has_one_time(self, stage: Stage) -> None:
        """Line 63: it comes as a whole, in its order."""
        await self._needs(stage)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        values = [b"%d" % number for number in range(50)]
        began = _now()
        await stage.broker.producer().publish_batch(
            [Message(topic, value, key=b"k") for value in values], after=SOON
        )
        assert [m.value for m in await recorder.until_done(50, stage.patience)] == values
        assert _now() - began >= timedelta(seconds=SOON)

    async def test_who_scheduled_need_not_be_there_when_it_is_due(self, stage: Stage) -> None:
        """Line 64: its broker object is closed, and the consumer starts only after the time."""
        await self._needs(stage)
        if not stage.target.durable:
            pytest.skip("messages do not outlive the last connection")
        topic, group = stage.topic(), stage.group()
        await stage.keep(topic, group)
        publisher = await stage.open()
        due = _now() + timedelta(seconds=SOON)
        await publisher.producer().publish(Message(topic, b"v"), at=due)
        await publisher.close()

        async def is_due() -> bool:
            return _now() > due

        await eventually(is_due, 10.0, "it is due")
        recorder = await stage.record(topic, group)
        assert [m.value for m in await recorder.until_done(1, stage.patience)] == [b"v"]

    async def test_who_carries_on_what_is_scheduled_may_be_killed(self, stage: Stage) -> None:
        """Line 64: whoever comes carries on; nothing is lost."""
        await self._needs(stage)
        if not stage.capabilities.carried:
            pytest.skip("no process carries on what is scheduled here")
        topic, group, other = stage.topic(), stage.group(), stage.group("shipping")
        broker = await stage.open(
            **stage.target.lease_options
        )  # what the killed one holds comes after its lease
        await broker.declare(topic, [group, other])
        worker = await stage.worker(topic, group)
        messages = [Message(topic, b"v", id=stage.name(str(number))) for number in range(100)]
        producer, began = broker.producer(), _now()
        times = [began + timedelta(seconds=SOON + number / 100) for number in range(100)]
        await asyncio.gather(
            *(producer.publish(message, at=at) for message, at in zip(messages, times, strict=True))
        )
        await eventually(lambda: len(worker.history.ids("done")) > 20, stage.patience)
        await worker.kill()
        recorder = await stage.record(topic, other, broker=broker)
        expected = {message.id for message in messages}
        # What the killed one had taken up comes after the lease of all that waits
        within = LEASE + stage.patience
        await eventually(lambda: {each.id for each in recorder.began} == expected, within)

    async def test_what_is_due_before_a_publish_comes_before_it(self, stage: Stage) -> None:
        """Line 64: a key's scheduled message takes its place when it is due, though nobody looked at the time."""
        await self._needs(stage)
        if not stage.capabilities.schedule_ids:
            pytest.skip("what carries it on may need the consumer")
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, [group])
        producer, due = stage.broker.producer(), _now() + timedelta(seconds=SOON)
        await producer.publish(Message(topic, b"scheduled", key=b"k"), at=due)
        if stage.capabilities.lag:
            assert await stage.lag(topic, group) == 0
        await stage.until_lag(topic, group, 1)
        await producer.publish(Message(topic, b"published", key=b"k"))
        recorder = await stage.record(topic, group)
        values = [message.value for message in await recorder.until_done(2, stage.patience)]
        assert values == [b"scheduled", b"published"]

    async def test_the_same_schedule_id_again_replaces(self, stage: Stage) -> None:
        """Line 65: sooner or later than before; in another topic it is another."""
        await self._needs(stage, ids=True)
        topic, other, group = stage.topic(), stage.topic("refunds"), stage.group()
        recorder = await stage.record([topic, other], group)
        producer = stage.broker.producer()
        await producer.publish(Message(topic, b"a year"), after=365 * 86_400.0, schedule_id="a")
        await producer.publish(Message(other, b"other"), after=SOON, schedule_id="a")
        await producer.publish(Message(topic, b"soon"), after=SOON, schedule_id="a")
        await producer.publish(Message(topic, b"at last"), after=2 * SOON, schedule_id="a")
        assert {m.value for m in await recorder.until_done(2, stage.patience)} == {b"other", b"at last"}
        if stage.capabilities.schedules:
            assert await stage.broker.schedules(topic) == []

    async def test_of_many_who_replace_one_wins(self, stage: Stage) -> None:
        """Line 65: whoever schedules at the same time under one schedule_id, one message is kept, and one comes."""
        await self._needs(stage, ids=True)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        brokers = [await stage.open() for _ in range(3)]

        async def schedule(number: int) -> None:
            message = Message(topic, b"%d" % number)
            await brokers[number % 3].producer().publish(message, after=3600, schedule_id="a")

        await asyncio.gather(*(schedule(number) for number in range(30)))
        [kept] = await stage.broker.schedules(topic)
        assert int(kept.message.value) in range(30)
        producer = stage.broker.producer()
        await producer.publish(Message(topic, b"now"), after=SOON, schedule_id="a")
        await producer.publish(Message(topic, b"last"), after=2 * SOON)
        messages = await recorder.until_done(2, stage.patience)
        assert [message.value for message in messages] == [b"now", b"last"]
        assert len(recorder.began) == 2

    async def test_what_was_cancelled_never_arrives(self, stage: Stage) -> None:
        """Line 65: also when cancel and due time meet: True and no message, or False and one."""
        await self._needs(stage, ids=True)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        producer, cancelled = stage.broker.producer(), set()
        assert await stage.broker.cancel(topic, "unknown") is False
        schedule = [
            producer.publish(
                Message(topic, b"%d" % number), after=SOON if number else 3600, schedule_id=f"s-{number}"
            )
            for number in range(30)
        ]
        await asyncio.gather(*schedule)

        async def cancel(number: int) -> None:
            await asyncio.sleep(number * SOON / 15)  # before, at and after the time
            if await stage.broker.cancel(topic, f"s-{number}"):
                cancelled.add(b"%d" % number)

        await asyncio.gather(*(cancel(number) for number in range(30)))
        await producer.publish(Message(topic, b"last"), after=SOON)
        expected = {b"%d" % number for number in range(30)} - cancelled | {b"last"}
        messages = await recorder.until_done(len(expected), stage.patience)
        assert {message.value for message in messages} == expected
        assert b"0" in cancelled, "it was far from its time"

    async def test_what_is_to_come_can_be_listed(self, stage: Stage) -> None:
        """Line 66: soonest first, up to a limit, with and without a schedule_id, as it was published."""
        await self._needs(stage)
        if not stage.capabilities.schedules:
            pytest.skip("this broker cannot say what is scheduled, and says so")
        topic = stage.topic()
        assert await stage.broker.schedules(topic) == []
        await stage.broker.declare(topic)
        producer, due = stage.broker.producer(), _now().replace(microsecond=0) + timedelta(days=365)
        later = due + timedelta(hours=1)
        message = Message(topic, b"v", key=b"k", headers={"type": "reminder"}, id="m-1")
        await producer.publish(Message(topic, b"plain"), at=later)
        if stage.capabilities.schedule_ids:
            await producer.publish(message, at=due, schedule_id="a")
        else:
            await producer.publish(message, at=due)
        first, second = await stage.broker.schedules(topic)
        assert (first.due, second.due) == (due, later)
        assert second.schedule_id is None
        assert first.schedule_id == ("a" if stage.capabilities.schedule_ids else None)
        assert (first.message.value, first.message.key, first.message.id) == (b"v", b"k", "m-1")
        assert first.message.headers == {"type": "reminder"}
        assert len(await stage.broker.schedules(topic, limit=1)) == 1
        assert len(await stage.broker.schedules(topic, limit=10**30)) == 2
        with pytest.raises(ConfigError):
            await stage.broker.schedules(topic, limit=-1)

    async def test_the_last_moment_of_all_is_kept_and_listed(self, stage: Stage) -> None:
        """Line 66: a time that a float of seconds would round up to the year 10000 is the last second before it."""
        await self._needs(stage)
        if not stage.capabilities.schedules:
            pytest.skip("this broker cannot say what is scheduled, and says so")
        topic = stage.topic()
        await stage.broker.declare(topic)
        never = datetime.max.replace(tzinfo=UTC)
        try:
            await stage.broker.producer().publish(Message(topic, b"never"), at=never)
        except UnsupportedError:
            return  # it does not keep it for so long, and says so
        [entry] = await stage.broker.schedules(topic)
        assert never - entry.due < timedelta(seconds=1)
