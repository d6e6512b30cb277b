"""Handlers that do what no handler should: line 48."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from things_kit import ConfigError, Message
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.conformance.worker import EXIT

_told: ContextVar[str] = ContextVar("told", default="nothing")


def _generator(message: Message) -> Iterator[None]:
    yield


async def _asynchronous_generator(message: Message) -> AsyncIterator[None]:
    yield


class _Object:
    async def handle(self, message: Message) -> AsyncIterator[None]:
        yield


class HandlerSuite(Suite):
    """Whatever a handler does, it harms nobody but its own message."""

    @pytest.mark.parametrize("handler", [_generator, _asynchronous_generator, _Object()])
    async def test_a_handler_that_yields_is_refused(self, stage: Stage, handler: Callable[..., Any]) -> None:
        """Line 48: it would never run, and each message would count as handled."""
        with pytest.raises(ConfigError, match="generator"):
            await stage.consume(stage.topic(), stage.group(), handler)

    async def test_a_handler_that_exits_has_failed_and_its_process_goes_on(self, stage: Stage) -> None:
        """Line 48: `sys.exit` in a handler is tried again, then a dead letter; the same process handles the next."""
        topic, group = stage.topic(), stage.group()
        worker = await stage.worker(topic, group, short_lease=False, attempts=2)
        [bad] = await stage.publish(topic, EXIT, key=b"k")
        [good] = await stage.publish(topic, b"fine", key=b"k")
        await eventually(
            lambda: worker.history.ids("done") == [good.id] or not worker.alive,
            stage.patience,
            "the next is handled",
        )
        assert worker.alive, f"it ended the process, which said: {worker.complaints()}"
        assert worker.history.ids("began") == [bad.id, bad.id, good.id]
        [dead] = await stage.dead_letters(topic, 1)
        assert (dead.id, dead.headers["attempts"]) == (bad.id, "2")
        assert dead.headers["error-type"].endswith("SystemExit")

    async def test_a_handler_that_cancels_its_own_task_has_failed(self, stage: Stage) -> None:
        """Line 48: nobody stops the consumer, so it is tried again."""
        topic, group = stage.topic(), stage.group()

        async def act(message: Message) -> None:
            if message.value == b"cancels" and message.attempt == 1:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)

        recorder = await stage.record(topic, group, act)
        await stage.publish(topic, b"cancels", b"next", key=b"k")
        await recorder.until_done(2, stage.patience)
        assert [(m.value, m.attempt) for m in recorder.began] == [
            (b"cancels", 1),
            (b"cancels", 2),
            (b"next", 1),
        ]
        await stage.until_lag(topic, group, 0)

    async def test_what_a_handler_puts_into_context_variables_is_unseen_by_the_next(
        self, stage: Stage
    ) -> None:
        """Line 48: a tenant, a trace or a log's fields are of one message only, also when it failed."""
        topic = stage.topic()
        seen: list[str] = []

        async def act(message: Message) -> None:
            seen.append(_told.get())
            _told.set("a secret of this message")
            if message.value == b"fails" and message.attempt == 1:
                raise ValueError("once")

        recorder = Recorder(act)
        await stage.consume(topic, stage.group(), recorder)
        await stage.publish(topic, b"1", b"fails", b"3", key=b"k")
        await recorder.until_done(3, stage.patience)
        assert seen == ["nothing"] * 4
