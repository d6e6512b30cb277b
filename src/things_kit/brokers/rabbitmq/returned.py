"""Which attempt a redelivered message is.

A quorum queue counts how often a message came back, in `x-delivery-count`. That is how a message that kills whoever handles
it becomes older. But what a consumer gives back unbegun, as it stops, counts there too and is no attempt. So whoever gives
back notes the count and the attempt that go with it, and tells the group's other consumers, through the exchange by which
they are asked what they hold. Who is the last leaves all that it knows in a queue, for who comes next.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

MOST: Final = 100_000
"""Notes that are kept; the oldest go first."""

AT_ONCE: Final = 1_000
"""Notes in one message to the others."""

Note: TypeAlias = tuple[int, int]
"""The count with which a message comes back next, and the attempt that it then is."""


class Returned:
    """What this process knows of messages that were given back."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], Note] = {}

    def note(self, queue: str, notes: Mapping[str, Note]) -> None:
        """Keep these, by the ids of messages."""
        for identity, note in notes.items():
            self._notes.pop((queue, identity), None)
            self._notes[queue, identity] = note
        while len(self._notes) > MOST:
            del self._notes[next(iter(self._notes))]

    def of(self, queue: str) -> dict[str, Note]:
        """What is known of a queue's messages."""
        return {identity: note for (of, identity), note in self._notes.items() if of == queue}

    def hear(self, queue: str, told: bytes) -> None:
        """Keep what another consumer told; what cannot be understood is left."""
        try:
            self.note(queue, msgspec.json.decode(told, type=dict[str, Note]))
        except msgspec.MsgspecError:
            return

    def attempt(self, queue: str, identity: str, count: int, stored: int) -> int:
        """The attempt of a message that came back so often and carries this attempt itself."""
        base, attempt = self._notes.get((queue, identity), (0, stored))
        return attempt + count - base if count >= base else stored


def told(notes: Mapping[str, Note]) -> list[bytes]:
    """What the others are told, in parts."""
    rows = list(notes.items())
    return [
        msgspec.json.encode(dict(rows[start : start + AT_ONCE])) for start in range(0, len(rows), AT_ONCE)
    ]
