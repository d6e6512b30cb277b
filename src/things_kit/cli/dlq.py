"""`things-kit dlq`: look at dead letters, send them back, or give them up."""

import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from things_kit.brokers.connect import connect
from things_kit.cli.commands import Command, Group
from things_kit.cli.dead_letters import DeadLetter, Kinds, Oldest, Selection, looking_at
from things_kit.cli.decoded import Decoding, RegistryUrl, decoded
from things_kit.cli.dlq_pages import kinds_table, letters_table, page
from things_kit.cli.looking import looking
from things_kit.cli.options import DeadLetterTopic, JsonFlag, Url
from things_kit.cli.printing import as_json, complain, counted, safe, say, terminal
from things_kit.cli.rows import row
from things_kit.cli.running import WRONG_USE, CommandFailed, run
from things_kit.engine.replay import purge as purge_letters
from things_kit.engine.replay import replay as replay_letters
from things_kit.messaging.message import Message

Ids = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Only this one; repeatable.")]
ErrorType = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Only those with this type of error: its full or its last name."),
]

Every = Annotated[bool, typer.Option("--any", help="Also messages that are no dead letters.")]
app = typer.Typer(cls=Group, no_args_is_help=True, help="Look at dead letters, replay them, or give them up.")


class By(StrEnum):
    """What dead letters are listed by."""

    ERROR = "error"


@app.command("list", cls=Command)
def list_(
    url: Url,
    topic: DeadLetterTopic,
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the oldest.")] = 50,
    by: Annotated[
        By | None, typer.Option(help="Count them by their error, numbers and ids left out of its text.")
    ] = None,
    every: Every = False,
    json: JsonFlag = False,
) -> None:
    """List the dead letters of TOPIC in the order in which they failed."""
    run(lambda: _list(url, topic, limit, by, Selection(every=every), json=json))


async def _list(url: str, topic: str, limit: int, by: By | None, selection: Selection, *, json: bool) -> None:
    oldest, kinds = Oldest(limit), Kinds()
    async with aclosing(_meant(url, topic, selection)) as meant:
        async for message in meant:
            (oldest if by is None else kinds).add(DeadLetter.of(message))
    if json:
        for row_ in oldest.all() if by is None else kinds.all():
            say(as_json(msgspec.structs.asdict(row_)))
    elif not selection.seen:
        if not selection.others:
            say(f"no dead letters in {safe(topic)}")
    elif by is None:
        terminal().print(letters_table(oldest.all()), soft_wrap=True)
        if oldest.dropped:
            say(f"There are {oldest.dropped} more than these {limit}; --limit shows them.")
    else:
        terminal().print(kinds_table(kinds.all()), soft_wrap=True)
    _tell_others(selection, topic)


async def _meant(url: str, topic: str, selection: Selection) -> AsyncGenerator[Message, None]:
    """The messages that are meant; all are given back."""
    async with looking(url, topic) as broker, looking_at(broker, topic) as messages:
        async for message in messages:
            if selection.takes(message):
                yield message


@app.command(cls=Command)
def show(
    url: Url,
    topic: DeadLetterTopic,
    message_id: Annotated[
        str, typer.Argument(metavar="ID", help="Its id, as `dlq list` shows it", show_default=False)
    ],
    *,
    registry: RegistryUrl = None,
    every: Every = False,
    json: JsonFlag = False,
) -> None:
    """Show everything of one dead letter."""
    selection = Selection([message_id], every=every)
    run(lambda: _show(url, topic, message_id, selection, registry, json=json))


async def _show(
    url: str, topic: str, message_id: str, selection: Selection, registry: str | None, *, json: bool
) -> None:
    decoding = None if registry is None else Decoding(registry)
    async with aclosing(_meant(url, topic, selection)) as meant:
        async for message in meant:
            told = await decoded(decoding, message)
            if json:
                say(as_json(row(message, told)))
            else:
                terminal().print(page(message, told), soft_wrap=True)
            return
    raise CommandFailed(f"there is no dead letter {message_id!r} in {topic}")


