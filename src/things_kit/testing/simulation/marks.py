"""`reached`: says from anywhere in the code under simulation that a point of interest was seen."""

from collections.abc import Iterator
from contextlib import contextmanager

from things_kit.testing.simulation.history import History

_histories: list[History] = []


def reached(name: str) -> None:
    """Mark that this was reached, for `simulate(..., sometimes=(name,))`. Outside of a simulation it does nothing."""
    if _histories:
        _histories[-1].reached.add(name)


@contextmanager
def noted_in(history: History) -> Iterator[None]:
    """Let marks go here for a while."""
    _histories.append(history)
    try:
        yield
    finally:
        _histories.remove(history)
