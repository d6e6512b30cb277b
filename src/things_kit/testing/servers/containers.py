"""Whether servers can be had as containers."""

import shutil
import subprocess
from importlib import import_module
from typing import Any


def testcontainers(module: str) -> Any:
    """A module of testcontainers, an optional package; None where it or Docker is missing."""
    if not docker_answers():
        return None
    try:
        return import_module(module)
    except ModuleNotFoundError:
        return None


def docker_answers() -> bool:
    """Whether there is a Docker that runs."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=10, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
