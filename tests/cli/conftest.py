"""What the tests of the command line share: a way to call it, a broker on disk, and dead letters in it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from typer.testing import CliRunner, Result

from things_kit.brokers.connect import connect
from things_kit.cli.app import app
from things_kit.messaging.message import Message
from things_kit.messaging.policy import RetryPolicy

SOURCES = str(Path(__file__).parents[2] / "src")
PATIENCE = 60


class Cli(Protocol):
    """Calls the command line in this process."""

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result: ...


class Program:
    """The command line as a process of its own, for signals and pipes."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        environment = {**os.environ, "PYTHONPATH": SOURCES, **options.pop("env", {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "things_kit.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            env=environment,
            **options,
        )

    def line(self, stream: str = "stdout") -> str:
        """The next line that it prints."""
        return str(getattr(self.process, stream).readline().decode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self, stdin: bytes | None = None) -> tuple[int, str, str]:
        """Wait for its end: exit code, output, errors."""
        out, err = self.process.communicate(stdin, timeout=PATIENCE)
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.fixture
def cli() -> Cli:
    def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return call


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*arguments: str, **options: Any) -> Program:
        started.append(Program(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


@pytest.fixture
def publish(url: str) -> Callable[..., None]:
    def publish(*messages: Message) -> None:
        async def published() -> None:
            async with connect(url) as broker:
                await broker.producer().publish_batch(messages)

        asyncio.run(published())

    return publish


@pytest.fixture
def read(url: str) -> Callable[[str, int], list[Message]]:
    """The first messages of a topic, as a group of its own."""

    def read(topic: str, number: int) -> list[Message]:
        return asyncio.run(asyncio.wait_for(consumed(url, topic, number), PATIENCE))

    return read


@pytest.fixture
def bury(url: str) -> Callable[..., None]:
    """Make dead letters of messages: the group `billing` fails on each with the error that goes with it."""

    def bury(failures: Sequence[tuple[Message, Exception]]) -> None:
        asyncio.run(asyncio.wait_for(_bury(url, failures), PATIENCE))

    return bury


async def consumed(url: str, topic: str, number: int, group: str = "reader") -> list[Message]:
    messages: list[Message] = []
    done = asyncio.Event()

    async def handle(message: Message) -> None:
        messages.append(message)
        if len(messages) == number:
            done.set()

    async with (
        connect(url) as broker,
        broker.consumer(topic, group=group, handler=handle, ordering="partition", dead_letter=None),
    ):
        await done.wait()
    return messages


async def _bury(url: str, failures: Sequence[tuple[Message, Exception]]) -> None:
    (topic,) = {message.topic for message, _ in failures}
    errors = {message.value: error for message, error in failures}

    async def fail(message: Message) -> None:
        raise errors[message.value]

    async with connect(url) as broker:
        await broker.declare(topic, groups=["billing"])
        await broker.producer().publish_batch([message for message, _ in failures])
        async with broker.consumer(
            topic, group="billing", handler=fail, retry=RetryPolicy(attempts=2, first=0.0)
        ):
            await consumed(url, f"{topic}-dlq", len(failures), group="witness")
