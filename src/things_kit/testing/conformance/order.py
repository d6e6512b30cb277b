"""Order: lines 26 to 28: what is handled one after another, whatever fails in between."""

import asyncio
import random
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit import Message, Retry, RetryPolicy
from things_kit.testing.conformance.base import Suite, random_plans
from things_kit.testing.conformance.history import History, assert_lanes
from things_kit.testing.conformance.recorder import Recorder, always_failing
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually, never

ATTEMPTS = 3
SHORT = RetryPolicy(attempts=ATTEMPTS, first=0.005, factor=2.0, limit=0.02, jitter=0.5)

steps = st.lists(st.tuples(st.integers(0, 4), st.integers(0, ATTEMPTS)), min_size=1, max_size=40)
"""Messages in order: the key of each, and how often it fails; as often as there are attempts: for good."""


def _plan(topic: str, plan: list[tuple[int, int]]) -> tuple[list[Message], dict[str, int]]:
    messages = [
        Message(topic, b"x", key=b"k%d" % key, id=f"{n}-{uuid4().hex}") for n, (key, _) in enumerate(plan)
    ]
    return messages, {message.id or "": fails for message, (_, fails) in zip(messages, plan, strict=True)}


def _lanes(messages: list[Message]) -> dict[object, list[str]]:
    lanes: dict[object, list[str]] = {}
    for message in messages:
        lanes.setdefault(message.key, []).append(message.id or "")
    return lanes


class Unreliable:
    """An act that fails each message's first attempts, as often as its plan says, after a moment's work."""

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}

    async def __call__(self, message: Message) -> None:
        """Yield to others, then fail or not."""
        for _ in range(random.randrange(4)):  # noqa: S311 - any interleaving will do
            await asyncio.sleep(0)
        if message.attempt <= self.fails[message.id or ""]:
            raise ValueError("as planned")


