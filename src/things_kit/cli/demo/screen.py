"""What the demo shows: one live line while it runs, and a page that says what came of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from things_kit.cli.demo.audit import Audit
from things_kit.cli.demo.verdict import Check, elsewhere
from things_kit.cli.printing import Terminal, safe

WIDTH = 46
REFRESH = 0.1
MOST = 8
"""Workers whose attempts are listed."""


class Screen:
    """Prints to a console: live on a terminal, line by line elsewhere."""

    def __init__(self, console: Terminal) -> None:
        self._console = console

    def say(self, words: str) -> None:
        """A line on what happens."""
        self._console.print(Text.assemble("  ", ("●", "cyan"), f" {safe(words)}"), soft_wrap=True)

    def title(self, files: int, distributions: int, planted: int, url: str) -> None:
        """What is about to happen."""
        files_text = f"{files:,} that {distributions} installed distributions recorded, and {planted} planted"
        title = Text.assemble(("things-kit demo", "bold"), ("  an audit of this Python environment\n", "dim"))
        for name, value in (("files", files_text), ("broker", safe(url))):
            title.append(f"\n  {name:<8}", "dim").append(value)
        self._console.print(title.append("\n"), soft_wrap=True)

    @asynccontextmanager
    async def following(self, audit: Audit) -> AsyncIterator[None]:
        """Show how the audit gets on, while inside."""
        if not self._console.is_terminal:
            yield
            return
        with Live(_progress(audit), console=self._console, auto_refresh=False, transient=True) as live:
            refreshing = asyncio.create_task(_refresh(live, audit))
            try:
                yield
            finally:
                refreshing.cancel()

    def page(self, audit: Audit, checks: list[Check]) -> None:
        """What came of it."""
        self._console.print(Padding(_figures(audit), (1, 0, 1, 2), expand=False))
        for check in checks:
            mark = ("✓", "bold green") if check.ok else ("✗", "bold red")
            self._console.print(
                Text.assemble("  ", mark, f" {check.name}", (f"  {safe(check.found)}", "dim")), soft_wrap=True
            )

    def next(self, commands: list[tuple[str, str]], note: str) -> None:
        """What to try now."""
        page = Text.assemble("\n", ("Now try", "bold"), (f" {note}" if note else "", "dim"))
        for command, purpose in commands:
            page.append(f"\n  # {purpose}\n", "dim").append(f"  {safe(command)}", "cyan")
        self._console.print(page, soft_wrap=True)


async def _refresh(live: Live, audit: Audit) -> None:
    while True:
        live.update(_progress(audit), refresh=True)
        await asyncio.sleep(REFRESH)


def _progress(audit: Audit) -> RenderableType:
    tally = audit.tally
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(audit.total, tally.settled, width=WIDTH, complete_style="cyan", finished_style="green")
    failed = Text(f"{len(tally.dead)} dead letters", "red" if tally.dead else "dim")
    line.add_row("", bar, f"{tally.settled}/{audit.total}", failed)
    workers = Text("    ")
    for worker in audit.crew.workers:
        mark = ("✗ ", "bold red") if worker.killed else ("● ", "green")
        workers.append_text(Text.assemble(mark, (worker.name, "bold"), f" {tally.by_worker[worker.name]}   "))
    return Group("", line, workers)


def _figures(audit: Audit) -> Table:
    tally = audit.tally
    table = Table(box=box.ROUNDED, show_header=False, border_style="dim", padding=(0, 1))
    table.add_column(style="bold")
    table.add_column(justify="right", style="cyan")
    table.add_column(style="dim")
    planted = sum(
        entry.distribution == audit.planted.entries[0].distribution for entry in audit.messages.values()
    )
    table.add_row(
        "files", f"{audit.total:,}", f"{audit.total - planted:,} of this environment, {planted} planted"
    )
    table.add_row("verified", f"{len(tally.verified):,}", "exactly as their installers recorded them")
    table.add_row("dead letters", f"{len(tally.dead):,}", _reasons(audit))
    table.add_row("redelivered", f"{len(tally.again):,}", _killing(audit))
    table.add_row("workers", str(len(audit.crew.workers)), _shares(audit))
    pace = audit.total / audit.seconds if audit.seconds else 0.0
    table.add_row("seconds", f"{audit.seconds:.1f}", f"{pace:,.0f} messages a second, the waits included")
    return table


def _shares(audit: Audit) -> str:
    shares = [f"{audit.tally.by_worker[worker.name]:,}" for worker in audit.crew.workers]
    return f"with {', '.join(shares[:MOST])}{', ...' if len(shares) > MOST else ''} attempts"


def _reasons(audit: Audit) -> str:
    own = elsewhere(audit)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(own.items()))
    return f"{len(audit.planted.expected)} planted; of this environment: {kinds or 'none'}"


def _killing(audit: Audit) -> str:
    if audit.killed is None:
        return "no worker was killed while it held them"
    return f"{audit.killed.name} (process {audit.killed.pid}) was killed while it held them"
