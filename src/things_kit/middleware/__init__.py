"""Functions from Handle to Handle, and transforms of values, one idea a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from things_kit.messaging.outcomes import Later as Later
    from things_kit.middleware.circuit import CircuitBreaker as CircuitBreaker
    from things_kit.middleware.circuit import circuit_breaker as circuit_breaker
    from things_kit.middleware.claims import Store as Store
    from things_kit.middleware.claims import claim_check as claim_check
    from things_kit.middleware.compression import compress as compress
    from things_kit.middleware.deduplication import Deduplicate as Deduplicate
    from things_kit.middleware.deduplication import deduplicate as deduplicate
    from things_kit.middleware.encryption import encrypt as encrypt
    from things_kit.middleware.marks import Marks as Marks
    from things_kit.middleware.marks import MemoryStore as MemoryStore
    from things_kit.middleware.throttling import Throttle as Throttle
    from things_kit.middleware.throttling import throttle as throttle

_HOMES = {
    "Deduplicate": "things_kit.middleware.deduplication",
    "deduplicate": "things_kit.middleware.deduplication",
    "Marks": "things_kit.middleware.marks",
    "MemoryStore": "things_kit.middleware.marks",
    "CircuitBreaker": "things_kit.middleware.circuit",
    "circuit_breaker": "things_kit.middleware.circuit",
    "Later": "things_kit.messaging.outcomes",
    "Store": "things_kit.middleware.claims",
    "claim_check": "things_kit.middleware.claims",
    "compress": "things_kit.middleware.compression",
    "encrypt": "things_kit.middleware.encryption",
    "Throttle": "things_kit.middleware.throttling",
    "throttle": "things_kit.middleware.throttling",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the same names as above, for type checkers


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value
