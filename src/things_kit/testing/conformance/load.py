"""Load: lines 29 to 32: as much at once as was asked for, no more, and nothing slips away meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from uuid import uuid4

import pytest

from things_kit import Broker, ConsumerHealth, Message, Retry, RetryPolicy
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.history import History
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually, never, throughout


def _keyed(topic: str, count: int, value: bytes = b"x") -> list[Message]:
    return [Message(topic, value, key=b"%d" % n, id=uuid4().hex) for n in range(count)]


async def _consumer_health(broker: Broker) -> ConsumerHealth:
    [health] = (await broker.health()).consumers
    return health


class LoadSuite(Suite):
    """Concurrency and memory have the bounds that were asked for; what takes long is not taken away."""

    @pytest.mark.parametrize("concurrency", [1, 7])
    async def test_as_many_handlers_run_as_asked_and_no_more(self, stage: Stage, concurrency: int) -> None:
        """Line 29: reached while there is work, and never passed, also when failures come again."""
        topic, group = stage.topic(), stage.group()
        gate = Gate()

        async def act(message: Message) -> None:
            await gate(message)
            if message.attempt == 1 and message.value == b"x":
                raise ValueError("once")

        recorder = await stage.record(topic, group, act, concurrency=concurrency)
        await stage.publish_all(_keyed(topic, 40) + _keyed(topic, 40, b"y"))
        await recorder.until_began(concurrency, stage.patience)
        await throughout(lambda: recorder.running == concurrency, 0.2)
        gate.open()
        await recorder.until_done(80, stage.patience)
        assert recorder.peak == concurrency
        await stage.until_lag(topic, group, 0)

    async def test_a_slow_handler_bounds_what_is_held(self, stage: Stage) -> None:
        """Line 30: no more than max_in_flight is taken from the broker; the rest stays there, and lags."""
        topic, group = stage.topic(), stage.group()
        gate = Gate()
        recorder = await stage.record(topic, group, gate, concurrency=2, max_in_flight=10)
        await stage.publish_all(_keyed(topic, 200, b"x" * 1000))
        await recorder.until_began(2, stage.patience)

        async def bounded() -> bool:
            return 2 <= (await _consumer_health(stage.broker)).in_flight <= 10

        await throughout(bounded, 0.5, "in_flight is within max_in_flight")
        await stage.until_lag(topic, group, 200)
        gate.open()
        await recorder.until_done(200, stage.patience)
        await stage.until_lag(topic, group, 0)
        await eventually(self._nothing_held(stage), stage.patience, "nothing is in flight")

    def _nothing_held(self, stage: Stage) -> Callable[[], Awaitable[bool]]:
        async def nothing_held() -> bool:
            health = await _consumer_health(stage.broker)
            return health.in_flight == 0 and health.oldest_in_flight is None

        return nothing_held

    async def test_what_a_slow_consumer_does_not_hold_goes_to_others(self, stage: Stage) -> None:
        """Line 30: back-pressure reaches the broker: a second consumer handles all but what the first holds."""
        if stage.capabilities.partitions:
            pytest.skip("here a consumer owns partitions, and what is in them waits for it")
        topic, group = stage.topic(), stage.group()
        gate = Gate()
        slow = await stage.record(topic, group, gate, max_in_flight=10)
        await stage.publish_all(_keyed(topic, 100))
        await slow.until_began(1, stage.patience)
        quick = await stage.record(topic, group, broker=await stage.open())
        await quick.until_done(90, stage.patience)
        assert len(slow.began) == 1
        gate.open()
        await eventually(lambda: len(slow.done) + len(quick.done) == 100, stage.patience)
        assert not slow.ids & quick.ids

    async def test_a_handler_longer_than_the_lease_keeps_its_message(self, stage: Stage) -> None:
        """Line 31: neither it nor what waits behind it in the buffer is delivered to another consumer."""
        topic, group = stage.topic(), stage.group()
        first, second, lease = await self._two_of_a_group(stage)
        gate = Gate()
        history, twice = History(), asyncio.Event()

        async def intrude(message: Message) -> None:
            twice.set()

        slow = Recorder(gate, history=history)
        consumer = await stage.consume(topic, group, slow, broker=first, concurrency=3)
        sent = await stage.publish(topic, b"1", b"2", b"3", key=b"k")
        await eventually(
            lambda: consumer.health().in_flight == 3, stage.patience, "all are here, two behind one"
        )
        await stage.consume(topic, group, Recorder(intrude, history=history), broker=second)
        await never(
            twice, 3 * lease, "a message in its handler, or behind it, is delivered to another consumer"
        )
        gate.open()
        await eventually(lambda: len(set(history.ids("done"))) == 3, stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert history.ids("done") == [message.id for message in sent]
        assert history.ids("began") == history.ids("done")

    async def test_what_waits_for_its_turn_is_leased_as_well(self, stage: Stage) -> None:
        """Line 46: behind a slow handler, with and without a key, for longer than a lease: nothing comes twice."""
        topic, group = stage.topic(), stage.group()
        first, second, lease = await self._two_of_a_group(stage)
        gate, history = Gate(), History()
        slow, quick = (Recorder(act, history=history) for act in (gate, None))
        await stage.consume(topic, group, slow, broker=first, concurrency=2, max_in_flight=40)
        keyed = [Message(topic, b"x", key=b"k", id=uuid4().hex) for _ in range(10)]
        free = [Message(topic, b"x", id=uuid4().hex) for _ in range(20)]
        await stage.publish_all([*keyed, *free])
        await slow.until_began(2, stage.patience)
        await stage.consume(topic, group, quick, broker=second, concurrency=2)

        def once() -> bool:
            began = history.ids("began")
            return len(set(began)) == len(began)

        await throughout(once, 3 * lease, "what waits for its turn is delivered to nobody else")
        gate.open()
        await eventually(lambda: len(set(history.ids("done"))) == 30, stage.patience, "all are handled")
        await stage.until_lag(topic, group, 0)
        assert history.duplicates() == {}
        assert {message.attempt for message in (*slow.began, *quick.began)} == {1}

    async def test_a_long_back_off_keeps_its_message_and_its_group(self, stage: Stage) -> None:
        """Line 32: for longer than a lease it waits, others are handled meanwhile, and it comes again when it should."""
        topic, group = stage.topic(), stage.group()
        first, second, lease = await self._two_of_a_group(stage)
        pause = 3 * lease
        history = History()
        loop = asyncio.get_running_loop()
        times: list[tuple[int, float]] = []
        others_done = asyncio.Event()

        async def act(message: Message) -> None:
            if message.value == b"bad":
                times.append((message.attempt, loop.time()))
                if len(times) == 1 or not others_done.is_set():
                    raise Retry(after=pause)

        for broker in (first, second):
            await stage.consume(
                topic, group, Recorder(act, history=history), broker=broker, retry=RetryPolicy(attempts=9)
            )
        [bad, _] = await stage.publish(topic, b"bad", b"behind", key=b"k")
        await eventually(lambda: len(times) == 1, stage.patience, "the first attempt")
        others = await stage.publish(topic, *(b"%d" % n for n in range(20)), key=b"other")
        await eventually(
            lambda: {m.id for m in others} <= set(history.ids("done")),
            stage.patience,
            "others are handled while it is in its back-off",
        )
        others_done.set()
        await eventually(lambda: bad.id in history.ids("done"), pause + stage.patience, "it comes again")
        assert all(later - earlier >= pause - 0.05 for (_, earlier), (_, later) in pairwise(times))
        same_consumer = (
            stage.capabilities.lanes or stage.capabilities.attempts or not stage.capabilities.delay
        )
        if same_consumer:
            assert [attempt for attempt, _ in times] == list(range(1, len(times) + 1))
        await eventually(
            lambda: len(set(history.ids("done"))) == 22, stage.patience, "the one behind it follows"
        )
        await stage.until_lag(topic, group, 0)
        assert history.duplicates() == {}

    async def _two_of_a_group(self, stage: Stage) -> tuple[Broker, Broker, float]:
        """Two connections with short leases, and the length of those; half a second where there are none."""
        first, second = [await stage.open(**stage.target.lease_options) for _ in range(2)]
        lease = first.capabilities.lease
        if lease is not None and lease > 20:
            pytest.skip(f"a lease of {lease:g} s is too long to outwait; give lease_options")
        return first, second, lease or 0.5
