"""What goes back to the broker and is no attempt.

A quorum queue counts how often a message came back, in `x-delivery-count`, and so the broker knows what was handed to
processes that died. What a consumer gives back unbegun, as it stops, counts there too. This process remembers what it gave
back so; for others that is a delivery like any.
"""

from collections.abc import Hashable
from typing import Final

MOST: Final = 100_000
"""Messages that are remembered; the oldest go first."""


_uncounted: Final[dict[tuple[Hashable, Hashable], int]] = {}
"""By queue and copy, of all brokers of this process: another one may have the consumer that comes next."""


class Returned:
    """By how much the broker's count is more than the attempts of messages that were given back to one queue."""

    def __init__(self, place: Hashable) -> None:
        self._place = place

    def expect(self, copy: Hashable, counted: int, attempt: int) -> None:
        """This copy of a message goes back: by the broker's count it is `counted` next, and is to be `attempt`."""
        self.forget(copy)
        _uncounted[self._place, copy] = counted - attempt
        if len(_uncounted) > MOST:
            del _uncounted[next(iter(_uncounted))]

    def attempt(self, copy: Hashable, counted: int) -> int:
        """The attempt of what has come back, by the broker's count `counted`."""
        return max(1, counted - _uncounted.get((self._place, copy), 0))

    def forget(self, copy: Hashable) -> None:
        """It will not come again."""
        _uncounted.pop((self._place, copy), None)
