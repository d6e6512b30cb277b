"""`things-kit tail`: watch a topic, and take nothing from anybody."""

import asyncio
import os
import stat
import sys
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Annotated, Final

import typer
from rich.text import Text

from things_kit.cli.decoded import Decoded, Decoding, RegistryUrl, decoded
from things_kit.cli.looking import looking
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import OutputClosed, Terminal, as_json, safe, say, terminal
from things_kit.cli.readable import line
from things_kit.cli.rows import row
from things_kit.cli.running import CommandFailed, run
from things_kit.cli.since import Since, messages_since
from things_kit.engine.broker import Broker
from things_kit.engine.url import BrokerURL
from things_kit.messaging.message import Message

LONGEST: Final = 2000
"""Characters of a value that a terminal is shown; a pipe gets all."""
DRAIN: Final = 2.0


def tail(
    url: Url,
    topic: Topic,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="earliest|TIME|N",
            help="Begin with what is there: all of it, what was published since a time (2026-01-31T12:00, UTC), or the last N.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many messages.")] = None,
    registry: RegistryUrl = None,
    json: JsonFlag = False,
) -> None:
    """Show the messages of TOPIC as they are published, until stopped.

    It takes nothing from any group, and leaves none of its own behind.
    """

    async def show() -> None:
        decoding = None if registry is None else Decoding(registry)
        view = View(_print_json if json else _printer(terminal()), limit, decoding)
        if since is None:
            await _tail(url, topic, view)
        else:
            await _tail_from(url, topic, Since.parse(since), view)

    run(show, interrupted=0)


async def _tail_from(url: str, topic: str, since: Since, view: "View") -> None:
    async with looking(url, topic) as broker:
        view.notice_leaving()
        _tell_listening(url, topic)
        await _first(view.done, asyncio.create_task(_read(broker, topic, since, view)))


async def _read(broker: Broker, topic: str, since: Since, view: "View") -> None:
    async with aclosing(messages_since(broker, topic, since)) as batches:
        async for messages in batches:
            for message in messages:
                await view.handle(message)


def _tell_listening(url: str, topic: str) -> None:
    notice = f"listening to {safe(topic)} at {safe(BrokerURL.parse(url).display)}"
    terminal(stderr=True).print(Text(notice, "dim"), soft_wrap=True)


async def _tail(url: str, topic: str, view: "View") -> None:
    async with looking(url, topic) as broker:
        consumer = broker.consumer(
            topic,
            group=None,
            handler=view.handle,
            ordering="none",  # as it comes, one after another: nothing is asked for that a broker might not keep
            dead_letter=None,
            drain_timeout=DRAIN,
        )
        async with consumer:
            view.notice_leaving()
            _tell_listening(url, topic)
            await _first(view.done, asyncio.create_task(consumer.wait()))


class View:
    """Shows messages until a limit, or until nobody looks any more.

    Attributes:
        done: Becomes done with the last message, and fails if they cannot be shown.
    """

    def __init__(
        self, show: Callable[[Message, Decoded], None], limit: int | None, decoding: Decoding | None = None
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._show = show
        self._decoding = decoding
        self._left = limit
        self._loop = asyncio.get_running_loop()
        self._finished = False

    async def handle(self, message: Message) -> None:
        """Show one, in a thread: a terminal that is held up must not hold up the connection."""
        if not self._finished:
            told = await decoded(self._decoding, message)
            await asyncio.to_thread(self._handle, message, told)

    def _handle(self, message: Message, told: Decoded) -> None:
        try:
            self._show(message, told)
        except OutputClosed as error:
            self._finish(error)
        except OSError as error:
            self._finish(CommandFailed(f"the output cannot be written: {error.strerror}"))
        else:
            self._count()

    def notice_leaving(self) -> None:
        """Notice when who reads us through a pipe goes, as `head` does, though no further message comes."""
        # A terminal and a file stay, and a terminal would also report what is typed. Windows has no such report.
        with suppress(OSError, ValueError, NotImplementedError):
            output = sys.stdout.fileno()
            if stat.S_ISFIFO(os.fstat(output).st_mode):
                self._loop.add_reader(output, self._left_alone, output)

    def _left_alone(self, output: int) -> None:
        self._loop.remove_reader(output)
        self._finish(OutputClosed())

    def _count(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        self._finished = True
        self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


async def _first(*futures: asyncio.Future[None]) -> None:
    try:
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
    for future in done:
        future.result()


def _print_json(message: Message, told: Decoded) -> None:
    say(as_json(row(message, told)))


def _printer(console: Terminal) -> Callable[[Message, Decoded], None]:
    longest = LONGEST if console.is_terminal else None

    def show(message: Message, told: Decoded) -> None:
        console.print(line(message, longest, told), soft_wrap=True)
        console.file.flush()

    return show
