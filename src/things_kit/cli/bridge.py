"""`things-kit bridge`: move messages from one broker to another."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from things_kit.brokers.connect import connect
from things_kit.cli.decoded import Decoding, RegistryUrl
from things_kit.cli.options import JsonFlag
from things_kit.cli.printing import OutputClosed, Terminal, as_json, counted, safe, say, terminal
from things_kit.cli.running import INTERRUPTED, CommandFailed, run
from things_kit.cli.view import View, printing
from things_kit.messaging.errors import BrokerUnavailable, ConfigError
from things_kit.patterns.bridge import GROUP, Bridge

REFRESH: Final = 0.1
RECENT: Final = 30
"""Refreshes over which the rate is taken: about three seconds."""

ASK: Final = 1.0
"""Seconds between two questions to the source how much is left."""


def bridge(
    from_url: Annotated[str, typer.Argument(metavar="FROM_URL", help="Where they are.", show_default=False)],
    to_url: Annotated[str, typer.Argument(metavar="TO_URL", help="Where they go.", show_default=False)],
    topics: Annotated[
        list[str], typer.Argument(metavar="TOPIC...", help="Which of them.", show_default=False)
    ],
    *,
    group: Annotated[
        str, typer.Option(metavar="GROUP", help="As whom to read; its position is where a bridge goes on.")
    ] = GROUP,
    until_empty: Annotated[
        bool,
        typer.Option(
            "--until-empty",
            help="End when nothing is left and all is confirmed; "
            "if the source cannot say what is left, when nothing came for five seconds.",
        ),
    ] = False,
    rename: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OLD=NEW", help="Publish topic OLD as NEW; repeatable."),
    ] = None,
    target_group: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help="Declare this group at the target first; repeatable."),
    ] = None,
    dead_letter: Annotated[
        str | None,
        typer.Option(
            metavar="TOPIC",
            help="Give up what the target refuses, to this topic of the source, such as {topic}-refused; "
            "without it, it is tried for ever.",
        ),
    ] = None,
    max_in_flight: Annotated[
        int, typer.Option(min=1, metavar="N", help="The most messages to hold at once.")
    ] = 2000,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            help="Print each message that the target has now, as tail does, and why it refuses one.",
        ),
    ] = False,
    registry: RegistryUrl = None,
    json: JsonFlag = False,
) -> None:
    """Move the messages of TOPIC... from one broker to another, until stopped.

    A message is acknowledged at the source only after the target has it; killed and started again, the bridge goes
    on where it was. Key, headers, id, time and the order of each key stay as they are.
    """

    async def move() -> None:
        decoding = None if registry is None else Decoding(registry)
        shown = View(printing(json=json, topics=len(topics) > 1), decoding=decoding)
        view = shown if show or decoding is not None else None
        async with connect(from_url) as source, connect(to_url) as target:
            moving = Bridge(
                source,
                target,
                topics,
                group=group,
                rename=renaming(rename or []),
                target_groups=target_group or [],
                dead_letter=dead_letter,
                max_in_flight=max_in_flight,
                told=None if view is None else view.show,
            )
            await _move(
                moving, view, until_empty=until_empty, retained=source.capabilities.retained, json=json
            )

    # Who asked for all of it did not get it.
    run(move, interrupted=INTERRUPTED if until_empty else 0)


def renaming(pairs: list[str]) -> dict[str, str]:
    """The new names by the old ones, of OLD=NEW each. Raises ConfigError."""
    names: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise ConfigError(f"--map takes OLD=NEW, such as orders=shop.orders; it is {pair!r}")
        if old in names:
            raise ConfigError(f"--map names {old!r} twice")
        names[old] = new
    return names


async def _move(moving: Bridge, view: View | None, *, until_empty: bool, retained: bool, json: bool) -> None:
    loop = asyncio.get_running_loop()
    console = terminal(stderr=True)
    await moving.start()
    began = loop.time()
    ways = ", ".join(old if old == new else f"{old} as {new}" for old, new in moving.routes.items())
    console.print(Text(f"moving {safe(ways)} as the group {safe(moving.group)}", "dim"), soft_wrap=True)
    read = True
    try:
        moved = moving.until_empty() if until_empty else moving.wait()
        async with nullcontext() if view is not None else _showing(moving, console):
            await (moved if view is None else view.during(moved))
    except OutputClosed:
        read = False
        if until_empty:
            raise CommandFailed("nobody reads any more what is moved, and something is left") from None
        raise
    finally:
        await moving.stop()
        if read:
            _report(moving, loop.time() - began, retained=retained, json=json)


def _report(moving: Bridge, seconds: float, *, retained: bool, json: bool) -> None:
    if json:
        figures = {"moved": moving.moved, "dead_lettered": moving.dead_lettered, "held": moving.held}
        say(
            as_json({**figures, "topics": moving.routes, "group": moving.group, "seconds": round(seconds, 3)})
        )
        return
    pace = f" ({moving.moved / seconds:,.0f}/s)" if moving.moved and seconds else ""
    say(
        f"moved {counted(moving.moved, 'message')} of {counted(len(moving.routes), 'topic')} in {seconds:.1f} s{pace}"
    )
    if moving.dead_lettered:
        say(f"{counted(moving.dead_lettered, 'message')} refused, and in the dead letter of the source")
    if moving.held:
        say(f"{counted(moving.held, 'message')} refused, and still at the source")
    if not (moving.moved or retained):
        say("this source keeps messages only for groups that were there: name one of them with --group")


@asynccontextmanager
async def _showing(moving: Bridge, console: Terminal) -> AsyncIterator[None]:
    """Show how it gets on, while inside; only on a terminal."""
    if not console.is_terminal:
        yield
        return
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        refreshing = asyncio.create_task(_refresh(moving, progress))
        try:
            yield
        finally:
            refreshing.cancel()


async def _refresh(moving: Bridge, progress: Progress) -> None:
    loop = asyncio.get_running_loop()
    task = progress.add_task("", total=None)
    asked, total = loop.time() - ASK, None
    recent = deque([(loop.time(), moving.moved)], maxlen=RECENT)
    while True:
        if loop.time() - asked >= ASK:
            asked = loop.time()
            try:
                left = await moving.lag()
            except BrokerUnavailable:
                left = None
            total = None if left is None else moving.moved + left
        recent.append((loop.time(), moving.moved))
        (since, before), (now, moved) = recent[0], recent[-1]
        pace = (moved - before) / (now - since) if now > since else 0.0
        progress.update(task, completed=moved, total=total, description=_line(moving, pace, total))
        await asyncio.sleep(REFRESH)


def _line(moving: Bridge, pace: float, total: int | None) -> str:
    parts = [f"{moving.moved:,} moved", f"{pace:,.0f}/s"]
    if total is not None:
        parts.append(f"{max(0, total - moving.moved):,} left")
    if moving.held:
        parts.append(f"{moving.held:,} refused and held")
    if moving.trouble is not None:
        parts.append(safe(moving.trouble))
    return " · ".join(parts)
