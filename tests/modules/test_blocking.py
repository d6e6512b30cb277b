"""A handler that holds up the event loop is named while it does."""

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest

from things_kit import App, Message, Producer
from things_kit.modules import config, memory
from things_kit.testing import MockHandler

SLOW = 0.8
NAMED = threading.Event()


async def blocks(message: Message) -> None:
    NAMED.wait(60)  # the very mistake, for as long as nobody says so


def thinks(message: Message) -> None:
    time.sleep(SLOW)


async def waits(message: Message) -> None:
    await asyncio.sleep(SLOW)


@pytest.mark.parametrize(("handler", "named"), [(blocks, True), (thinks, False), (waits, False)])
async def test_only_a_handler_that_blocks_the_event_loop_is_named_with_its_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    handler: object,
    named: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    NAMED.clear()
    monkeypatch.setattr("things_kit.modules.blocking.LONG", 0.4)
    monkeypatch.setattr("things_kit.modules.blocking.BEAT", 0.1)
    emit = caplog.handler.emit

    def heard(record: logging.LogRecord) -> None:
        emit(record)
        NAMED.set()

    monkeypatch.setattr(caplog.handler, "emit", heard)
    after = MockHandler()
    app = App(
        config.module,
        memory.module,
        memory.consume("orders", group="g", handler=handler),  # type: ignore[arg-type]
        memory.consume("after", group="g", handler=after),
    )
    with caplog.at_level(logging.WARNING, "things_kit.app"):
        async with app:
            producer = await app.get(Producer)
            await producer.publish(Message("orders", b""))
            await asyncio.sleep(0)
            await producer.publish(Message("after", b""))
            await after.handled(1)
    found = [record.getMessage() for record in caplog.records]
    line = blocks.__code__.co_firstlineno + 1
    assert [text.partition(": the event loop")[0] for text in found] == (
        [f"the handler blocks blocks at {__file__}:{line}"] if named else []
    )
