"""Every Python example of README and docs runs; those that are files belong together, and are followed in `test_tutorial`."""

import sys
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [each for each in find_examples(*PAGES) if '.py"' not in each.prefix]


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
