"""A message in a group's queue."""

from typing import TYPE_CHECKING

import msgspec

from things_kit.messaging.message import Message
from things_kit.testing.simulation.process import SimulatedProcess

if TYPE_CHECKING:
    from things_kit.testing.simulation.models.receivers import QueueReceiver


class Entry(msgspec.Struct, eq=False):
    """One message of one group, and how it stands with it.

    Attributes:
        place: Where it stands among the others.
        number: Its first place, that in the topic.
        due: From when it may be handed out, in the loop's time.
        wanted: When it was to arrive, in seconds since 1970, where who receives it has it wait on until then.
        aside: It left its place in its key's order.
        ends: When the lease ends; None while nobody has it, or for as long as the connection holds.
        holder: Who has it.
        frozen: Its holder cannot renew the lease.
        losses: How often it came again without a verdict, where that counts.
        returns: How often it was given back, where that counts for all but the process that did.
        returned_by: Who that was.
    """

    message: Message
    place: float
    attempt: int = 1
    due: float = 0.0
    wanted: float | None = None
    suspect: int = 0
    aside: bool = False
    ends: float | None = None
    holder: "QueueReceiver | None" = None
    frozen: bool = False
    losses: int = 0
    returns: int = 0
    returned_by: SimulatedProcess | None = None
    number: float = 0.0

    def __post_init__(self) -> None:
        self.number = self.place
