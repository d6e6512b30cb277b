"""Run the rows that are asked for, or all; write docs/compatibility.md from all that were ever run."""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tests.matrix.rows import ROOT, ROWS, Ready, Row
from things_kit.testing.servers.process import ServerUnavailable, cache

WORKERS = os.environ.get("WORKERS", "2")
PAGE = ROOT / "docs" / "compatibility.md"

INTRODUCTION = """# Compatibility

The suite against what users run today: conformance and the drivers' own tests against other servers, what needs no server on newer Pythons,
conformance with the lowest versions of all clients that `pyproject.toml` allows, and our AsyncAPI documents with AsyncAPI's own parser. Written by `make matrix`; it needs root and a Debian, as other
servers and Pythons come from other releases of it in folders of their own.

What the suite is run with every day is in the table of [brokers](brokers.md); Kafka's is 4.2.

| what | version | passed | failed | skipped | minutes | on |
|---|---|---|---|---|---|---|
"""


class Result(msgspec.Struct):
    """What came of a row."""

    row: str
    version: str
    passed: int
    skipped: int
    failed: list[str]
    seconds: float
    on: str


def run_row(row: Row) -> Result:
    """Run the tests of a row."""
    ready = row.prepare()
    report = Path(tempfile.gettempdir()) / f"things-kit-{row.name}.xml"  # which other systems see too
    report.unlink(missing_ok=True)
    command = [
        *ready.python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        WORKERS,
        "--dist",
        "loadscope",
    ]
    began = time.monotonic()
    subprocess.run(
        [*command, f"--junitxml={report}", *row.tests], cwd=ROOT, env=_environment(row, ready), check=False
    )
    return _read(row, ready, report, time.monotonic() - began)


def _environment(row: Row, ready: Ready) -> dict[str, str]:
    found = {**os.environ, **row.environment, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    if ready.path is not None:
        found["PATH"] = f"{ready.path}{os.pathsep}{found['PATH']}"
        # The servers that tests share are not those of other rows
        found["TMPDIR"] = str(ready.path.parent / f"{row.name}-tmp")
        Path(found["TMPDIR"]).mkdir(exist_ok=True)
    return found


def _read(row: Row, ready: Ready, report: Path, seconds: float) -> Result:
    passed, skipped, failed = 0, 0, []
    cases = ET.parse(report).getroot().iter("testcase") if report.exists() else ()
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    today = datetime.now(UTC).date().isoformat()
    return Result(row.name, ready.version, passed, skipped, failed, seconds, today)


def write_page() -> None:
    """Write the page from all results that there are."""
    lines, failures = [], []
    for row in ROWS:
        path = _results() / f"{row.name}.json"
        if not path.exists():
            lines.append(f"| {row.what} | | not run yet | | | | |")
            continue
        result = msgspec.json.decode(path.read_bytes(), type=Result)
        lines.append(
            f"| {row.what} | {result.version} | {result.passed} | {len(result.failed)} | {result.skipped} "
            f"| {result.seconds / 60:.0f} | {result.on} |"
        )
        failures += [f"* {row.what}: `{name}`" for name in result.failed]
    text = INTRODUCTION + "\n".join(lines) + "\n"
    if failures:
        text += "\n## What fails there\n\n" + "\n".join(failures) + "\n"
    PAGE.write_text(text, encoding="utf-8")


def _results() -> Path:
    folder = cache() / "matrix"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(names: Sequence[str]) -> int:
    failed = 0
    for row in ROWS:
        if names and row.name not in names:
            continue
        try:
            result = run_row(row)
        except ServerUnavailable as reason:
            print(f"{row.name}: cannot be had here: {reason}", flush=True)
            continue
        if not result.passed and not result.failed:
            print(f"{row.name}: no test was run", flush=True)
            failed += 1
            continue
        (_results() / f"{row.name}.json").write_bytes(msgspec.json.encode(result))
        failed += len(result.failed)
        print(
            f"{row.name}: {result.version}: {result.passed} passed, {len(result.failed)} failed", flush=True
        )
    write_page()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
