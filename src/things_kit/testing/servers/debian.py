"""Servers that come as packages of Debian and its children."""

import os
import shutil
from pathlib import Path
from typing import Final

from things_kit.testing.servers.process import ServerUnavailable, cache, locked, run

SYSTEM_FOLDERS: Final = (
    "/usr/sbin", "/usr/lib/rabbitmq/bin", "/usr/lib/postgresql/*/bin", "/usr/local/sbin",
)  # fmt: skip
"""Where servers are that the search path of a plain user does not show."""

QUIET: Final = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
"""apt-get asks nothing, and starts no service of what it installs."""


def program(name: str, package: str) -> Path:
    """The path of a server's program; its package is installed first where it is missing and we may do so.

    Only root installs, as in a container or on a build machine: on a person's own machine the system is theirs.

    Raises:
        ServerUnavailable: It is not there and cannot be installed; says what would install it.
    """
    found = _find(name)
    if found is None:
        with locked(cache() / ".apt.lock"):
            if _find(name) is None:
                _install(name, package)
            found = _find(name)
    if found is None:
        raise ServerUnavailable(f"the package {package} is installed, but there is no {name} on this machine")
    return found


def _find(name: str) -> Path | None:
    root = Path("/")
    folders = [
        str(folder)
        for pattern in SYSTEM_FOLDERS
        for folder in sorted(root.glob(pattern.removeprefix("/")), reverse=True)
    ]
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))
    return Path(found) if found else None


def _install(name: str, package: str) -> None:
    if shutil.which("apt-get") is None or os.getuid() != 0:
        raise ServerUnavailable(f"{name} is not installed; on Debian: apt-get install {package}")
    environment = {**os.environ, **QUIET}
    run("apt-get", "update", "-qq", env=environment)
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", package, env=environment)
