"""Outcomes: lines 19, 20 and 23: what a dead letter says, what if there can be none, and the way back."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from things_kit import BrokerUnavailable, ConfigError, Message, Middleware, RetryPolicy
from things_kit.messaging.handler import HandleBatch
from things_kit.messaging.instrument import Endpoint, Send
from things_kit.messaging.names import DEAD_LETTER_GROUP, DEAD_LETTER_MARK
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder, always_failing
from things_kit.testing.conformance.stage import QUICK, Stage
from things_kit.testing.conformance.waiting import eventually

ONCE = RetryPolicy(attempts=1, first=0.01, jitter=0.0)
"""No second attempt: the first failure makes a dead letter."""


class OrderRefused(Exception):
    """An error of a user's own."""


class NoPublish:
    """An instrument under which one topic cannot be published to."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def sending(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """Fail what is for the topic, as if the broker were away."""

        def wrap(send: Send) -> Send:
            async def sending(messages: Sequence[Message]) -> dict[int, Exception]:
                if any(message.topic == self._topic for message in messages):
                    return dict.fromkeys(range(len(messages)), BrokerUnavailable("away, as told"))
                return await send(messages)

            return sending

        return wrap

    def handling(self, endpoint: Endpoint, group: str | None) -> Middleware:
        """Leave handling as it is."""
        return lambda handle: handle

    def handling_batches(self, endpoint: Endpoint, group: str | None) -> Callable[[HandleBatch], HandleBatch]:
        """Leave handling as it is."""
        return lambda handle: handle


def _time(text: str) -> datetime:
    """An RFC 3339 time; it must name its zone."""
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None, f"{text} has no zone"
    assert "T" in text
    return moment


class DeadLetterSuite(Suite):
    """A message that fails for good is kept whole, with its story, and can be sent back."""

    async def test_a_dead_letter_is_the_message_and_its_story(self, stage: Stage) -> None:
        """Line 19: same value, key, id and headers, and exactly the headers that tell what happened."""
        topic, group = stage.topic(), stage.group()

        async def refuse(message: Message) -> None:
            raise OrderRefused("credit of 5 € exceeded")

        recorder = await stage.record(topic, group, refuse, retry=QUICK)
        published = datetime(2021, 3, 4, 5, 6, 7, 891000, tzinfo=UTC)
        [sent] = await stage.publish(
            topic,
            b"\x00\xff",
            key=b"\xfe",
            headers={"type": "order.created", "наименование": "ö\n"},
            timestamp=published,
        )
        [dead] = await stage.dead_letters(topic, 1)
        original = recorder.began[0]
        now = datetime.now(UTC)
        headers = dict(dead.headers)
        assert abs(now - _time(headers.pop("timestamp"))) < timedelta(minutes=1)
        assert abs(_time(headers.pop("original-timestamp")) - published) < timedelta(milliseconds=1)
        expected = {
            "type": "order.created",
            "наименование": "ö\n",
            "original-topic": topic,
            "consumer-group": group,
            "attempts": "3",
            "error-type": f"{OrderRefused.__module__}.{OrderRefused.__qualname__}",
            "error": "credit of 5 € exceeded",
        }
        if original.partition is not None:
            expected["original-partition"] = str(original.partition)
        if original.offset is not None:
            expected["original-offset"] = str(original.offset)
        assert headers == expected
        assert (dead.topic, dead.value, dead.key, dead.id) == (f"{topic}-dlq", sent.value, sent.key, sent.id)
        await stage.until_lag(topic, group, 0)

    async def test_a_users_header_of_a_dead_letters_name_is_kept(self, stage: Stage) -> None:
        """Line 19: under another name, and replay gives it back."""
        topic, group = stage.topic(), stage.group()
        healed = asyncio.Event()

        async def act(message: Message) -> None:
            if not healed.is_set():
                raise ValueError("the kit's")

        reader = await stage.record(f"{topic}-dlq", stage.group("reader"))
        recorder = await stage.record(topic, group, act, retry=ONCE)
        mine = {"error": "the user's", "attempts": "many", "timestamp": "noon", "plain": "yes"}
        await stage.publish(topic, b"x", headers=mine)
        [dead] = await reader.until_done(1, stage.patience)
        kept = {name: dead.headers[f"original-header-{name}"] for name in ("error", "attempts", "timestamp")}
        assert kept == {name: mine[name] for name in kept}
        assert (dead.headers["error"], dead.headers["attempts"]) == ("the kit's", "1")
        assert (dead.headers["plain"], "original-header-plain" in dead.headers) == ("yes", False)
        await stage.until_lag(f"{topic}-dlq", "dead-letters", 1)
        healed.set()
        await self._replay(stage, topic, 1)
        [message] = await recorder.until_done(1, stage.patience)
        assert {name: value for name, value in message.headers.items() if name != "replay-group"} == mine

    async def test_a_dead_letters_error_is_at_most_a_kibibyte(self, stage: Stage) -> None:
        """Line 19: cut between characters, never within one."""
        topic = stage.topic()

        async def act(message: Message) -> None:
            raise ValueError("x" + "€" * 5000)

        await stage.record(topic, stage.group(), act, retry=ONCE)
        await stage.publish(topic, b"x")
        [dead] = await stage.dead_letters(topic, 1)
        error = dead.headers["error"]
        assert 900 <= len(error.encode()) <= 1024
        assert "�" not in error
        assert error.startswith("x€€")

    async def test_a_dead_letter_that_fails_keeps_its_first_origin(self, stage: Stage) -> None:
        """Line 19: the second dead letter names the second failure, and where the message came from at first."""
        topic, group, undertaker = stage.topic(), stage.group(), stage.group("undertaker")
        stage.sweep(f"{topic}-dlq-dlq")
        await stage.broker.declare(f"{topic}-dlq", groups=[undertaker])
        first = await stage.record(topic, group, always_failing, retry=ONCE)

        async def bury(message: Message) -> None:
            raise OrderRefused("even so")

        second = await stage.record(f"{topic}-dlq", undertaker, bury, retry=ONCE)
        [sent] = await stage.publish(topic, b"x", key=b"k", headers={"error": "mine"})
        [dead] = await stage.dead_letters(f"{topic}-dlq", 1)
        once = second.began[0].headers
        origins = {name for name in once if name.startswith("original-")}
        assert {"original-topic", "original-timestamp", "original-header-error"} <= origins
        assert {name: dead.headers[name] for name in origins} == {name: once[name] for name in origins}
        assert dead.headers["original-topic"] == topic
        assert (dead.headers["error"], dead.id, first.attempts) == ("even so", sent.id, [1])

    async def test_without_its_dead_letter_a_message_is_not_acknowledged(self, stage: Stage) -> None:
        """Line 20: its publish fails; so the message stays, and is tried again."""
        topic, group = stage.topic(), stage.group()
        broker = await stage.open()
        broker.instrument(NoPublish(f"{topic}-dlq"))
        healed = asyncio.Event()

        async def act(message: Message) -> None:
            if not healed.is_set():
                raise ValueError("no" * 500)

        recorder = await stage.record(
            topic, group, act, broker=broker, retry=RetryPolicy(attempts=1, first=0.01, limit=0.05)
        )
        await stage.publish(topic, b"x")
        await recorder.until_began(3, stage.patience)
        await stage.until_lag(topic, group, 1)
        await stage.until_lag(f"{topic}-dlq", "dead-letters", 0)
        healed.set()
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)

    async def test_replay_reaches_only_the_group_that_failed(self, stage: Stage) -> None:
        """Line 23: with its own headers, key and id; other groups neither handle it nor lag by it."""
        topic, group, other = stage.topic(), stage.group("billing"), stage.group("shipping")
        healed = asyncio.Event()

        async def act(message: Message) -> None:
            if not healed.is_set():
                raise ValueError("as told")

        recorder = await stage.record(topic, group, act, retry=ONCE)
        bystander = Recorder()
        consumer = await stage.consume(topic, other, bystander)
        [sent] = await stage.publish(topic, b"\xffx", key=b"k", headers={"type": "order"})
        await bystander.until_done(1, stage.patience)
        await recorder.until_began(1, stage.patience)
        await stage.until_lag(topic, group, 0)
        await stage.until_lag(f"{topic}-dlq", "dead-letters", 1)
        await stage.until_lag(topic, other, 0)
        if (
            stage.capabilities.targeted
        ):  # then the broker itself keeps it away, also while nobody is there to skip it
            await consumer.stop()
        healed.set()
        await self._replay(stage, topic, 1)
        [message] = await recorder.until_done(1, stage.patience)
        assert (message.topic, message.value, message.key, message.id) == (
            topic,
            sent.value,
            sent.key,
            sent.id,
        )
        assert {name: value for name, value in message.headers.items() if name != "replay-group"} == {
            "type": "order"
        }
        assert message.attempt == 1
        for of_topic, of_group in ((topic, group), (topic, other), (f"{topic}-dlq", "dead-letters")):
            await stage.until_lag(of_topic, of_group, 0)
        again = bystander if not stage.capabilities.targeted else await stage.record(topic, other)
        await stage.publish(topic, b"after", key=b"k")
        await eventually(lambda: again.values[-1:] == [b"after"], stage.patience)
        assert [value for value in bystander.values + again.values if value == sent.value] == [sent.value] * (
            1 if again is not bystander else 2
        )

    async def test_a_replayed_message_that_fails_again_is_a_dead_letter_again(self, stage: Stage) -> None:
        """Line 23: with the same story as at first, and without a trace of the replay."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, always_failing, retry=ONCE)
        [sent] = await stage.publish(topic, b"x", headers={"type": "order"})
        for round_ in (1, 2):
            await recorder.until_began(round_, stage.patience)
            await stage.until_lag(topic, group, 0)
            await stage.until_lag(f"{topic}-dlq", "dead-letters", 1)
            if round_ == 1:
                await self._replay(stage, topic, 1)
                await recorder.until_began(2, stage.patience)
        [dead] = await stage.dead_letters(topic, 1)
        assert (dead.id, dead.headers["original-topic"], dead.headers["type"]) == (sent.id, topic, "order")
        assert "replay-group" not in dead.headers
        assert not [name for name in dead.headers if name.startswith("original-header-")]

    async def test_replay_takes_as_many_as_it_is_told(self, stage: Stage) -> None:
        """Line 23: `limit` leaves the rest in the dead letter."""
        topic, recorder, healed = await self._five_dead_letters(stage)
        healed.set()
        await self._replay(stage, topic, 2, limit=2)
        await recorder.until_done(2, stage.patience)
        await stage.until_lag(f"{topic}-dlq", "dead-letters", 3)
        await self._replay(stage, topic, 3)
        await recorder.until_done(5, stage.patience)
        assert len(recorder.done) == 5
        await self._replay(stage, topic, 0)

    async def test_replay_leaves_what_where_does_not_choose(self, stage: Stage) -> None:
        """Line 23: `where` sees the dead letter."""
        topic, recorder, healed = await self._five_dead_letters(stage)
        healed.set()

        def chosen(dead: Message) -> bool:
            assert dead.headers["original-topic"] == topic
            return dead.value in {b"1", b"3"}

        await self._replay(stage, topic, 2, where=chosen)
        await recorder.until_done(2, stage.patience)
        assert sorted(recorder.values) == [b"1", b"3"]
        await stage.until_lag(f"{topic}-dlq", "dead-letters", 3)
        await self._replay(stage, topic, 3)
        await recorder.until_done(5, stage.patience)
        assert sorted(recorder.values) == [b"0", b"1", b"2", b"3", b"4"]

    async def test_replay_can_send_elsewhere(self, stage: Stage) -> None:
        """Line 23: `to` names the topic; there everybody gets it."""
        topic, recorder, healed = await self._five_dead_letters(stage)
        elsewhere = stage.topic("elsewhere")
        reader = await stage.record(elsewhere, stage.group("reader"))
        healed.set()
        await self._replay(stage, topic, 5, to=elsewhere)
        await reader.until_done(5, stage.patience)
        assert {message.topic for message in reader.done} == {elsewhere}
        assert all(not name.startswith("original-") for message in reader.done for name in message.headers)
        assert recorder.done == []

    async def test_a_bare_dead_letter_is_known_by_its_mark_which_no_handler_sees(self, stage: Stage) -> None:
        """Lines 23 and 50: what had room for a mark alone, replay can send elsewhere; a handler gets what the user sent."""
        topic, watchers = stage.topic(), stage.group("watchers")
        elsewhere = stage.topic("elsewhere")
        dead_letter = f"{topic}-dlq"
        await stage.broker.declare(dead_letter, groups=[DEAD_LETTER_GROUP])
        watcher = await stage.record(dead_letter, watchers)
        reader = await stage.record(elsewhere, stage.group("reader"))
        bare = Message(dead_letter, b"v", b"k", {"type": "order", DEAD_LETTER_MARK: ""}, id=uuid4().hex)
        await stage.broker.producer(insist=True).publish(bare)
        [watched] = await watcher.until_done(1, stage.patience)
        assert (watched.id, watched.headers) == (bare.id, {"type": "order"})
        with pytest.raises(ConfigError, match="does not say where it came from"):
            await stage.broker.replay(dead_letter)
        await self._replay(stage, topic, 1, to=elsewhere)
        [read] = await reader.until_done(1, stage.patience)
        assert (read.value, read.key, read.id, read.headers) == (b"v", b"k", bare.id, {"type": "order"})

    async def _five_dead_letters(self, stage: Stage) -> tuple[str, Recorder, asyncio.Event]:
        topic, group, healed = stage.topic(), stage.group(), asyncio.Event()

        async def act(message: Message) -> None:
            if not healed.is_set():
                raise ValueError("as told")

        recorder = await stage.record(topic, group, act, retry=ONCE)
        await stage.publish_all([Message(topic, b"%d" % n, key=b"%d" % n, id=uuid4().hex) for n in range(5)])
        await recorder.until_began(5, stage.patience)
        await stage.until_lag(topic, group, 0)
        return topic, recorder, healed

    async def _replay(self, stage: Stage, topic: str, count: int, **options: Any) -> None:
        replayed = await stage.broker.replay(f"{topic}-dlq", **options)
        assert replayed == count
