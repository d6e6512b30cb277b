"""Run the rows that are asked for, or all; write docs/compatibility.md from all that were ever run, here or where it was last written."""

import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from tests.matrix.apart import run_apart
from tests.matrix.row import Result, result_of
from tests.matrix.rows import ROOT, ROWS

PAGE: Final = ROOT / "docs" / "compatibility.md"

INTRODUCTION: Final = """# Compatibility

The suite against what users run today: conformance and the drivers' own tests against other servers, what needs no server on newer Pythons,
conformance with the lowest versions of all clients that `pyproject.toml` allows, and our AsyncAPI documents with AsyncAPI's own parser. Written by `make matrix`; it needs root and a Debian, as other
servers and Pythons come from other releases of it in folders of their own.

What the suite is run with every day is in the table of [brokers](brokers.md); Kafka's is 4.2.

| what | version | passed | failed | skipped | minutes | on |
|---|---|---|---|---|---|---|
"""


def write_page() -> None:
    """Write the page from all results that there are. What it says of rows that were run elsewhere stays."""
    before = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    lines: list[str] = []
    failures: list[str] = []
    for row in ROWS:
        if not result_of(row).exists():
            unknown = f"| {row.what} | | not run yet | | | | |"
            line = next((each for each in before if each.startswith(f"| {row.what} |")), unknown)
            version = line.split("|")[2].strip()
            lines.append(line)
            failures += [each for each in before if each.startswith(f"* {version}: ")]
            continue
        result = msgspec.json.decode(result_of(row).read_bytes(), type=Result)
        lines.append(
            f"| {row.what} | {result.version} | {result.passed} | {len(result.failed)} | {result.skipped} "
            f"| {result.seconds / 60:.0f} | {result.on} |"
        )
        failures += [f"* {result.version}: `{name}`" for name in result.failed]
    text = INTRODUCTION + "\n".join(lines) + "\n"
    if failures:
        text += "\n## What fails there\n\n" + "\n".join(failures) + "\n"
    PAGE.write_text(text, encoding="utf-8")


def main(names: Sequence[str]) -> int:
    failed = [row.name for row in ROWS if (not names or row.name in names) and run_apart(row.name)]
    write_page()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
