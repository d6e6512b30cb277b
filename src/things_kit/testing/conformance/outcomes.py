"""Outcomes: lines 14 to 18, 21, 22, 24 and 25: what becomes of a message by what its handler answers."""

import asyncio
import logging
import threading
from datetime import timedelta

import msgspec
import pytest

from things_kit import DISCARD, Batch, BatchError, DecodeError, Message, Reject, Retry, RetryPolicy
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Gate, Recorder, always_failing, failing
from things_kit.testing.conformance.stage import QUICK, Stage
from things_kit.testing.conformance.waiting import eventually, never

EARLY = 0.02
"""How much earlier than asked an attempt may seem to begin: clocks are rounded."""

LATE = 2.0
"""How much later than asked it may begin, on a busy machine."""


class Order(msgspec.Struct):
    """A payload that not every value is."""

    number: int


class Hopeless(Exception):
    """An error for which trying again cannot help."""


def _waits(recorder: Recorder) -> list[float]:
    """Seconds between each failure and the attempt after it, of a recorder of one message."""
    return [
        began - failed for failed, began in zip(recorder.failed_at, recorder.started_at[1:], strict=False)
    ]


class OutcomeSuite(Suite):
    """A handler's answer decides: again, later, never, or done."""

    async def test_a_failing_message_is_tried_again_after_growing_waits(self, stage: Stage) -> None:
        """Line 14: as often as the policy says, each wait longer by the factor, then it is a dead letter."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=4, first=0.1, factor=2.0, limit=10.0, jitter=0.0)
        recorder = await stage.record(topic, group, always_failing, retry=policy)
        [sent] = await stage.publish(topic, b"x", key=b"k")
        [dead] = await stage.dead_letters(topic, 1)
        assert recorder.attempts == [1, 2, 3, 4]
        assert {message.id for message in recorder.began} == {sent.id} == {dead.id}
        for wait, expected in zip(_waits(recorder), (0.1, 0.2, 0.4), strict=True):
            assert expected - EARLY <= wait <= expected + LATE
        await stage.until_lag(topic, group, 0)

    async def test_a_wait_grows_no_further_than_the_limit(self, stage: Stage) -> None:
        """Line 14: six attempts at a limit of a tenth of a second take no three seconds."""
        topic = stage.topic()
        policy = RetryPolicy(attempts=6, first=0.05, factor=100.0, limit=0.1, jitter=0.0)
        recorder = await stage.record(topic, stage.group(), failing(5), retry=policy)
        await stage.publish(topic, b"x")
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == [1, 2, 3, 4, 5, 6]
        assert max(_waits(recorder)) < LATE

    async def test_a_message_without_a_key_is_tried_again_as_well(self, stage: Stage) -> None:
        """Line 14: and others without a key pass it."""
        topic, group, passed = stage.topic(), stage.group(), asyncio.Event()

        async def act(message: Message) -> None:
            if message.value == b"good":
                passed.set()
            elif message.attempt < 3:
                raise ValueError("not yet")
            else:
                await passed.wait()

        recorder = await stage.record(topic, group, act, concurrency=2)
        await stage.publish(topic, b"bad", b"good")
        await recorder.until_done(2, stage.patience)
        assert recorder.values == [b"good", b"bad"]
        assert [m.attempt for m in recorder.began if m.value == b"bad"] == [1, 2, 3]
        await stage.until_lag(topic, group, 0)

    @pytest.mark.parametrize("after", [0.3, timedelta(milliseconds=300)], ids=["seconds", "timedelta"])
    async def test_retry_after_brings_the_message_again_then(
        self, stage: Stage, after: float | timedelta
    ) -> None:
        """Line 15: not before, whatever the policy says, and as the next attempt."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=3, first=0.0, limit=0.0, jitter=0.0)
        recorder = await stage.record(topic, group, failing(1, lambda: Retry(after=after)), retry=policy)
        await stage.publish(topic, b"x", key=b"k")
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == [1, 2]
        [wait] = _waits(recorder)
        assert 0.3 - EARLY <= wait <= 0.3 + LATE
        await stage.until_lag(topic, group, 0)

    async def test_retry_counts_as_an_attempt(self, stage: Stage) -> None:
        """Line 15: so a handler that always asks for another one is not asked for ever."""
        topic, group = stage.topic(), stage.group()

        async def again(message: Message) -> None:
            raise Retry(after=0.01)

        recorder = await stage.record(topic, group, again, retry=QUICK)
        await stage.publish(topic, b"x")
        [dead] = await stage.dead_letters(topic, 1)
        assert recorder.attempts == [1, 2, 3]
        assert dead.headers["attempts"] == "3"

    async def test_a_rejected_message_is_a_dead_letter_at_once(self, stage: Stage) -> None:
        """Line 16: Reject is not tried again."""
        topic, group = stage.topic(), stage.group()

        async def reject(message: Message) -> None:
            raise Reject("no such customer")

        recorder = await stage.record(topic, group, reject)
        await stage.publish(topic, b"x", key=b"k")
        [dead] = await stage.dead_letters(topic, 1)
        assert recorder.attempts == [1]
        assert (dead.headers["attempts"], dead.headers["error"]) == ("1", "no such customer")
        await stage.until_lag(topic, group, 0)

    async def test_a_permanent_error_makes_a_dead_letter_at_once(self, stage: Stage) -> None:
        """Line 16: so do its subclasses; other errors are tried again."""
        topic, group = stage.topic(), stage.group()

        class Worse(Hopeless):
            pass

        async def act(message: Message) -> None:
            raise {b"permanent": Hopeless, b"worse": Worse, b"other": ValueError}[message.value]("no")

        policy = RetryPolicy(attempts=2, first=0.01, jitter=0.0, permanent=(Hopeless,))
        recorder = await stage.record(topic, group, act, retry=policy)
        await stage.publish(topic, b"permanent", b"worse", b"other")
        dead = await stage.dead_letters(topic, 3)
        counts = {message.value: message.headers["attempts"] for message in dead}
        assert counts == {b"permanent": "1", b"worse": "1", b"other": "2"}
        assert len(recorder.began) == 4

    async def test_an_undecodable_message_is_a_dead_letter_at_once(self, stage: Stage) -> None:
        """Line 16: the handler never sees it; the next message is handled."""
        topic, group = stage.topic(), stage.group()
        seen: list[Order] = []

        async def handle(order: Order) -> None:
            seen.append(order)

        await stage.consume(topic, group, handle)
        await stage.publish(topic, b"no json", b'{"number": "text"}', b'{"number": 7}')
        await stage.publish(topic, b"{}", headers={"content-type": "application/x-nobody-knows"})
        dead = await stage.dead_letters(topic, 3)
        assert {message.value for message in dead} == {b"no json", b'{"number": "text"}', b"{}"}
        assert {message.headers["attempts"] for message in dead} == {"1"}
        assert {message.headers["error-type"].rpartition(".")[2] for message in dead} == {
            DecodeError.__name__
        }
        await stage.until_lag(topic, group, 0)
        assert seen == [Order(7)]

    async def test_a_handler_that_overruns_its_timeout_is_cancelled_and_tried_again(
        self, stage: Stage
    ) -> None:
        """Line 17: an overrun is a failure like any other."""
        topic, group = stage.topic(), stage.group()

        async def act(message: Message) -> None:
            if message.attempt == 1:
                await asyncio.Event().wait()

        recorder = await stage.record(topic, group, act, timeout=0.2)
        await stage.publish(topic, b"x")
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == [1, 2]
        [(_, error)] = recorder.failed
        assert isinstance(error, asyncio.CancelledError)
        took = recorder.failed_at[0] - recorder.started_at[0]
        assert 0.2 - EARLY <= took <= 0.2 + LATE
        await stage.until_lag(topic, group, 0)

    async def test_a_handler_that_always_overruns_makes_a_dead_letter(self, stage: Stage) -> None:
        """Line 17: after its last attempt, and it says why."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, Gate(), timeout=0.05)
        await stage.publish(topic, b"x")
        [dead] = await stage.dead_letters(topic, 1)
        assert recorder.attempts == [1, 2, 3]
        assert "timeout" in dead.headers["error-type"].lower()
        await stage.until_lag(topic, group, 0)

    async def test_a_handler_that_is_cancelled_by_stop_has_not_failed(self, stage: Stage) -> None:
        """Line 18: three stops in the middle of the only attempt it may have, and it is still attempt 1."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=1, first=0.01, jitter=0.0)
        hanging = Recorder(Gate())
        dead = await stage.record(f"{topic}-dlq", "dead-letters", dead_letter=None)
        for round_ in range(1, 4):
            consumer = await stage.consume(topic, group, hanging, retry=policy, drain_timeout=0.05)
            if round_ == 1:
                await stage.publish(topic, b"x", key=b"k")
            await hanging.until_began(round_, stage.patience)
            await consumer.stop()
            assert isinstance(hanging.failed[-1][1], asyncio.CancelledError)
        await stage.until_lag(topic, group, 1)
        recorder = await stage.record(topic, group, retry=policy)
        await recorder.until_done(1, stage.patience)
        assert hanging.attempts == [1, 1, 1]
        assert recorder.attempts == [1]
        await stage.until_lag(topic, group, 0)
        assert dead.began == []

    async def test_attempts_are_kept_when_the_consumer_stops_between_them(self, stage: Stage) -> None:
        """Line 18: a real failure is remembered by brokers that can; by others the count begins anew."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=3, first=0.3, jitter=0.0)

        async def act(message: Message) -> None:
            if message.attempt == 1:
                raise ValueError("as told")
            await asyncio.Event().wait()  # where a second begins before the stop, that ends it uncounted

        failed = Recorder(act)
        consumer = await stage.consume(topic, group, failed, retry=policy, drain_timeout=0.0)
        await stage.publish(topic, b"x")
        await eventually(lambda: failed.failed, stage.patience, "the first attempt fails")
        await consumer.stop()
        assert failed.attempts in ([1], [1, 2])
        recorder = await stage.record(topic, group, retry=policy)
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == [2 if stage.capabilities.attempts else 1]

    async def test_a_handler_that_cancels_itself_has_failed(self, stage: Stage) -> None:
        """Line 18: CancelledError with nobody stopping is an ordinary failure, and the consumer goes on."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, failing(1, asyncio.CancelledError))
        await stage.publish(topic, b"x")
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == [1, 2]
        await stage.until_lag(topic, group, 0)

    @pytest.mark.parametrize("answer", [ValueError("no"), Reject("no")], ids=["failure", "reject"])
    async def test_without_a_dead_letter_a_message_is_tried_for_ever(
        self, stage: Stage, answer: Exception
    ) -> None:
        """Line 21: well past the policy's attempts, and it is not acknowledged until it succeeds."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=2, first=0.01, factor=2.0, limit=0.05, jitter=0.0)
        healed = asyncio.Event()

        async def act(message: Message) -> None:
            if not healed.is_set():
                raise answer

        recorder = await stage.record(topic, group, act, retry=policy, dead_letter=None)
        await stage.publish(topic, b"x", key=b"k")
        await recorder.until_began(8, stage.patience)
        await stage.until_lag(topic, group, 1)
        healed.set()
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == list(range(1, len(recorder.began) + 1))
        await stage.until_lag(topic, group, 0)

    async def test_discard_logs_and_acknowledges_what_failed_for_good(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Line 22: after all attempts; nothing is left of it but the log."""
        topic, group = stage.topic(), stage.group()
        with caplog.at_level(logging.INFO, logger="things_kit"):
            recorder = await stage.record(topic, group, always_failing, dead_letter=DISCARD)
            [sent] = await stage.publish(topic, b"x", key=b"k")
            await recorder.until_began(3, stage.patience)
            await stage.until_lag(topic, group, 0)
        assert recorder.attempts == [1, 2, 3]
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert any(str(sent.id) in text or topic in text for text in said)

    async def test_only_what_a_batch_handler_names_has_failed(self, stage: Stage) -> None:
        """Line 24: the others of the list are acknowledged; Reject and Retry mean there what they always do."""
        topic, group = stage.topic(), stage.group()
        seen: list[list[bytes]] = []
        answers: dict[bytes, BaseException] = {
            b"3": ValueError("no"),
            b"5": Reject("never"),
            b"7": Retry(after=0.01),
        }

        async def handle(messages: list[Message]) -> None:
            seen.append([message.value for message in messages])
            errors = {
                index: answers[message.value]
                for index, message in enumerate(messages)
                if message.value in answers and message.attempt == 1
            }
            if errors:
                raise BatchError(errors)

        await stage.consume(topic, group, handle, batch=Batch(size=10, wait=0.2))
        await stage.publish_all([Message(topic, b"%d" % n, key=b"%d" % n) for n in range(10)])
        await stage.until_lag(topic, group, 0)
        [dead] = await stage.dead_letters(topic, 1)
        await eventually(lambda: sum(map(len, seen)) >= 12, stage.patience, "the failed come again")
        handled = [value for values in seen for value in values]
        assert dead.value == b"5"
        assert sorted(handled) == sorted([b"%d" % n for n in range(10)] + [b"3", b"7"])
        assert max(map(len, seen)) <= 10
        assert any(len(values) > 1 for values in seen), "the handler got no list worth its name"

    async def test_a_batch_handler_that_raises_has_failed_for_all(self, stage: Stage) -> None:
        """Line 24: any other exception means every message of its list."""
        topic, group = stage.topic(), stage.group()
        attempts: list[tuple[bytes, int]] = []

        async def handle(messages: list[Message]) -> None:
            attempts.extend((message.value, message.attempt) for message in messages)
            if any(message.attempt == 1 for message in messages):
                raise ValueError("all of them")

        await stage.consume(
            topic, group, handle, batch=Batch(size=4, wait=0.05), retry=RetryPolicy(attempts=9, first=0.01)
        )
        await stage.publish_all([Message(topic, b"%d" % n, key=b"%d" % n) for n in range(4)])
        await eventually(lambda: len({v for v, attempt in attempts if attempt > 1}) == 4, stage.patience)
        await stage.until_lag(topic, group, 0)

    async def test_a_delayed_retry_lets_its_key_go_on(self, stage: Stage) -> None:
        """Line 25: the message is put aside; later ones of its key are handled before its next attempt."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=9, first=0.5, factor=1.0, jitter=0.0, mode="delayed")

        async def act(message: Message) -> None:
            if message.value == b"bad" and (message.attempt == 1 or len(recorder.done) < 2):
                raise ValueError("not yet")

        recorder = Recorder(act)
        await stage.consume(topic, group, recorder, retry=policy)
        await stage.publish(topic, b"bad", b"2", b"3", key=b"k")
        await recorder.until_done(3, stage.patience)
        assert recorder.values == [b"2", b"3", b"bad"]
        tried = [at for at, message in enumerate(recorder.began) if message.value == b"bad"]
        assert [recorder.attempts[at] for at in tried] == list(range(1, len(tried) + 1))
        assert len(tried) > 1
        for failed, again in zip(recorder.failed_at, tried[1:], strict=True):
            assert recorder.started_at[again] - failed >= 0.5 - EARLY
        await stage.until_lag(topic, group, 0)

    async def test_a_delayed_retry_ends_as_a_dead_letter_too(self, stage: Stage) -> None:
        """Line 25: its attempts are counted."""
        topic, group = stage.topic(), stage.group()
        policy = RetryPolicy(attempts=3, first=0.05, factor=1.0, jitter=0.0, mode="delayed")
        recorder = await stage.record(topic, group, always_failing, retry=policy)
        [sent] = await stage.publish(topic, b"x", key=b"k")
        [dead] = await stage.dead_letters(topic, 1)
        assert recorder.attempts == [1, 2, 3]
        assert (dead.id, dead.headers["attempts"]) == (sent.id, "3")
        await stage.until_lag(topic, group, 0)

    async def test_a_hanging_thread_holds_its_worker(self, stage: Stage) -> None:
        """Line 17: it cannot be killed, so the overrun is reported and the worker waits until it returns."""
        topic, group = stage.topic(), stage.group()
        release = threading.Event()
        began: list[tuple[bytes, int]] = []
        second = asyncio.Event()
        loop = asyncio.get_running_loop()

        def handle(message: Message) -> None:
            began.append((message.value, message.attempt))
            if message.value == b"hangs" and message.attempt == 1:
                release.wait(60)
            else:
                loop.call_soon_threadsafe(second.set)

        await stage.consume(topic, group, handle, timeout=0.1)
        await stage.publish(topic, b"hangs")
        try:
            await eventually(lambda: began, stage.patience, "it begins")
            await stage.publish(topic, b"next")
            await never(second, 0.5, "the worker is used while its thread hangs")
        finally:
            release.set()
        await eventually(lambda: (b"next", 1) in began and (b"hangs", 2) in began, stage.patience)
        await stage.until_lag(topic, group, 0)
