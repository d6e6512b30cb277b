"""What a row does is its own, and ends with it: mounts, temporary files, ports.

Else a row would disturb whatever else runs on the machine: a test run beside it would use the servers of another version
that a row has started for all, lose a port to one of its servers, or be without its temporary files when the folder of
another Debian is deleted into which they were mounted.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from things_kit.testing.servers.process import run

OWN_MOUNTS: Final = ("unshare", "--mount")
"""The beginning of a command that sees what is mounted, and whose own mounts nobody else sees."""

OWN_PORTS: Final = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""The beginning of a command that has a loopback interface of its own, and no other: it reaches no network."""


def run_apart(row: str) -> int:
    """Run a row in a process of its own, with whose end all is gone, however it ends. Returns its exit status."""
    # Deleted out here, where nothing is mounted in it
    with tempfile.TemporaryDirectory(prefix="things-kit-matrix-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user goes through it
        command = (*OWN_MOUNTS, sys.executable, "-m", "tests.matrix.row", row, folder)
        return subprocess.run(command, check=False).returncode


def temporary(place: Path) -> Path:
    """The temporary folder of a row."""
    folder = place / "tmp"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o1777)
    return folder


def read_only(folder: Path) -> None:
    """Have a folder that nobody can change from in here."""
    run("mount", "--bind", folder, folder)
    run("mount", "-o", "remount,bind,ro", folder)
