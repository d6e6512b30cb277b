"""Which seed alone is to run, and which test asks: what the pytest plugin knows."""

import os
from typing import Final

_SEED: Final = "THINGS_KIT_SEED"


def seed() -> int | None:
    """The only seed to run; None: all."""
    text = os.environ.get(_SEED)
    return int(text) if text else None


def choose(only: int) -> None:
    """Run this seed alone, in this process and its children."""
    os.environ[_SEED] = str(only)


def test() -> str | None:
    """The test that runs, as pytest names it."""
    running = os.environ.get("PYTEST_CURRENT_TEST")
    return None if running is None else running.rsplit(" (", 1)[0]
