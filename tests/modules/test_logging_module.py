"""The module `logging`: what lines look like, and what they know of the message that is being handled."""

import asyncio
import json
import logging as standard
from pathlib import Path
from typing import Any

import pytest
import structlog

from things_kit import App, ConfigError, Hook, Lifecycle, Message, Producer, invoke, provide
from things_kit.app.process import serve
from things_kit.modules import config, logging, memory
from things_kit.testing import MockHandler

log = structlog.get_logger("shop")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "memory: {topic: orders, group_id: billing, retry: {attempts: 2, first: 0.001}}\n"
    )


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged, but for what the app says of itself."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in found if line["logger"] != "things_kit.app"]


class Speaking(MockHandler):
    """Logs what it handles, in both ways."""

    async def handle(self, message: Message) -> None:
        log.info("by structlog", price=5)
        standard.getLogger("shop.orders").info("by the %s library", "standard", extra={"price": 5})
        await super().handle(message)


async def handle_one(handler: Any, message: Message, count: int = 1) -> None:
    app = App(config.module, logging.module, memory.module, provide(handler), invoke(memory.run_consumer))
    async with app:
        await (await app.get(Producer)).publish(message)
        await handler.handled(count)


async def test_lines_of_a_handler_carry_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    await handle_one(Speaking(), Message("orders", b"", key=b"o-1", id="id-1"))
    first, second = lines(capsys)
    timestamps = [first.pop("timestamp"), second.pop("timestamp")]
    assert all(stamp.endswith("Z") for stamp in timestamps)
    fields = {
        "level": "info", "topic": "orders", "offset": 0, "key": "o-1", "id": "id-1", "attempt": 1,
        "group": "billing", "price": 5,
    }  # fmt: skip
    assert first == {"event": "by structlog", "logger": "shop", **fields}
    assert second == {"event": "by the standard library", "logger": "shop.orders", **fields}


async def test_failures_are_logged_with_one_traceback_of_each_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = MockHandler(outcomes=[ValueError("once"), ValueError("twice")])
    await handle_one(handler, Message("orders", b"", key=b"\xff", id="id-1"), count=2)
    first, last = lines(capsys)
    assert (first["level"], first["attempt"], first["key"]) == ("warning", 1, "\\xff")
    assert "ValueError: once" in first["exception"]
    assert (last["level"], last["attempt"]) == ("error", 2)
    assert "exception" not in last, "the traceback of its kind was told with the first"


async def test_an_error_that_several_report_has_one_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def report(_: logging.Logs) -> None:
        try:
            raise RuntimeError("broken")
        except RuntimeError as error:
            log.exception("first")
            standard.getLogger("other").error("second", exc_info=error)

    async with App(config.module, logging.module, invoke(report)):
        pass
    first, second = lines(capsys)
    assert "RuntimeError: broken" in first["exception"]
    assert "exception" not in second


async def test_lines_for_people_have_no_local_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGGING_FORMAT", "console")

    def report(_: logging.Logs) -> None:
        secret = "s3cret".upper()
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            log.exception("it broke", price=len(secret))

    async with App(config.module, logging.module, invoke(report)):
        pass
    said = capsys.readouterr().err
    assert "it broke" in said
    assert "price=6" in said
    assert "RuntimeError: broken" in said
    assert "S3CRET" not in said


async def test_levels_are_as_configured_for_each_logger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGGING_LEVEL", "warning")
    monkeypatch.setenv("LOGGING_LEVELS", '{"shop.loud": "DEBUG"}')

    def speak(own: logging.Logger, other: standard.Logger) -> None:
        own.info("no")
        other.info("no")
        structlog.get_logger("shop.loud").debug("yes")
        structlog.get_logger("shop.other").info("no")
        own.warning("yes")

    async with App(config.module, logging.module, invoke(speak)):
        pass
    assert [line["event"] for line in lines(capsys)] == ["yes", "yes"]


async def test_what_is_bound_to_the_context_is_in_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Bound(MockHandler):
        async def handle(self, message: Message) -> None:
            with structlog.contextvars.bound_contextvars(tenant="t-1"):
                log.info("here")
            await super().handle(message)

    await handle_one(Bound(), Message("orders", b"", id="id-1"))
    (line,) = lines(capsys)
    assert (line["tenant"], line["id"]) == ("t-1", "id-1")


async def test_what_uvicorn_says_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    async with App(config.module, logging.module):
        standard.getLogger("uvicorn.error").info(
            "Started server process [%d]",
            7,
            extra={"color_message": "Started server process [\x1b[36m%d\x1b[0m]"},
        )
    (line,) = lines(capsys)
    assert line["event"] == "Started server process [7]"
    assert "color_message" not in line


async def test_after_the_app_logging_is_as_it_was() -> None:
    before = standard.getLogger().handlers[:]
    async with App(config.module, logging.module):
        assert standard.getLogger().handlers[: len(before)] == before, "others', such as Sentry's, stay"
        assert len(standard.getLogger().handlers) == len(before) + 1
    assert standard.getLogger().handlers == before
    assert not structlog.is_configured()


async def test_the_logging_is_set_up_before_what_follows_and_kept_until_it_has_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def speak(lifecycle: Lifecycle) -> None:
        log.info("invoked")
        lifecycle.append(Hook(on_stop=lambda: log.info("stopped")))

    async with App(config.module, logging.module, invoke(speak)):
        await asyncio.sleep(0)
    assert [line["event"] for line in lines(capsys)] == ["invoked", "stopped"]


async def test_the_last_line_of_an_app_is_that_it_has_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """It is written as the app's other lines are, though what sets up the logging was made first."""
    await handle_one(Speaking(), Message("orders", b""))
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert said[-1]["event"] == "stopped: 1 handled, 0 given back"
    assert said[-1]["logger"] == "things_kit.app"


async def test_why_an_app_did_not_start_is_written_as_its_other_lines_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise ConfigError("there is no such ledger")

    assert await serve(App(config.module, logging.module, invoke(refuse))) == 1
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in said] == ["the app did not start: there is no such ledger"]
