"""Messages as they come, one after the other, for as long as somebody looks."""

import asyncio
import os
import stat
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeAlias

from rich.text import Text

from things_kit.cli.decoded import Decoded, Decoding, decoded
from things_kit.cli.printing import OutputClosed, as_json, safe, say, terminal
from things_kit.cli.readable import line
from things_kit.cli.rows import row
from things_kit.cli.running import CommandFailed
from things_kit.messaging.message import Message

LONGEST: Final = 2000
"""Characters of a value that a terminal is shown; a pipe gets all."""

Show: TypeAlias = Callable[[Message, Decoded, Exception | None], None]
"""Shows a message, what its value says, and why it was refused where it was."""


class View:
    """Shows messages until a limit, or until nobody looks any more."""

    def __init__(self, show: Show, limit: int | None = None, decoding: Decoding | None = None) -> None:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._show = show
        self._decoding = decoding
        self._left = limit
        self._loop = asyncio.get_running_loop()
        self._finished = False

    async def during(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this for as long as somebody looks. Raises what it raises, OutputClosed, and CommandFailed."""
        self._notice_leaving()
        task = asyncio.create_task(work)
        try:
            done, _ = await asyncio.wait({task, self._done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            self._done.cancel()
        for each in done:
            each.result()

    async def handle(self, message: Message) -> None:
        """Show one, in a thread: a terminal that is held up must not hold up the connection."""
        await self.show(message)

    async def show(self, message: Message, refused: Exception | None = None) -> None:
        """The same, and why its target refused it."""
        if not self._finished:
            told = await decoded(self._decoding, message)
            await asyncio.to_thread(self._print, message, told, refused)

    def _print(self, message: Message, told: Decoded, refused: Exception | None) -> None:
        try:
            self._show(message, told, refused)
        except OutputClosed as error:
            self._finish(error)
        except OSError as error:
            self._finish(CommandFailed(f"the output cannot be written: {error.strerror}"))
        else:
            self._count()

    def _notice_leaving(self) -> None:
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
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


def printing(*, json: bool, topics: bool = False) -> Show:
    """What prints messages, for people with their topics if these are several; rows have them in any case."""
    return _print_row if json else _printer(topics=topics)


def _print_row(message: Message, told: Decoded, refused: Exception | None) -> None:
    say(as_json(row(message, told) | ({} if refused is None else {"refused": str(refused)})))


def _printer(*, topics: bool) -> Show:
    console = terminal()
    longest = LONGEST if console.is_terminal else None

    def show(message: Message, told: Decoded, refused: Exception | None) -> None:
        text = line(message, longest, told)
        if refused is not None:
            text.append(f"  (refused: {safe(str(refused))})", "red")
        if topics:
            text = Text(f"{safe(message.topic)}  ", "magenta").append_text(text)
        console.print(text, soft_wrap=True)
        console.file.flush()

    return show
