"""A consumer in a process of its own, for tests that kill it: run by the suite with `python -m`.

Arguments: URL TOPIC GROUP, then NAME=NUMBER settings (see `Settings`). Every step of the handler is a line of JSON on
standard output; the line `ready` comes first. SIGTERM stops it as a consumer should be stopped; on
SIGUSR1 it says what it waits for.
"""

import asyncio
import os
import signal
import sys
import time
from typing import Final

import msgspec

from things_kit.brokers.connect import connect
from things_kit.messaging.message import Message
from things_kit.messaging.policy import RetryPolicy
from things_kit.testing.conformance.history import Event, Kind

EXIT: Final = b"exit"
"""The value of a message whose handler calls `sys.exit`."""

DIE: Final = b"die"
"""The value of a message whose handler ends the process at once, as the kernel does where memory is short."""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """How this worker behaves.

    Attributes:
        concurrency: Handler calls at once.
        max_in_flight: Messages held at once.
        delay: Seconds that each handling takes.
        attempts: How often a message is tried.
        hang_after: After so many messages, the handler hangs for ever.
    """

    concurrency: int = 4
    max_in_flight: int = 100
    delay: float = 0.0
    attempts: int = 5
    hang_after: int | None = None


def _say(kind: Kind, message: Message) -> None:
    event = Event(kind, message.id or "", message.attempt, "", time.monotonic())
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


def _tell_tasks() -> None:
    """Say on standard error where every task is: for who waits for this process in vain."""
    for task in asyncio.all_tasks():
        task.print_stack(limit=3, file=sys.stderr)


async def work(url: str, topic: str, group: str, settings: Settings) -> None:
    """Consume until SIGTERM."""
    handled = 0

    async def handle(message: Message) -> None:
        nonlocal handled
        _say("began", message)
        handled += 1
        if settings.hang_after is not None and handled > settings.hang_after:
            await asyncio.Event().wait()
        if message.value == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if message.value == EXIT:
            sys.exit(3)
        if settings.delay:
            await asyncio.sleep(settings.delay)
        _say("done", message)

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _tell_tasks)
    async with connect(url) as broker:
        consumer = broker.consumer(
            topic,
            group=group,
            handler=handle,
            concurrency=settings.concurrency,
            max_in_flight=settings.max_in_flight,
            retry=RetryPolicy(attempts=settings.attempts, first=0.02, limit=0.1),
            drain_timeout=5.0,
        )
        await consumer.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stopping.wait()


def main(arguments: list[str]) -> None:
    """Read the arguments and work."""
    url, topic, group, *pairs = arguments
    settings = msgspec.convert(dict(pair.split("=", 1) for pair in pairs), Settings, strict=False)
    asyncio.run(work(url, topic, group, settings))


if __name__ == "__main__":
    main(sys.argv[1:])
