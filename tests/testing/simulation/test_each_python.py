"""The worlds have the same histories on each Python: in `make matrix`, which has them all."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OTHERS = [found for minor in range(12, 20) if (found := shutil.which(f"matrix-python-3.{minor}"))]

pytestmark = pytest.mark.skipif(not OTHERS, reason="no other Pythons are here: make matrix has them")


@functools.cache
def histories(python: str, hash_seed: int) -> list[str]:
    run = subprocess.run(
        [python, "-m", "tests.testing.simulation", "hash", "--histories", "1000"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hash_seed", [1, 2])
@pytest.mark.parametrize("python", OTHERS, ids=lambda path: Path(path).name)
def test_each_world_has_the_same_histories(python: str, hash_seed: int) -> None:
    assert histories(python, hash_seed) == histories(sys.executable, 0)
