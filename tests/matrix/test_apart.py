"""What a row of the matrix does stays within it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix.apart import OWN_MOUNTS, OWN_PORTS

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.fixture(autouse=True, scope="module")
def _may_be_apart() -> None:
    try:
        refused = run(*OWN_MOUNTS, *OWN_PORTS, "true").returncode
    except FileNotFoundError:
        refused = True
    if refused:
        pytest.skip("a row needs root and Linux's namespaces, and this machine gives it none")


def test_what_a_row_mounts_is_gone_though_it_was_killed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "precious").mkdir(parents=True)
    program = (
        "import os, sys; from pathlib import Path; from tests.matrix.suite import bind\n"
        "ours, theirs = map(Path, sys.argv[1:]); bind(ours, theirs)\n"
        "print(os.listdir(theirs), flush=True); os.kill(os.getpid(), 9)\n"
    )
    row = run(*OWN_MOUNTS, sys.executable, "-c", program, str(ours), str(theirs))
    assert (row.returncode, row.stdout) == (-9, "['precious']\n"), row.stderr
    assert list(theirs.iterdir()) == []


def test_the_repository_cannot_be_changed_by_a_row(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.matrix.apart import read_only\n"
        "folder = Path(sys.argv[1]); read_only(folder); (folder / 'file').touch()\n"
    )
    row = run(*OWN_MOUNTS, sys.executable, "-c", program, str(tmp_path))
    assert "Read-only file system" in row.stderr
    (tmp_path / "file").touch()


def test_a_row_has_all_ports_to_itself() -> None:
    program = (
        "import socket, sys\n"
        "with socket.create_server(('127.0.0.1', int(sys.argv[1]))) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        row = run(*OWN_PORTS, sys.executable, "-c", program, str(taken.getsockname()[1]))
    assert row.returncode == 0, row.stderr
