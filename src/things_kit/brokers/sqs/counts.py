"""What of SQS's count of deliveries is nobody's failure."""

from collections import OrderedDict
from typing import Final

MOST: Final = 10_000
"""Messages of which that is remembered."""


class Uncounted:
    """Deliveries that this process gave back without a verdict: a consumer stopped, or its connection was lost.

    SQS counts them, and forgets nothing. Other processes count them too: there they only make a suspect of a message.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, int] = OrderedDict()

    def of(self, message_id: str) -> int:
        """How many deliveries of a message do not count."""
        return self._known.get(message_id, 0)

    def expect(self, message_id: str, counted: int, attempt: int) -> None:
        """It goes back, to come next with this attempt; by SQS's count of so many before it would come with another."""
        self._known.pop(message_id, None)
        if counted >= attempt:
            self._known[message_id] = counted + 1 - attempt
            if len(self._known) > MOST:
                self._known.popitem(last=False)

    def forget(self, message_id: str) -> None:
        """It is done."""
        self._known.pop(message_id, None)


GIVEN_BACK: Final = Uncounted()
"""By any consumer of this process: ids of messages are unique at AWS."""
