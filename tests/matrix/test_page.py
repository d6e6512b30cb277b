"""The page that the matrix writes."""

from pathlib import Path

import msgspec
import pytest

from tests.matrix import __main__ as matrix
from tests.matrix.row import Result
from tests.matrix.rows import ROWS


def test_what_the_page_says_of_rows_that_were_run_elsewhere_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, results = tmp_path / "compatibility.md", tmp_path / "results"
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "result_of", lambda row: results / row.name)
    results.mkdir()
    redis, python = (next(row for row in ROWS if row.name == name) for name in ("redis-8", "python-3.15"))
    for row, version in ((redis, "Redis 8.0.6"), (python, "Python 3.15.2")):
        result = Result(row.name, version, 7, 0, ["tests.test_it::test_a[x|y]"], 60.0, "2026-11-30")
        (results / row.name).write_bytes(msgspec.json.encode(result))
    matrix.write_page()
    before = page.read_text(encoding="utf-8")
    (results / python.name).unlink()
    matrix.write_page()
    assert page.read_text(encoding="utf-8") == before
    passed = Result(redis.name, "Redis 8.0.7", 8, 0, [], 60.0, "2026-12-01")
    (results / redis.name).write_bytes(msgspec.json.encode(passed))
    matrix.write_page()
    assert page.read_text(encoding="utf-8") == before.replace(
        "| Redis 8.0.6 | 7 | 1 | 0 | 1 | 2026-11-30 |", "| Redis 8.0.7 | 8 | 0 | 0 | 1 | 2026-12-01 |"
    ).replace("* Redis 8.0.6: `tests.test_it::test_a[x|y]`\n", "")
