"""What of a broker's count of deliveries is nobody's failure."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

MOST: Final = 100_000
"""Messages of which that is remembered; the oldest go first."""


class Uncounted:
    """By how much the broker's count is more than the attempts, for messages that this process has given back.

    A consumer that stops gives back what nobody has judged, and the broker counts that. Other processes count it too:
    there it only makes a suspect of a message. A process has one such book for a broker, as another consumer may come next.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, int] = OrderedDict()

    def attempt(self, copy: Hashable, counted: int) -> int:
        """The attempt of what has come, by the broker's count `counted`."""
        return max(1, counted - self._known.get(copy, 0))

    def expect(self, copy: Hashable, counted: int, attempt: int) -> None:
        """It goes back: by the broker's count it comes next as `counted`, and is to be this attempt."""
        self._known.pop(copy, None)
        if counted != attempt:
            self._known[copy] = counted - attempt
            if len(self._known) > MOST:
                self._known.popitem(last=False)

    def forget(self, copy: Hashable) -> None:
        """It is done."""
        self._known.pop(copy, None)

    def __len__(self) -> int:
        return len(self._known)
