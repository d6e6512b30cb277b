"""Plant mutants into what decides in the engine, one after another, in a copy, and run the fast tests against each.

cosmic-ray says which mutants there are and makes them; the tests that are nearest to the module go first, then all of the
engine's and the conformance of the memory broker.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
ENGINE: Final = Path("src/things_kit/engine")

NEAREST: Final[Mapping[str, Sequence[str]]] = {
    "batches": ("test_batch_consumer",),
    "delays": ("test_delays", "test_window", "test_consumer_handling"),
    "inbox": ("test_inbox", "test_consumer_lifecycle", "test_credit", "test_delays", "test_retry_topics"),
    "lanes": ("test_lanes", "test_consumer_handling"),
    "leases": ("test_delays", "test_consumer_connection", "test_consumer_lifecycle"),
    "offsets": ("test_offsets",),
    "outcomes": ("test_consumer_handling", "test_dead_letter", "test_delays"),
    "pump": ("test_consumer_connection", "test_window", "test_credit"),
    "suspects": ("test_suspects",),
    "verdict": ("test_verdict", "test_consumer_handling"),
    "watch": ("test_watch",),
    "window": ("test_window",),
    "workers": ("test_consumer_handling", "test_consumer_lifecycle"),
}
"""What decides, and the tests of each."""

EVERYTHING: Final = ("tests/engine", "tests/conformance/test_memory.py")

MEANINGLESS: Final = ("core/NumberReplacer", "core/RemoveDecorator")
"""Another number is another number, mostly of seconds; and without a decorator little can be imported."""

TIMEOUT: Final = 400.0


def mutants(copy: Path, modules: Sequence[str]) -> list[dict[str, Any]]:
    """All mutants of these modules, as cosmic-ray finds them."""
    paths = [str(ENGINE / f"{module}.py") for module in modules]
    config = copy / "cosmic-ray.toml"
    config.write_text(
        f"[cosmic-ray]\nmodule-path = {json.dumps(paths)}\ntimeout = 1.0\nexcluded-modules = []\n"
        'test-command = "true"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    cosmic_ray(copy, "init", config.name, "session.sqlite")
    lines = cosmic_ray(copy, "dump", "session.sqlite").splitlines()
    found = [json.loads(line)[0]["mutations"][0] for line in lines]
    said = {path: declared(ast.parse((copy / path).read_text())) for path in paths}
    return [
        mutant
        for mutant in found
        if not mutant["operator_name"].startswith(MEANINGLESS)
        and not any(start <= tuple(mutant["start_pos"]) < end for start, end in said[mutant["module_path"]])
    ]


Place = tuple[int, int]
"""Line and column."""


def declared(tree: ast.Module) -> Sequence[tuple[Place, Place]]:
    """Where signatures and annotations are: a mutant there breaks the import, which says nothing of the tests."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.append(((node.lineno, node.col_offset), (node.body[0].lineno, node.body[0].col_offset)))
            case ast.AnnAssign(annotation=kind):
                found.append(
                    ((kind.lineno, kind.col_offset), (kind.end_lineno or 0, kind.end_col_offset or 0))
                )
    return found


def cosmic_ray(copy: Path, *words: str) -> str:
    command = [sys.executable, "-m", "cosmic_ray.cli", *words]
    return subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True).stdout


def is_found(copy: Path, mutant: Mapping[str, Any], python: str, *, nearest_only: bool) -> bool:
    """Whether some test fails with this mutant."""
    module = copy / mutant["module_path"]
    original = module.read_bytes()
    try:
        cosmic_ray(copy, "apply", mutant["module_path"], mutant["operator_name"], str(mutant["occurrence"]))
        nearest = [f"tests/engine/{name}.py" for name in NEAREST[module.stem]]
        return not (passes(copy, nearest, python) and (nearest_only or passes(copy, EVERYTHING, python)))
    finally:
        module.write_bytes(original)


def passes(copy: Path, tests: Sequence[str], python: str) -> bool:
    command = [python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False  # it hangs: that is seen
    return done.returncode == 0


def shown(copy: Path, mutant: Mapping[str, Any]) -> str:
    line, _ = mutant["start_pos"]
    text = (copy / mutant["module_path"]).read_text().splitlines()[line - 1].strip()
    module = Path(mutant["module_path"]).name
    operator = mutant["operator_name"].removeprefix("core/")
    return f"{module}:{line} {mutant['definition_name']}: {operator}: {text}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("modules", nargs="*", default=list(NEAREST), metavar="MODULE")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--nearest", action="store_true", help="run only the nearest tests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--python", default=sys.executable, help="runs the tests, where cosmic-ray is elsewhere"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
        existing = [module for module in asked.modules if (copy / ENGINE / f"{module}.py").exists()]
        found = mutants(copy, existing)
        random.Random(asked.seed).shuffle(found)
        survivors = 0
        for number, mutant in enumerate(found[: asked.count], 1):
            if is_found(copy, mutant, asked.python, nearest_only=asked.nearest):
                print(f"{number} found    {shown(copy, mutant)}", flush=True)
            else:
                survivors += 1
                print(f"{number} SURVIVED {shown(copy, mutant)}", flush=True)
        print(f"{survivors} of {min(asked.count, len(found))} survived; there are {len(found)}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
