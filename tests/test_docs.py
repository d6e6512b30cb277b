"""Every Python example of README and docs runs; those that are files belong together, and are followed in `test_tutorial`."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

from tests.messaging.test_topic_typing import pyright

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL = list(find_examples(*PAGES))
EXAMPLES = [each for each in ALL if '.py"' not in each.prefix]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_runs(
    example: CodeExample, eval_example: EvalExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not example.prefix.startswith("python") and example.prefix != "py":
        pytest.fail(f"{example} is no Python; find_examples should not have found it")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    eval_example.run(example)
    for name in set(sys.modules) - before:  # each example is a module of its own name
        if name.startswith(("README", "docs")):
            del sys.modules[name]


@pytest.mark.timeout(300)
def test_a_strict_type_checker_accepts_every_example(tmp_path: Path) -> None:
    """Of README, docs and examples; but for those that use Django, which has no types."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("django*"))
    for example in ALL:
        if "import django" in example.source:
            continue
        title = re.search(r'title="(\w+\.py)"', example.prefix)
        names = {f"{example.path.stem}_{example.start_line}.py".replace("-", "_")}
        if title:  # the tests of a page import its program
            names = {title[1]} if title[1].startswith("test_") else {title[1], *names}
        for name in names:
            (tmp_path / name).write_text(example.source)
    output = pyright(tmp_path, ".")
    assert re.search(r"^0 errors", output, re.MULTILINE), output
