"""Run one row, apart from all else: `python -m tests.matrix.row ROW FOLDER`, as `tests.matrix` does for each."""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from tests.matrix.apart import OWN_PORTS, read_only, temporary
from tests.matrix.rows import ROOT, ROWS, Ready, Row
from things_kit.testing.servers.process import ServerUnavailable, cache

WORKERS: Final = os.environ.get("WORKERS", "2")


class Result(msgspec.Struct):
    """What came of a row."""

    row: str
    version: str
    passed: int
    skipped: int
    failed: list[str]
    seconds: float
    on: str


def result_of(row: Row) -> Path:
    """Where the last result of a row is kept."""
    return cache() / "matrix" / f"{row.name}.json"


def run_row(row: Row, place: Path) -> Result:
    """Run the tests of a row, which has this folder to itself."""
    read_only(ROOT)
    ready = row.prepare(place)
    report = place / "tmp" / "report.xml"
    options = ("-q", "-p", "no:cacheprovider", "-n", WORKERS, "--dist", "loadscope", f"--junitxml={report}")
    command = (*OWN_PORTS, *ready.python, "-m", "pytest", *options, *row.tests)
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=_environment(row, ready, place), check=False)
    return _read(row, ready, report, time.monotonic() - began)


def _environment(row: Row, ready: Ready, place: Path) -> dict[str, str]:
    own = str(temporary(place))
    return {
        **os.environ,
        **row.environment,
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{own}/hypothesis",
        "PATH": os.pathsep.join([*([str(ready.path)] if ready.path else []), os.environ["PATH"]]),
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "TMPDIR": own,
    }


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


def main(name: str, folder: str) -> int:
    row = next(row for row in ROWS if row.name == name)
    try:
        result = run_row(row, Path(folder))
    except ServerUnavailable as reason:
        print(f"{row.name}: cannot be had here: {reason}", flush=True)
        return 0
    if not result.passed and not result.failed:
        print(f"{row.name}: no test was run", flush=True)
        return 1
    result_of(row).parent.mkdir(parents=True, exist_ok=True)
    result_of(row).write_bytes(msgspec.json.encode(result))
    print(f"{row.name}: {result.version}: {result.passed} passed, {len(result.failed)} failed", flush=True)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
