"""What does not hold yet, test by test: whoever mends it takes the entry, or the broker, away; strictly, so that nobody forgets."""

from collections.abc import Collection
from typing import Final

import msgspec

EVERYWHERE: Final = None
"""On every broker, in every way that it is tested."""


class ExpectedFailure(msgspec.Struct, frozen=True):
    """A test that fails.

    Attributes:
        test: Its name, with its parameters in brackets if it is only about these.
        reason: Which line of the list of promises it is about, and what is missing.
        brokers: The classes of this folder in which it fails.
    """

    test: str
    reason: str
    brokers: Collection[str] | None = EVERYWHERE

    def concerns(self, broker: str, test: str) -> bool:
        """Whether it is about this test of this class."""
        named = self.test in {test, test.partition("[")[0]}
        return named and (self.brokers is EVERYWHERE or broker in self.brokers)


EXPECTED_FAILURES: Final[tuple[ExpectedFailure, ...]] = ()
