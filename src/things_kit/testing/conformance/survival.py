"""Delivery: lines 2, 3 and 8 to 13 where processes die, brokers go away and consumers come and go."""

import asyncio
from uuid import uuid4

import pytest

from things_kit import Message
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.history import History, assert_lanes, merged
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually


def _load(topic: str, count: int, keys: int) -> tuple[list[Message], dict[object, list[str]]]:
    """Messages of several keys, and the ids of each key in order."""
    messages = [Message(topic, b"x", key=b"k%d" % (n % keys), id=f"{n}-{uuid4().hex}") for n in range(count)]
    lanes: dict[object, list[str]] = {}
    for message in messages:
        lanes.setdefault(message.key, []).append(message.id or "")
    return messages, lanes


class SurvivalSuite(Suite):
    """Whatever dies, disconnects, joins or leaves: nothing is lost, and order holds where it was promised."""

    async def test_two_processes_of_a_group_share_a_load_in_order(self, stage: Stage) -> None:
        """Lines 2 and 3: all is handled, by both, each message once and each key in order."""
        topic, group = stage.topic(), stage.group()
        workers = [
            await stage.worker(topic, group, short_lease=False, concurrency=8, delay=0.001, max_in_flight=50)
            for _ in range(2)
        ]
        messages, lanes = _load(topic, 1500, keys=40)
        for start in range(0, len(messages), 250):
            await stage.publish_all(messages[start : start + 250])

        def handled() -> set[str]:
            return {id_ for worker in workers for id_ in worker.history.ids("done")}

        await eventually(lambda: len(handled()) >= len(messages), 4 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        for worker in workers:
            await worker.stop()
            assert worker.history.events, "one process got nothing"
        whole = merged(worker.history for worker in workers)
        assert whole.duplicates() == {}, f"the processes said: {[worker.complaints() for worker in workers]}"
        if stage.capabilities.lanes or stage.capabilities.partitions:
            assert_lanes(whole, lanes)

    async def test_a_killed_process_leaves_what_it_had_begun_to_others(self, stage: Stage) -> None:
        """Lines 8 and 9: SIGKILL in the middle of a handler; what it held, in hand or in its buffer, comes again."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        worker = await stage.worker(topic, group, concurrency=2, hang_after=0, max_in_flight=10)
        messages, lanes = _load(topic, 20, keys=5)
        await stage.publish_all(messages)
        await eventually(
            lambda: len(worker.history.ids("began")) >= 2, stage.patience, "it hangs in two handlers"
        )
        await worker.kill()
        recorder = Recorder(name="survivor")
        survivor = await stage.open(**stage.target.lease_options)
        await stage.consume(topic, group, recorder, broker=survivor, concurrency=4)
        await eventually(lambda: len(recorder.ids) >= 20, 2 * stage.patience, "the survivor handles all")
        await stage.until_lag(topic, group, 0)
        if stage.capabilities.lanes or stage.capabilities.partitions:
            assert_lanes(merged([worker.history, recorder.history]), lanes)

    async def test_processes_killed_under_load_lose_nothing_and_keep_order(self, stage: Stage) -> None:
        """Line 9: one process after another is killed while it works; the last one handles the rest."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        messages, lanes = _load(topic, 600, keys=25)
        await stage.publish_all(messages)
        workers = []
        for _ in range(3):
            worker = await stage.worker(topic, group, concurrency=4, delay=0.002, max_in_flight=40)
            workers.append(worker)
            await eventually(lambda: len(worker.history.ids("done")) >= 30, stage.patience, "it works")  # noqa: B023
            await worker.kill()
        survivor = await stage.worker(topic, group, concurrency=8)
        workers.append(survivor)

        def handled() -> set[str]:
            return {id_ for worker in workers for id_ in worker.history.ids("done")}

        await eventually(lambda: len(handled()) >= len(messages), 4 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        await survivor.stop()
        if stage.capabilities.lanes or stage.capabilities.partitions:
            assert_lanes(merged(worker.history for worker in workers), lanes)

    async def test_a_broker_that_goes_away_and_returns_loses_nothing(self, stage: Stage) -> None:
        """Line 10: publishers and consumers go on through it, without being told; line 64: what is scheduled comes as well."""
        stage.needs_outage()
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, concurrency=4)
        messages, _ = _load(topic, 300, keys=10)
        producer = stage.broker.producer()
        scheduled: list[Message] = []
        if stage.schedules and stage.target.kill is not None:
            await stage.ready_to_schedule()
            scheduled.append(Message(topic, b"later", id=f"later-{uuid4().hex}"))

        async def publish() -> None:
            for message in messages:
                await producer.publish(message)

        publishing = asyncio.create_task(publish())
        await recorder.until_done(20, stage.patience)
        for message in scheduled:
            await producer.publish(message, after=1.5)
        async with stage.outage():
            await eventually(lambda: not recorder.running, stage.patience, "the consumer comes to rest")
        await asyncio.wait_for(publishing, 4 * stage.patience)
        expected = {message.id for message in (*messages, *scheduled)}
        await eventually(
            lambda: recorder.ids >= expected, 4 * stage.patience, "all confirmed messages are handled"
        )
        await stage.until_lag(topic, group, 0)

    async def test_after_a_cut_connection_each_message_is_handled_once(self, stage: Stage) -> None:
        """Line 11: the consumer is back, and only once."""
        if stage.target.cut is None:
            pytest.skip("this target has no connection that could be cut")
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, concurrency=4)
        await stage.publish(topic, b"before")
        await recorder.until_done(1, stage.patience)
        for _ in range(3):
            await stage.target.cut()
        messages, _ = _load(topic, 100, keys=10)
        for message in messages:
            await stage.publish_all([message])
        await eventually(lambda: len(recorder.ids) >= 101, 2 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        counts = recorder.history.duplicates()
        assert not set(counts) & {message.id for message in messages[50:]}, "two consumers are at work"

    async def test_consumers_that_join_and_leave_lose_and_repeat_nothing(self, stage: Stage) -> None:
        """Line 12: with work in flight; afterwards a newcomer of the group finds nothing to do."""
        topic, group = stage.topic(), stage.group()
        history = History()

        async def slow(message: Message) -> None:
            await asyncio.sleep(0.002)

        await stage.consume(
            topic, group, Recorder(slow, history=history, name="first"), concurrency=4, max_in_flight=20
        )
        messages, lanes = _load(topic, 400, keys=20)
        await stage.publish_all(messages)
        for number in range(4):
            broker = await stage.open()
            joined = Recorder(slow, history=history, name=str(number))
            consumer = await stage.consume(
                topic, group, joined, broker=broker, concurrency=4, max_in_flight=20
            )
            count = len(history.events)
            await eventually(
                lambda: len(history.events) > count + 40 or len(set(history.ids("done"))) >= 400,  # noqa: B023
                stage.patience,
            )
            await consumer.stop()
        await eventually(lambda: len(set(history.ids("done"))) >= 400, 4 * stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert history.duplicates() == {}
        if stage.capabilities.lanes or stage.capabilities.partitions:
            assert_lanes(history, lanes)
        await self._finds_nothing_old(stage, topic, group)

    async def _finds_nothing_old(self, stage: Stage, topic: str, group: str) -> None:
        for consumer in stage.consumers:
            await consumer.stop()
        newcomer = await stage.record(topic, group)
        await stage.publish(topic, b"new")
        await newcomer.until_done(1, stage.patience)
        assert newcomer.values == [b"new"]

    async def test_stopping_with_a_full_buffer_gives_it_back_unharmed(self, stage: Stage) -> None:
        """Line 13: what has begun may finish, the rest is left; stopping again, or twice at once, is fine."""
        topic, group = stage.topic(), stage.group()
        gate = Gate()
        recorder = Recorder(gate)
        consumer = await stage.consume(topic, group, recorder, concurrency=2, max_in_flight=50)
        messages, lanes = _load(topic, 100, keys=100)
        await stage.publish_all(messages)
        await recorder.until_began(2, stage.patience)
        stopping = [asyncio.create_task(consumer.stop()) for _ in range(2)]
        done, _ = await asyncio.wait(stopping, timeout=0.2)
        assert not done, "stop did not wait for the handlers that had begun"
        gate.open()
        await asyncio.wait_for(asyncio.gather(*stopping), stage.patience)
        await consumer.stop()
        await asyncio.wait_for(consumer.wait(), 1)
        assert len(recorder.done) == len(recorder.began) == 2, "a handler began after stop"
        rest = await stage.record(topic, group, concurrency=4)
        await rest.until_done(98, stage.patience)
        await stage.until_lag(topic, group, 0)
        assert recorder.ids | rest.ids == {message.id for message in messages}
        assert not recorder.ids & rest.ids
        assert set(rest.attempts) == {1}
        assert_lanes(rest.history, {key: ids for key, ids in lanes.items() if ids[0] in rest.ids})

    async def test_a_consumer_stops_while_it_reconnects(self, stage: Stage) -> None:
        """Line 13: stop does not wait for the broker to return."""
        stage.needs_outage()
        topic, group = stage.topic(), stage.group()
        recorder = Recorder()
        consumer = await stage.consume(topic, group, recorder, drain_timeout=1.0)
        await stage.publish(topic, b"1")
        await recorder.until_done(1, stage.patience)
        await eventually(lambda: consumer.handled == 1, stage.patience, "the broker has confirmed it")
        await stage.until_lag(topic, group, 0)
        async with stage.outage():
            await asyncio.wait_for(consumer.stop(), stage.patience)
        after = await stage.record(topic, group)
        await stage.publish(topic, b"2")
        await after.until_done(1, stage.patience)
        assert after.values == [b"2"]