@app.command(cls=Command)
def replay(
    url: Url,
    topic: DeadLetterTopic,
    *,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many, oldest first.")
    ] = None,
    ids: Ids = None,
    error_type: ErrorType = None,
    to: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Publish them to this topic instead.")
    ] = None,
    every: Every = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replayed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Publish dead letters back to where they came from, for the group that failed."""
    selection = Selection(ids, error_type, every=every)
    if every and to is None:
        run(lambda: _refuse("--any takes messages that do not say where they came from: give --to TOPIC"))
    if dry_run:
        run(lambda: _rehearse(url, topic, limit, selection, to, json=json))
    else:
        run(lambda: _replay(url, topic, limit, selection, to, json=json))


async def _replay(
    url: str, topic: str, limit: int | None, selection: Selection, to: str | None, *, json: bool
) -> None:
    async with looking(url, topic):
        pass  # the topic is there
    async with connect(url) as broker:
        done = await replay_letters(
            broker.transmission, topic, limit=limit, where=selection.takes, to=to, every=True, create=False
        )
    if json:
        say(as_json({"replayed": done.brought}))
    elif selection.seen or not selection.others:
        say(
            f"replayed {counted(done.brought, 'dead letter')} to {safe(to) if to else 'where they came from'}"
        )
    # With a limit, the rest was not looked at.
    if limit is None or done.brought < limit:
        _none_missing(selection, topic)
    _tell_others(selection, topic)


async def _rehearse(
    url: str, topic: str, limit: int | None, selection: Selection, to: str | None, *, json: bool
) -> None:
    """Say what a replay would do."""
    ways: Counter[tuple[str | None, str | None]] = Counter()
    async with aclosing(_meant(url, topic, selection)) as meant:
        async for message in meant:
            letter = DeadLetter.of(message)
            ways[(to, None) if to is not None else (letter.original_topic, letter.group)] += 1
            if ways.total() == limit:
                break
    if json:
        say(as_json({"would_replay": ways.total()}))
    elif selection.seen or not selection.others:
        say(f"would replay {counted(ways.total(), 'dead letter')}")
        for (where, group), count in ways.most_common():
            say(
                f"  {count} to {safe(where or 'nowhere, as they do not say')}"
                + (f" for {safe(group)}" if group else "")
            )
    if limit is None or ways.total() < limit:
        _none_missing(selection, topic)
    _tell_others(selection, topic)


@app.command(cls=Command)
def purge(
    url: Url,
    topic: DeadLetterTopic,
    *,
    ids: Ids = None,
    error_type: ErrorType = None,
    every: Every = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give dead letters up: they are acknowledged and gone. Asks first."""
    selection = Selection(ids, error_type, every=every)
    if yes:
        run(lambda: _purge(url, topic, selection.takes, selection, json=json))
        return
    if not interactive():
        run(
            lambda: _refuse(
                "purge asks before it gives dead letters up, and there is nobody to ask: pass --yes"
            )
        )
    meant = run(lambda: _ids_of(url, topic, selection))
    if meant and typer.confirm(
        f"Give up {counted(len(meant), 'dead letter')} of {safe(topic)} for good?", err=True
    ):
        # Those that arrived while we asked were not asked about.
        run(lambda: _purge(url, topic, lambda message: message.id in meant, selection, json=json))
    else:
        run(lambda: _purged(0, topic, selection, json=json))


def interactive() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


async def _refuse(sentence: str) -> None:
    raise CommandFailed(sentence, WRONG_USE)


async def _ids_of(url: str, topic: str, selection: Selection) -> frozenset[str | None]:
    async with aclosing(_meant(url, topic, selection)) as meant:
        return frozenset([message.id async for message in meant])


async def _purge(
    url: str, topic: str, where: Callable[[Message], bool], selection: Selection, *, json: bool
) -> None:
    async with looking(url, topic) as broker:
        count = await purge_letters(broker, topic, where=where, create=False)
    await _purged(count, topic, selection, json=json)


async def _purged(count: int, topic: str, selection: Selection, *, json: bool) -> None:
    if json:
        say(as_json({"purged": count}))
    elif selection.seen or not selection.others:
        say(f"purged {counted(count, 'dead letter')} of {safe(topic)}")
    _none_missing(selection, topic)
    _tell_others(selection, topic)


def _tell_others(selection: Selection, topic: str) -> None:
    """Say what was left alone. Raises CommandFailed if there was nothing else."""
    if not selection.others:
        return
    are = "1 message is" if selection.others == 1 else f"{selection.others} messages are"
    if not selection.seen:
        raise CommandFailed(f"nothing in {topic} is a dead letter; {are} there, which --any takes too")
    complain(
        f"{are} in {topic} that {'is' if selection.others == 1 else 'are'} no dead letter; --any takes them too"
    )


def _none_missing(selection: Selection, topic: str) -> None:
    if selection.missing:
        ids = ", ".join(sorted(selection.missing))
        raise CommandFailed(f"there is no dead letter {ids} in {topic}")
