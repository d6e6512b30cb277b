"""A handler that holds up the event loop is named while it does."""

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest

from things_kit import App, Message, Producer, connect
from things_kit.modules import config, memory
from things_kit.testing import MockHandler
from things_kit.testing.conformance.waiting import eventually

SLOW = 0.8
NAMED = threading.Event()


async def blocks(message: Message) -> None:
    NAMED.wait(60)  # the very mistake, for as long as nobody says so


def thinks(message: Message) -> None:
    time.sleep(SLOW)


async def waits(message: Message) -> None:
    await asyncio.sleep(SLOW)


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """What is logged; the first line of it ends `blocks`."""
    monkeypatch.chdir(tmp_path)
    NAMED.clear()
    monkeypatch.setattr("things_kit.modules.blocking.LONG", 0.4)
    monkeypatch.setattr("things_kit.modules.blocking.BEAT", 0.1)
    emit = caplog.handler.emit

    def heard(record: logging.LogRecord) -> None:
        emit(record)
        NAMED.set()

    monkeypatch.setattr(caplog.handler, "emit", heard)
    return caplog


def named_in(told: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(": the event loop")[0] for record in told.records]


NAME = f"the handler blocks blocks at {__file__}:{blocks.__code__.co_firstlineno + 1}"


@pytest.mark.parametrize(("handler", "named"), [(blocks, True), (thinks, False), (waits, False)])
async def test_only_a_handler_that_blocks_the_event_loop_is_named_with_its_line(
    told: pytest.LogCaptureFixture, handler: object, named: bool
) -> None:
    after = MockHandler()
    app = App(
        config.module,
        memory.module,
        memory.consume("orders", group="g", handler=handler),  # type: ignore[arg-type]
        memory.consume("after", group="g", handler=after),
    )
    with told.at_level(logging.WARNING, "things_kit.app"):
        async with app:
            producer = await app.get(Producer)
            await producer.publish(Message("orders", b""))
            await asyncio.sleep(0)
            await producer.publish(Message("after", b""))
            await after.handled(1)
    assert named_in(told) == ([NAME] if named else [])


async def test_one_that_blocks_while_the_app_starts_is_named_too(
    told: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What waits at the broker is handled before all consumers have started."""
    (tmp_path / "config.yaml").write_text("memory: {name: blocked-at-start}")
    app = App(config.module, memory.module, memory.consume("orders", group="g", handler=blocks))
    async with connect("memory://blocked-at-start") as before:

        async def handled() -> bool:
            return not await before.lag("orders", "g")

        await before.declare("orders", groups=["g"])
        await before.producer().publish(Message("orders", b""))
        with told.at_level(logging.WARNING, "things_kit.app"):
            async with app:
                await eventually(handled, 30, "it is handled")
    assert named_in(told) == [NAME]
