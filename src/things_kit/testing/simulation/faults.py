"""What goes wrong in a history, how likely, and how often at most."""

from collections.abc import Iterator, Mapping
from typing import Final, Self

import msgspec

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.policy import is_number

DEFAULTS: Final[Mapping[str, tuple[float, int]]] = {
    "crash": (0.1, 2),
    "stop": (0.05, 1),
    "redelivery": (0.1, 3),
    "lost_acknowledgement": (0.1, 3),
    "unknown_publish": (0.2, 3),
    "rebalance": (0.1, 2),
    "lease_expiry": (0.05, 2),
    "outage": (0.02, 1),
    "slow_handler": (0.1, 3),
    "clock_skew": (0.5, 4),
}
"""Probability and budget by name. Crashes and expired leases together stay below the five attempts of a message."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """How likely one fault is at each occasion, and how often it may happen in one history.

    An occasion is a handler that begins (crash, stop, slow_handler), a delivery (redelivery, lease_expiry), a fetch
    (rebalance), a settlement (lost_acknowledgement; redelivery, where others are still held), a publish
    (unknown_publish), a call of the broker (outage), or the start of a process (clock_skew).
    """

    probability: float
    budget: int

    def __post_init__(self) -> None:
        if not is_number(self.probability) or not 0 <= self.probability <= 1:
            raise ConfigError(f"Fault.probability must be from 0 to 1; it is {self.probability!r}")
        if isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 0:
            raise ConfigError(f"Fault.budget must be a whole number from 0; it is {self.budget!r}")


class Faults:
    """Which faults there are: `Faults.all()`, `.none()`, `.only("crash", "outage")`, or each with its numbers.

        Faults(crash=Fault(probability=0.1, budget=3))

    Attributes:
        chosen: The faults by name.
        strict: Whether one that the broker cannot have is an error.
    """

    def __init__(self, **faults: Fault) -> None:
        for name, fault in faults.items():
            _known(name)
            if not isinstance(fault, Fault):
                raise ConfigError(f"the fault {name!r} must be a Fault; it is {fault!r}")
        self.chosen: dict[str, Fault] = {name: faults[name] for name in DEFAULTS if name in faults}
        self.strict = True

    @classmethod
    def all(cls) -> Self:
        """All that the broker can have, with the default's probabilities and budgets."""
        faults = cls(**{name: _default(name) for name in DEFAULTS})
        faults.strict = False
        return faults

    @classmethod
    def none(cls) -> Self:
        """Nothing goes wrong; only the schedule is drawn."""
        return cls()

    @classmethod
    def only(cls, *names: str) -> Self:
        """These, with the default's probabilities and budgets. Raises ConfigError for a name that is none."""
        for name in names:
            _known(name)
        return cls(**{name: _default(name) for name in names})

    def __iter__(self) -> Iterator[str]:
        return iter(self.chosen)

    def __repr__(self) -> str:
        return f"Faults({', '.join(self.chosen) or 'none'})"

    def for_broker(self, name: str, impossible: frozenset[str]) -> dict[str, Fault]:
        """Those that this broker can have. Raises ConfigError if one was named that it cannot."""
        wrong = [fault for fault in self.chosen if fault in impossible]
        if wrong and self.strict:
            raise ConfigError(f"{name} cannot have the fault {wrong[0]!r}: leave it out, or use Faults.all()")
        return {fault: value for fault, value in self.chosen.items() if fault not in impossible}


def _default(name: str) -> Fault:
    probability, budget = DEFAULTS[name]
    return Fault(probability=probability, budget=budget)


def _known(name: object) -> None:
    if name not in DEFAULTS:
        raise ConfigError(f"there is no fault {name!r}; there are: {', '.join(DEFAULTS)}")
