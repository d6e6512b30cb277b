"""Another Debian in a folder: servers and Pythons of today, or of long ago, beside the system's. Needs root, and debootstrap once.

What is mounted here is seen by the process of one row alone (`apart.py`), and ends with it.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from things_kit.testing.servers.process import cached, locked, run

NEWEST: Final = "sid"
MIRROR: Final = "http://deb.debian.org/debian"
PYTHONS: Final = ("python3.14", "python3.15")
SERVERS: Final = ("rabbitmq-server", "redis-server", "valkey-server", "nats-server")

LOADER: Final = "lib64/ld-linux-x86-64.so.2"
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"


def suite() -> Path:
    """The folder of the newest, made once: it takes a few minutes."""
    return cached(f"debian-{NEWEST}", _bootstrap_newest)


def _bootstrap_newest(folder: Path) -> None:
    _bootstrap(folder, NEWEST, "ca-certificates", *(f"{python}-venv" for python in PYTHONS))
    _install(folder, *SERVERS)


def with_package(release: str, package: str) -> Path:
    """The folder of a release that has this package; each is made, and installed, once."""
    if release == NEWEST:
        folder = suite()
    else:
        folder = cached(f"debian-{release}", lambda folder: _bootstrap(folder, release))
    with locked(folder.with_name(f".{folder.name}-{package}.lock")):
        if not (folder / f"usr/share/doc/{package}").exists():
            _install(folder, package)
    return folder


def _bootstrap(folder: Path, release: str, *packages: str) -> None:
    include = [f"--include={','.join(packages)}"] if packages else []
    run("debootstrap", "--variant=minbase", *include, release, folder, MIRROR)
    policy = folder / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no package is to start a service
    policy.chmod(0o755)


def _install(folder: Path, *packages: str) -> None:
    mounted(folder)
    # A mirror may be weeks behind; its signatures are checked all the same
    run("chroot", folder, "apt-get", "update", "-qq", "-o", "Acquire::Check-Valid-Until=false")
    run("chroot", folder, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)


def mounted(folder: Path, *inside: Path) -> None:
    """Have /proc there, and these folders of ours under the same names."""
    if not (folder / "proc/self").exists():
        run("mount", "-t", "proc", "proc", folder / "proc")
    for each in inside:
        bind(each, folder / each.relative_to("/"))


def bind(folder: Path, place: Path) -> None:
    """Have a folder under another name too."""
    place.mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", folder, place)


def programs(folder: Path, commands: Mapping[str, str]) -> Path:
    """A folder for the front of the search path, with a script for each command."""
    folder.mkdir()
    for name, command in commands.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return folder


def by_loader(folder: Path, program: str) -> str:
    """How a program of the suite is run outside of it: by its own loader, with its own libraries."""
    return f"{folder / LOADER} --library-path {folder / LIBRARIES} {folder / program}"
