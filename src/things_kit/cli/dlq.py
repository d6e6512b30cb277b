"""`things-kit dlq`: look at dead letters, send them back, or give them up."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.text import Text

from things_kit.brokers.connect import connect
from things_kit.cli.dead_letters import DeadLetter, Selection, looking_at
from things_kit.cli.options import DeadLetterTopic, JsonFlag, Url
from things_kit.cli.printing import as_json, counted, safe, say, terminal
from things_kit.cli.readable import readable, value_page
from things_kit.cli.rows import rfc3339, row
from things_kit.cli.running import WRONG_USE, CommandFailed, run
from things_kit.engine.replay import purge as purge_letters
from things_kit.messaging.message import Message

Ids = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Only this one; repeatable.")]
ErrorType = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Only those with this type of error: its full or its last name."),
]

app = typer.Typer(no_args_is_help=True, help="Look at dead letters, replay them, or give them up.")


@app.command("list")
def list_(
    url: Url,
    topic: DeadLetterTopic,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    json: JsonFlag = False,
) -> None:
    """List the dead letters of TOPIC, oldest first."""
    run(lambda: _list(url, topic, limit, json=json))


async def _list(url: str, topic: str, limit: int, *, json: bool) -> None:
    letters: list[DeadLetter] = []
    async with connect(url) as broker, looking_at(broker, topic, limit + 1) as messages:
        async for message in messages:
            letters.append(DeadLetter.of(message))  # noqa: PERF401 - a comprehension reads no better here
    if json:
        for letter in letters[:limit]:
            say(as_json(letter.row()))
    elif letters:
        console = terminal()
        console.print(_table(letters[:limit]), soft_wrap=True)
        if len(letters) > limit:
            console.print(f"There are more than these {limit}; --limit shows them.")
    else:
        say(f"no dead letters in {safe(topic)}")


@app.command()
def show(
    url: Url,
    topic: DeadLetterTopic,
    message_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Show everything of one dead letter."""
    run(lambda: _show(url, topic, message_id, json=json))


async def _show(url: str, topic: str, message_id: str, *, json: bool) -> None:
    found: Message | None = None
    async with connect(url) as broker, looking_at(broker, topic) as messages:
        async for message in messages:
            if message.id == message_id:
                found = message
                break
    if found is None:
        raise CommandFailed(f"there is no dead letter {message_id!r} in {topic}")
    if json:
        say(as_json(row(found)))
    else:
        terminal().print(_page(found), soft_wrap=True)


@app.command()
def replay(
    url: Url,
    topic: DeadLetterTopic,
    *,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, oldest first.")] = None,
    ids: Ids = None,
    error_type: ErrorType = None,
    to: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Publish them to this topic instead.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Publish dead letters back to where they came from, for the group that failed."""
    run(lambda: _replay(url, topic, limit, Selection(ids, error_type), to, json=json))


async def _replay(
    url: str, topic: str, limit: int | None, selection: Selection, to: str | None, *, json: bool
) -> None:
    async with connect(url) as broker:
        count = await broker.replay(topic, limit=limit, where=selection.where, to=to)
    if json:
        say(as_json({"replayed": count}))
    else:
        say(f"replayed {counted(count, 'dead letter')} to {safe(to) if to else 'where they came from'}")
    # With a limit, the rest was not looked at.
    if limit is None or count < limit:
        _none_missing(selection, topic)


@app.command()
def purge(
    url: Url,
    topic: DeadLetterTopic,
    *,
    ids: Ids = None,
    error_type: ErrorType = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give dead letters up: they are acknowledged and gone. Asks first."""
    selection = Selection(ids, error_type)
    if yes:
        run(lambda: _purge(url, topic, selection.where, selection, json=json))
        return
    if not interactive():
        run(_refuse)
    meant = run(lambda: _meant(url, topic, selection))
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


async def _refuse() -> None:
    raise CommandFailed(
        "purge asks before it gives dead letters up, and there is nobody to ask: pass --yes", WRONG_USE
    )


async def _meant(url: str, topic: str, selection: Selection) -> frozenset[str | None]:
    async with connect(url) as broker, looking_at(broker, topic) as messages:
        return frozenset([message.id async for message in messages if selection.takes(message)])


async def _purge(
    url: str, topic: str, where: Callable[[Message], bool] | None, selection: Selection, *, json: bool
) -> None:
    async with connect(url) as broker:
        count = await purge_letters(broker, topic, where=where)
    await _purged(count, topic, selection, json=json)


async def _purged(count: int, topic: str, selection: Selection, *, json: bool) -> None:
    if json:
        say(as_json({"purged": count}))
    else:
        say(f"purged {counted(count, 'dead letter')} of {safe(topic)}")
    _none_missing(selection, topic)


def _none_missing(selection: Selection, topic: str) -> None:
    if selection.missing:
        ids = ", ".join(sorted(selection.missing))
        raise CommandFailed(f"there is no dead letter {ids} in {topic}")


def _table(letters: list[DeadLetter]) -> Text:
    """A line each, and what was wrong on a line below: a column for that would be too narrow to be read."""
    rows = [("id", "from", "group", "attempts", "when", "key"), *map(_cells, letters)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    table = Text()
    for number, cells in enumerate(rows):
        padded = (
            f"{cell}{' ' * (width - cell_len(cell))}" for cell, width in zip(cells, widths, strict=True)
        )
        table.append("  ".join(padded).rstrip(), "cyan" if number else "bold").append("\n")
        if number:
            letter = letters[number - 1]
            kind = (letter.error_type or "").rpartition(".")[2]
            table.append(f"  {safe(kind)}", "red").append(f"  {safe(letter.error or '')}\n")
    table.rstrip()
    return table


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    when = "" if letter.timestamp is None else letter.timestamp[:19].replace("T", " ")
    key = letter.key if isinstance(letter.key, str | None) else "<binary>"
    cells = (letter.id, letter.original_topic, letter.group, letter.attempts, when, key)
    return tuple("" if cell is None else safe(str(cell)) for cell in cells)


def _page(message: Message) -> Text:
    key = None if message.key is None else readable(message.key)
    fields = {
        "id": message.id,
        "topic": message.topic,
        "key": key,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": None if message.timestamp is None else rfc3339(message.timestamp),
    }
    page = Text()
    for name, value in fields.items():
        if value is not None:
            page.append(f"{name:<12}", "bold").append(f"{safe(str(value))}\n")
    if message.headers:
        page.append("headers\n", "bold")
    width = max(map(len, message.headers), default=0)
    for name, value in message.headers.items():
        page.append(f"  {safe(name):<{width}}  ", "green").append(f"{safe(value)}\n")
    return page.append("value\n", "bold").append_text(value_page(message.value))
