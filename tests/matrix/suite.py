"""A newer Debian in a folder: servers and Pythons of today, beside those of the system. Needs root, and debootstrap once."""

import atexit
import shutil
import stat
from pathlib import Path
from typing import Final

from things_kit.testing.servers.process import cached, run

SUITE: Final = "sid"
MIRROR: Final = "http://deb.debian.org/debian"
PYTHONS: Final = ("python3.14", "python3.15")
SERVERS: Final = ("rabbitmq-server", "redis-server", "valkey-server", "nats-server")

LOADER: Final = "lib64/ld-linux-x86-64.so.2"
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"


def suite() -> Path:
    """The folder, made once: it takes a few minutes."""
    return cached(f"debian-{SUITE}", _bootstrap)


def _bootstrap(folder: Path) -> None:
    packages = ",".join(["ca-certificates", *(f"{python}-venv" for python in PYTHONS)])
    run("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, folder, MIRROR)
    policy = folder / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no package is to start a service
    policy.chmod(0o755)
    mounted(folder)
    run("chroot", folder, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *SERVERS)


def mounted(folder: Path, *inside: Path) -> None:
    """Have /proc there, and these folders of ours under the same names, until this process ends."""
    if not (folder / "proc/self").exists():
        run("mount", "-t", "proc", "proc", folder / "proc")
        atexit.register(run, "umount", "-l", folder / "proc")
    for each in inside:
        place = folder / each.relative_to("/")
        place.mkdir(parents=True, exist_ok=True)
        if not any(line.split()[1] == str(place) for line in Path("/proc/mounts").read_text().splitlines()):
            run("mount", "--bind", each, place)
            atexit.register(run, "umount", "-l", place)  # who deletes the suite is not to delete what is ours


def programs(row: Path, **commands: str) -> Path:
    """A folder for the front of the search path, with a script for each command; {suite} is the folder of the suite."""
    shutil.rmtree(row, ignore_errors=True)
    row.mkdir(parents=True)
    for name, command in commands.items():
        script = row / name.replace("_", "-")
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return row


def by_loader(folder: Path, program: str) -> str:
    """How a program of the suite is run outside of it: by its own loader, with its own libraries."""
    return f"{folder / LOADER} --library-path {folder / LIBRARIES} {folder / program}"
