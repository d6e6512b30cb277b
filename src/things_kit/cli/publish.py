"""`things-kit publish`: a line, a message."""

import asyncio
import codecs
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from things_kit.brokers.connect import connect
from things_kit.cli.lines import LineError, Template
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import as_json, complain, counted, safe, say, terminal
from things_kit.cli.running import WRONG_USE, CommandFailed, run
from things_kit.cli.source import Readable, Source, unbuffered
from things_kit.messaging.errors import BrokerUnavailable, PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.producer import Producer

BATCH: Final = 1000
SHOWN: Final = 10
"""Refused lines that are named one by one."""


def publish(
    url: Url,
    topic: Topic,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON Lines; '-' is standard input.")] = "-",
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Every line is a value, whatever it holds.")] = False,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Where the key is in a line's JSON, such as .payload.id, or .id? where it may be missing.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A header from a line's JSON, as in type=.type, or type=.type? where it may be missing; without the dot, text.",
        ),
    ] = None,
    after: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Have them come in so many seconds.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="RFC3339", help="Have them come at this time, such as 2026-01-31T12:00:00Z."),
    ] = None,
    schedule_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="The name of the one message that comes later; the same again replaces it."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Publish messages: a line each, from FILE or standard input.

    A JSON object with `value` (and `key`, `headers`, `timestamp`, `id`) is that message, so what `tail --json`
    prints can be published again. Any other JSON is the value itself; an object with further fields is one, too.
    Bytes that are no text are {"base64": "..."}.
    """
    run(
        lambda: _publish(
            url,
            topic,
            file,
            Template(topic, raw=raw, key=key, headers=header),
            When(after, time_of(at), schedule_id),
            raw=raw,
            json=json,
        )
    )


class When(NamedTuple):
    """When messages are to come, if not at once, and the name of the one that does."""

    after: float | None = None
    at: datetime | None = None
    schedule_id: str | None = None


def time_of(text: str | None) -> datetime | None:
    """A time of the command line, with its zone. Raises CommandFailed."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise CommandFailed(
            f"--at {text!r}: expected a time with its zone, such as 2026-01-31T12:00:00Z", WRONG_USE
        )
    return time


async def _publish(
    url: str, topic: str, file: str, template: Template, when: When, *, raw: bool, json: bool
) -> None:
    with _opened(file) as stream:
        async with connect(url) as broker:
            publication = Publication(broker.producer(), template, when, raw=raw)
            try:
                with _progress(file) as show:
                    await publication.run(Source(stream), show)
            finally:
                _report(publication, topic, json=json)
    if publication.refused:
        raise CommandFailed(f"{counted(publication.refused, 'message')} refused")


NOW: Final = When()


class Publication:
    """Publishes what a source gives, in batches.

    Attributes:
        confirmed: Messages that the broker has.
        refused: Messages that it would not have.
    """

    def __init__(self, producer: Producer, template: Template, when: When = NOW, *, raw: bool) -> None:
        self.confirmed = 0
        self.refused = 0
        self._producer = producer
        self._template = template
        self._when = when
        self._raw = raw
        self._number = 0

    async def run(self, source: Source, show: Callable[[int, int], None]) -> None:
        """Publish all, and `show` bytes and messages. Cancelled, publish what was read by then, and end as cancelled.

        Raises:
            CommandFailed: A line is no message, and those before it are published; or the source cannot be read.
            BrokerUnavailable: The broker went away.
        """
        work = asyncio.create_task(self._all(source, show))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            source.end()
            await work
            raise
        except OSError as error:
            raise CommandFailed(f"the input cannot be read: {error.strerror}") from error

    async def _all(self, source: Source, show: Callable[[int, int], None]) -> None:
        async for lines in source.lines(BATCH):
            messages: list[tuple[int, Message]] = []
            wrong: LineError | None = None
            for line in lines:
                self._number += 1
                try:
                    messages.extend((self._number, message) for message in self._messages(line))
                except LineError as error:
                    wrong = error
                    break
            await self._send(messages)
            if wrong is not None:
                before = f"{counted(self.confirmed, 'message')} published before it"
                raise CommandFailed(f"line {self._number} {wrong}; {before}")
            show(source.taken, self.confirmed)

    def _messages(self, line: bytes) -> Iterator[Message]:
        if self._number == 1 and not self._raw:
            line = line.removeprefix(codecs.BOM_UTF8)
        if self._raw or line.strip():
            yield self._template.message(line)

    async def _send(self, messages: Sequence[tuple[int, Message]]) -> None:
        if not messages:
            return
        failures: dict[int, Exception] = {}
        after, at, schedule_id = self._when
        try:
            if schedule_id is None:
                await self._producer.publish_batch([message for _, message in messages], after=after, at=at)
            elif len(messages) + self.confirmed + self.refused > 1:
                raise CommandFailed("--schedule-id names one message; there are more lines than one")
            else:
                await self._producer.publish(messages[0][1], after=after, at=at, schedule_id=schedule_id)
        except (PublishError, BrokerUnavailable) as error:
            # What is said of the whole has no index.
            failures = getattr(error, "failures", None) or dict.fromkeys(range(len(messages)), error)
        self.confirmed += len(messages) - len(failures)
        for index, failure in sorted(failures.items()):
            self._refuse(messages[index][0], failure)

    def _refuse(self, number: int, failure: Exception) -> None:
        if isinstance(failure, BrokerUnavailable):
            raise BrokerUnavailable(
                f"{failure}; {counted(self.confirmed, 'message')} published, line {number} not"
            ) from failure
        self.refused += 1
        if self.refused <= SHOWN:
            complain(f"line {number} was refused: {type(failure).__name__}: {failure}")
        elif self.refused == SHOWN + 1:
            complain("more lines were refused; from here on only their number is kept")


def _report(publication: Publication, topic: str, *, json: bool) -> None:
    if json:
        say(as_json({"published": publication.confirmed}))
    else:
        say(f"published {counted(publication.confirmed, 'message')} to {safe(topic)}")


@contextmanager
def _opened(file: str) -> Iterator[Readable]:
    if file == "-":
        yield unbuffered(sys.stdin.buffer)
        return
    try:
        stream = FileIO(file)
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}", code=2) from error
    with stream:
        yield stream


@contextmanager
def _progress(file: str) -> Iterator[Callable[[int, int], None]]:
    console = terminal(stderr=True)
    # A bar would write over what is being typed.
    if not console.is_terminal or (file == "-" and sys.stdin.isatty()):
        yield lambda taken, confirmed: None
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None if file == "-" else Path(file).stat().st_size)
        yield lambda taken, confirmed: progress.update(
            task, completed=taken, description=f"{counted(confirmed, 'message')} published"
        )