class OrderSuite(Suite):
    """The order of a key, or of a partition, survives concurrency, failures and back-offs."""

    async def test_a_partition_is_handled_in_strict_order_through_retries(self, stage: Stage) -> None:
        """Line 26: with concurrency and many keys, nothing passes a message that failed."""
        topic, group = stage.topic(), stage.group()
        act = Unreliable()
        recorder = Recorder(act)
        chance = random.Random(26)  # noqa: S311
        messages, act.fails = _plan(
            topic, [(chance.randrange(8), chance.choice([0, 0, 0, 1, 2, ATTEMPTS])) for _ in range(80)]
        )
        await stage.consume(topic, group, recorder, ordering="partition", concurrency=4, retry=SHORT)
        for start in range(0, len(messages), 20):
            await stage.publish_all(messages[start : start + 20])
        await stage.until_lag(topic, group, 0)
        await eventually(
            lambda: len(recorder.ids) == sum(f < ATTEMPTS for f in act.fails.values()), stage.patience
        )
        lanes: dict[object, list[str]] = {}
        for message in recorder.began if stage.capabilities.partitions else messages:
            ids = lanes.setdefault(message.partition, [])
            if message.id not in ids:
                ids.append(message.id or "")
        assert_lanes(recorder.history, lanes, attempts=ATTEMPTS)

    @random_plans
    @given(plan=steps)
    async def test_a_key_keeps_its_order_through_any_failures(
        self, stage: Stage, plan: list[tuple[int, int]]
    ) -> None:
        """Line 27: with concurrency 16; one at a time, and none before the earlier ones are done or dead."""
        topic = stage.name("orders") + uuid4().hex[:6]
        stage.sweep(topic, f"{topic}-dlq")
        act = Unreliable()
        recorder = Recorder(act)
        messages, act.fails = _plan(topic, plan)
        consumer = await stage.consume(topic, stage.group(), recorder, concurrency=16, retry=SHORT)
        await stage.publish_all(messages)
        expected = sum(min(fails + 1, ATTEMPTS) for fails in act.fails.values())
        await eventually(lambda: len(recorder.began) - recorder.running >= expected, stage.patience)
        await stage.until_lag(topic, stage.group(), 0)
        await consumer.stop()
        assert len(recorder.began) == expected
        assert_lanes(recorder.history, _lanes(messages), attempts=ATTEMPTS)

    async def test_keys_keep_their_order_across_the_consumers_of_a_group(self, stage: Stage) -> None:
        """Line 27: two connections with concurrency 16 each, and failures in between."""
        if not (stage.capabilities.lanes or stage.capabilities.partitions):
            pytest.skip("this broker promises no order across consumers")
        topic, group = stage.topic(), stage.group()
        history, act, other = History(), Unreliable(), await stage.open()
        chance = random.Random(27)  # noqa: S311
        messages, act.fails = _plan(
            topic, [(chance.randrange(30), chance.choice([0] * 8 + [1, 2, ATTEMPTS])) for _ in range(400)]
        )
        for name, broker in (("first", stage.broker), ("second", other)):
            recorder = Recorder(act, history=history, name=name)
            await stage.consume(
                topic, group, recorder, broker=broker, concurrency=16, retry=SHORT, max_in_flight=40
            )
        for start in range(0, len(messages), 50):
            await stage.publish_all(messages[start : start + 50])
        expected = sum(fails < ATTEMPTS for fails in act.fails.values())
        await eventually(
            lambda: len(set(history.ids("done"))) == expected, 4 * stage.patience, "all are handled"
        )
        await stage.until_lag(topic, group, 0)
        assert_lanes(history, _lanes(messages), attempts=ATTEMPTS)
        assert history.duplicates() == {}

    async def test_concurrent_publishes_of_one_producer_keep_the_order_of_a_key(self, stage: Stage) -> None:
        """Line 27: the order in which publish was called, though the calls are gathered into batches."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        messages = [Message(topic, b"%d" % n, key=b"k") for n in range(300)]
        producer = stage.broker.producer()
        await asyncio.gather(*(producer.publish(message) for message in messages))
        await recorder.until_done(300, stage.patience)
        assert recorder.values == [message.value for message in messages]

    async def test_a_key_in_back_off_holds_back_only_itself(self, stage: Stage) -> None:
        """Line 28: with concurrency 1 and an hour's back-off the other keys go on, and stopping does not wait for it."""
        topic, group = stage.topic(), stage.group()
        passed_by = asyncio.Event()

        async def act(message: Message) -> None:
            if message.value == b"bad":
                raise Retry(after=3600)
            if message.value == b"behind":
                passed_by.set()

        recorder = Recorder(act)
        consumer = await stage.consume(topic, group, recorder)
        await stage.publish(topic, b"bad", b"behind", key=b"a")
        await recorder.until_began(1, stage.patience)
        for key in (b"b", b"c", None):
            await stage.publish(topic, *(b"%d" % n for n in range(20)), key=key)
        await recorder.until_done(60, stage.patience)
        await never(passed_by, 0.3, "a later message of the key in back-off is handled")
        await stage.until_lag(topic, group, 2)
        await asyncio.wait_for(consumer.stop(), stage.patience)
        assert len(recorder.began) == 61

    async def test_many_keys_in_back_off_hold_back_nobody(self, stage: Stage) -> None:
        """Line 28: more of them than max_in_flight would hold, where the broker keeps the lanes."""
        if not stage.capabilities.lanes:
            pytest.skip(
                "this broker does not keep back-offs, so the consumer holds them, up to max_in_flight"
            )
        topic, group = stage.topic(), stage.group()

        async def act(message: Message) -> None:
            if message.value == b"bad":
                raise Retry(after=3600)

        recorder = Recorder(act)
        await stage.consume(topic, group, recorder, max_in_flight=10)
        await stage.publish_all([Message(topic, b"bad", key=b"bad-%d" % n) for n in range(30)])
        await stage.publish(topic, b"good", key=b"good")
        await recorder.until_done(1, stage.patience)
        assert recorder.values == [b"good"]
        await stage.until_lag(topic, group, 30)

    async def test_a_dead_message_lets_its_key_go_on_in_order(self, stage: Stage) -> None:
        """Line 27: the next one begins once the dead letter is safe."""
        topic, group = stage.topic(), stage.group()

        async def act(message: Message) -> None:
            if message.value == b"2":
                await always_failing(message)

        recorder = await stage.record(topic, group, act, retry=SHORT, concurrency=4)
        await stage.publish(topic, b"1", b"2", b"3", b"4", key=b"k")
        await recorder.until_done(3, stage.patience)
        assert [message.value for message in recorder.began] == [b"1", b"2", b"2", b"2", b"3", b"4"]
        await stage.until_lag(topic, group, 0)
