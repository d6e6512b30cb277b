"""What a running handler holds, so that to publish elsewhere would wait for the handler itself."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from things_kit.engine.url import BrokerURL

refusal: Final[ContextVar[Callable[[BrokerURL], str | None] | None]] = ContextVar(
    "things_kit.refusal", default=None
)
"""Says why whoever runs here must not publish to a broker now, and wait for it; None: he may."""

_held: Final[Counter[object]] = Counter()


@contextmanager
def holding(what: object) -> Iterator[None]:
    """Note that a handler of this process holds something, such as the write lock of a file."""
    _held[what] += 1
    try:
        yield
    finally:
        _held[what] -= 1
        if not _held[what]:
            del _held[what]


def is_held(what: object) -> bool:
    """Whether a handler of this process holds it: then to wait for it is no outage."""
    return bool(_held) and what in _held
