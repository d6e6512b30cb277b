"""Messages that are put off, by a throttle, a breaker, a pause or a handler that says "not now", or left out: lines 71 to 74."""

import asyncio

import pytest

from things_kit import Batch, Message, RetryPolicy
from things_kit.middleware import Later, MemoryStore, circuit_breaker, deduplicate, throttle
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

ONCE = RetryPolicy(attempts=1)
"""Whatever counts as an attempt is the last one."""

BRIEF = 1.0
"""Seconds that a lease may last at most, so that a test outwaits it."""


async def _never_now(message: Message) -> None:
    raise Later(3600)


class FlowSuite(Suite):
    """What is put off waits at the head of its key, in nobody's way, and nothing of it counts."""

    async def test_what_is_put_off_keeps_its_place_and_costs_neither_attempt_nor_worker(
        self, stage: Stage
    ) -> None:
        """Line 71: the next of its key wait for it, others are handled by the only worker meanwhile."""
        topic, refused = stage.topic(), 0

        async def act(message: Message) -> None:
            nonlocal refused
            if message.value == b"1" and (refused < 3 or b"other" not in recorder.values):
                refused += 1
                raise Later(0.02)

        recorder = await stage.record(topic, group := stage.group(), act, concurrency=1, retry=ONCE)
        await stage.publish(topic, b"1", b"2", key=b"k")
        await stage.publish(topic, b"other", key=b"j")
        await recorder.until_done(3, stage.patience)

        assert [value for value in recorder.values if value != b"other"] == [b"1", b"2"]
        assert set(recorder.attempts) == {1}
        await stage.until_lag(topic, group, 0)

    async def test_what_waits_is_leased_for_longer_than_a_lease(self, stage: Stage) -> None:
        """Line 71: another process gets neither it nor what is behind it; it is handled once, by who had put it off."""
        topic, group = stage.topic(), stage.group()
        owner = await stage.open(**stage.target.lease_options)
        lease = owner.capabilities.lease
        if lease is None or lease > BRIEF:
            pytest.skip("there is no lease that a test could outwait")
        refused = False

        async def act(message: Message) -> None:
            nonlocal refused
            if message.value == b"1" and not refused:
                refused = True
                raise Later(1.5 * lease)

        recorder = await stage.record(topic, group, act, broker=owner, retry=ONCE)
        await stage.publish(topic, b"1", b"2", key=b"k")
        await recorder.until_began(1, stage.patience)
        await eventually(lambda: recorder.failed, stage.patience, "it is put off")
        other = await stage.record(topic, group, broker=await stage.open(**stage.target.lease_options))
        await recorder.until_done(1, stage.patience)
        await eventually(
            lambda: len(recorder.done) + len(other.done) == 2, stage.patience, "both are handled"
        )

        assert recorder.values[0] == b"1"
        assert b"1" not in other.values
        await stage.until_lag(topic, group, 0)
        assert len(recorder.began) + len(other.began) == 3
        assert set(recorder.attempts) == {1}

    async def test_what_waits_comes_again_after_a_stop_as_it_came(self, stage: Stage) -> None:
        """Line 71: in its order and uncounted."""
        topic, group = stage.topic(), stage.group()
        refusing = Recorder(_never_now)
        consumer = await stage.consume(topic, group, refusing, retry=ONCE)
        await stage.publish(topic, b"1", b"2", b"3", key=b"k")
        await eventually(lambda: refusing.failed, stage.patience, "the first is put off")
        await consumer.stop()
        recorder = await stage.record(topic, group, retry=ONCE)
        await recorder.until_done(3, stage.patience)

        assert recorder.values == [b"1", b"2", b"3"]
        assert set(refusing.attempts) | set(recorder.attempts) == {1}
        assert [message.value for message in refusing.began] == [b"1"]
        await stage.until_lag(topic, group, 0)

    async def test_a_process_that_puts_all_off_starves_no_other_and_makes_no_suspect(
        self, stage: Stage
    ) -> None:
        """Line 71: it holds no more than it may, and the other gets the rest, in the first attempt."""
        if stage.capabilities.partitions:
            pytest.skip("whoever has a partition has all that is in it")
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        sent = await stage.publish(topic, *(b"%d" % number for number in range(16)))
        refusing = Recorder(_never_now)
        consumer = await stage.consume(topic, group, refusing, concurrency=8, max_in_flight=8, retry=ONCE)
        await refusing.until_began(4, stage.patience)
        other = (await stage.worker(topic, group, short_lease=False, attempts=2)).history

        def held() -> int:
            in_flight: int = consumer.health().in_flight
            return in_flight

        await eventually(
            lambda: len(other.ids("done")) == len(sent) - held(), stage.patience, "the other has the rest"
        )
        assert 4 <= held() <= 8
        assert {event.attempt for event in other.events} == {1}
        await consumer.stop()
        await eventually(lambda: len(other.ids("done")) >= len(sent), stage.patience, "all are handled")
        assert set(other.ids("done")) == {message.id for message in sent}

    async def test_of_a_batch_all_is_put_off(self, stage: Stage) -> None:
        """Line 71: and comes again together, in its order."""
        topic, group = stage.topic(), stage.group()
        seen: list[list[tuple[bytes, int]]] = []

        async def handle(messages: list[Message]) -> None:
            seen.append([(message.value, message.attempt) for message in messages])
            if len(seen) <= 2:
                raise Later(0.02)

        await stage.keep(topic, group)
        await stage.publish(topic, b"1", b"2", b"3", key=b"k")
        await stage.consume(topic, group, handle, batch=Batch(size=3, wait=0.1), retry=ONCE)
        await eventually(lambda: sum(map(len, seen[2:])) >= 3, stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)

        assert [each for part in seen[2:] for each in part] == [(b"1", 1), (b"2", 1), (b"3", 1)]
        assert all(attempt == 1 for part in seen for _, attempt in part)

    async def test_a_dependency_that_is_down_costs_no_message(self, stage: Stage) -> None:
        """Line 72: a breaker opens at the second message that fails; from then on nothing counts, until it is back."""
        topic, group = stage.topic(), stage.group()
        breaker, back, two = circuit_breaker(failures=2, reset=0.05), asyncio.Event(), asyncio.Barrier(2)

        async def act(message: Message) -> None:
            if len(recorder.began) <= 2:
                await two.wait()  # so that no message fails twice before it opens
            if not back.is_set():
                raise ConnectionError("the dependency is down")

        recorder = Recorder(act)
        policy = RetryPolicy(attempts=2, first=0.02)
        await stage.consume(topic, group, recorder, retry=policy, middleware=[breaker], concurrency=2)
        await stage.publish_all([Message(topic, b"%d" % n, key=b"%d" % n) for n in range(4)])
        await recorder.until_began(6, stage.patience)
        back.set()
        await recorder.until_done(4, stage.patience)
        await stage.until_lag(topic, group, 0)

        assert {message.value for message in recorder.done} == {b"0", b"1", b"2", b"3"}
        assert max(recorder.attempts) <= 2
        assert breaker.state == "closed"

    async def test_what_is_beyond_a_throttles_rate_waits_and_is_not_counted(self, stage: Stage) -> None:
        """Line 72: of an hour's three no fourth begins; a stop gives the rest back, in its order, in the first attempt."""
        topic, group = stage.topic(), stage.group()
        limit = throttle(3, per=3600)
        throttled = Recorder()
        consumer = await stage.consume(topic, group, throttled, retry=ONCE, middleware=[limit])
        await stage.publish(topic, *(b"%d" % number for number in range(8)), key=b"k")
        await throttled.until_done(3, stage.patience)
        await eventually(lambda: limit.state == "throttling", stage.patience, "the next one waits")
        await consumer.stop()
        recorder = await stage.record(topic, group, retry=ONCE)
        await recorder.until_done(5, stage.patience)

        assert throttled.values + recorder.values == [b"%d" % number for number in range(8)]
        assert set(throttled.attempts) | set(recorder.attempts) == {1}
        await stage.until_lag(topic, group, 0)

    async def test_what_comes_twice_is_handled_once(self, stage: Stage) -> None:
        """Line 73: under one id, it is acknowledged without a call the second time; another group has its own marks."""
        topic, groups = stage.topic(), [stage.group(), stage.group("shipping")]
        store = MemoryStore()
        recorders = [await stage.record(topic, group, middleware=[deduplicate(store)]) for group in groups]
        twice = Message(topic, b"twice", key=b"k", id=stage.name("twice"))
        for message in (twice, twice, Message(topic, b"last", key=b"k")):
            await stage.broker.producer().publish(message)
        for recorder in recorders:
            await recorder.until_done(2, stage.patience)

        for group, recorder in zip(groups, recorders, strict=True):
            assert recorder.values == [b"twice", b"last"]
            await stage.until_lag(topic, group, 0)
            assert len(recorder.began) == 2

    async def test_a_paused_consumer_begins_nothing_until_it_is_resumed(self, stage: Stage) -> None:
        """Line 74: another group goes on meanwhile; afterwards all comes in its order and uncounted."""
        topic, group = stage.topic(), stage.group()
        recorder, other = Recorder(), await stage.record(topic, stage.group("shipping"))
        consumer = await stage.consume(topic, group, recorder, retry=ONCE)
        await stage.publish(topic, b"before", key=b"k")
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)
        consumer.pause()
        await stage.publish(topic, b"1", b"2", key=b"k")
        await other.until_done(3, stage.patience)
        await stage.until_lag(topic, group, 2)
        assert recorder.values == [b"before"]
        assert (await stage.broker.health()).ok
        consumer.resume()
        await recorder.until_done(3, stage.patience)

        assert recorder.values == [b"before", b"1", b"2"]
        assert set(recorder.attempts) == {1}
        await stage.until_lag(topic, group, 0)
