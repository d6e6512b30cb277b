"""What a person sees of a soak: a line while it runs, and a table at the end."""

import sys
import time
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from things_kit.testing.soak.verdict import FaultLine, Verdict
from things_kit.testing.soak.world import World

EVERY = 15.0
"""Seconds between two lines where nobody looks at a terminal."""


class Progress:
    """One line: how long, what is done to the world, and how far everybody is."""

    def __init__(self, console: Console, minutes: float) -> None:
        self._console = console
        self._minutes = minutes
        self._began = time.monotonic()
        self._said = 0.0
        self._doing = ""

    def __call__(self, world: World) -> None:
        """Show how it goes."""
        line = self._line(world)
        if self._console.is_terminal:
            sys.stdout.write(f"\r\x1b[2K{line[: self._console.width - 1]}")
            sys.stdout.flush()
        elif world.doing != self._doing or time.monotonic() - self._said > EVERY:
            self._said, self._doing = time.monotonic(), world.doing
            self._console.print(line, soft_wrap=True)

    def end(self) -> None:
        """Leave the line."""
        if self._console.is_terminal:
            sys.stdout.write("\n")

    def _line(self, world: World) -> str:
        ran = int(time.monotonic() - self._began)
        left = " ".join(f"{group} {number}" for group, number in world.tally.left().items())
        return (
            f"{ran // 60:02}:{ran % 60:02} of {self._minutes:g} min | {world.doing} | "
            f"published {len(world.tally.confirmed):,} | to do: {left}"
        )


def table(title: str, verdict: Verdict) -> Group:
    """All that came of it."""
    handled = "  ".join(f"{group} {number:,}" for group, number in verdict.handled.items())
    again = "  ".join(f"{group} {number}" for group, number in sorted(verdict.again.items())) or "none"
    head = Text.assemble(
        (f"{title}\n", "bold"),
        f"{verdict.published:,} messages confirmed in {verdict.seconds:.0f} s\nhandled: {handled}\n",
        f"came again because of a fault: {again}\ndead letters brought back: {verdict.dead}\n",
        f"longest that a process had no turn on this machine: {verdict.starved:.1f} s",
    )
    return Group(head, _promises(verdict.broken), _faults(verdict.faults))


def _promises(broken: Mapping[str, Sequence[str]]) -> Table:
    found = Table(box=box.SIMPLE, title="promises", title_justify="left")
    found.add_column("promise")
    found.add_column("verdict")
    found.add_column("for example", overflow="fold")
    for promise, findings in broken.items():
        mark = Text("kept", "green") if not findings else Text(f"broken {len(findings)} times", "bold red")
        found.add_row(promise, mark, Text("\n".join(findings[:3])))
    return found


def _faults(faults: Sequence[FaultLine]) -> Table:
    found = Table(
        box=box.SIMPLE,
        title="faults, and seconds until every group had a success again",
        title_justify="left",
    )
    found.add_column("fault")
    for name in ("times", "seen", "median", "worst"):
        found.add_column(name, justify="right")
    found.add_column("an effect", overflow="fold")
    for line in faults:
        worst = Text("never", "bold red") if line.worst < 0 else Text(f"{line.worst:.1f}")
        seen = Text(str(line.seen), "" if line.seen == line.times else "yellow")
        found.add_row(line.fault, str(line.times), seen, f"{line.median:.1f}", worst, Text(line.effect))
    return found
