"""What a simulation has found, as a table in the terminal and as a page."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from things_kit.testing.simulation.history import Row

WIDTH: Final = 72
"""Columns that a message takes at most in the table."""

PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color-scheme: light dark; }}
pre {{ overflow-x: auto; font-size: .9em; padding: 1rem; background: color-mix(in srgb, currentColor 7%, transparent); }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .6rem; vertical-align: top;
  border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); }}
td.at {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
td.mark {{ width: 40%; font-weight: 600; }}
tr.fault td {{ background: color-mix(in srgb, crimson 14%, transparent); }}
.wide {{ overflow-x: auto; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<pre>{text}</pre>
<div class="wide"><table><thead><tr><th>at</th>{columns}</tr></thead><tbody>
{rows}
</tbody></table></div>
</html>
"""

FAULTY: Final = (
    "crashes",
    "goes away",
    "told to stop",
    "breaks",
    "session ends",
    "partitions move",
    "failed",
)
"""What is shown as a fault in the timeline."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `simulate`; of a failure, that of its shortest history.

    Attributes:
        broker: Whose model it was.
        histories: How many were run.
        seed: The seed that failed; the last one where none did.
        check: The check that failed, or None.
        text: What that raised, with its traceback.
        replay: One line that runs the failing history again.
        hash: Of the broker's events of this history.
        history: What happened, in order.
        happened: How often each fault happened, over all histories.
        never_fired: Faults that were asked for and never happened.
        seconds: Virtual seconds of this history.
    """

    broker: str
    histories: int
    seed: int
    check: str | None
    text: str
    replay: str
    hash: str
    history: Sequence[Row]
    happened: dict[str, int]
    never_fired: Sequence[str]
    seconds: float

    def __str__(self) -> str:
        lines = self._summary()
        if self.check is None:
            return "\n".join(lines)
        lines += [
            f"{self.check} failed with seed {self.seed}; the shortest history that breaks it so:",
            "",
            *_table(self.history),
            "",
            self.text,
            "",
            f"again: {self.replay}",
        ]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        faults = ", ".join(f"{name} {count}" for name, count in self.happened.items()) or "none"
        lines = [f"{_histories(self.histories)} on the model of {self.broker}; faults: {faults}"]
        return [*lines, f"never happened: {', '.join(self.never_fired)}"] if self.never_fired else lines

    def html(self, path: str | Path) -> None:
        """Write the history as a page of its own: one column for each process."""
        processes = list(Counter(row.process for row in self.history))
        title = f"{self.check} failed" if self.check else _histories(self.histories)
        rows = "\n".join(_html_row(row, processes) for row in self.history)
        page = PAGE.format(
            title=escape(f"{title}: {self.broker}, seed {self.seed}"),
            summary="<br>".join(map(escape, self._summary())),
            text=escape(f"{self.text}\n\nagain: {self.replay}" if self.check else "all checks held"),
            columns="".join(f"<th>{escape(name)}</th>" for name in processes),
            rows=rows,
        )
        Path(path).write_text(page, encoding="utf-8")


class SimulationFailed(AssertionError):
    """A history broke a check; `report` says which, and how."""

    def __init__(self, report: Report, reason: str | None = None) -> None:
        super().__init__(reason or f"\n{report}")
        self.report = report

    def __reduce__(self) -> tuple[type["SimulationFailed"], tuple[Report, str]]:
        return SimulationFailed, (self.report, str(self))


def _histories(count: int) -> str:
    return f"{count} histor{'y' if count == 1 else 'ies'}"


def _table(rows: Sequence[Row]) -> list[str]:
    width = max((len(row.process) for row in rows), default=0)
    what = max((len(row.what) for row in rows), default=0)
    return [
        f"{row.at:9.3f} s  {row.process:<{width}}  {row.what:<{what}}  {row.message[:WIDTH]}".rstrip()
        for row in rows
    ]


def _html_row(row: Row, processes: Sequence[str]) -> str:
    text = escape(f"{row.what} {row.message}".strip())
    cells = "".join(f"<td>{text if name == row.process else ''}</td>" for name in processes)
    kind = ' class="fault"' if any(word in row.what for word in FAULTY) else ""
    return f'<tr{kind}><td class="at">{row.at:.3f} s</td>{cells}</tr>'
