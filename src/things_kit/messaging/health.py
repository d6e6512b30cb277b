"""What a broker and its consumers say of themselves."""

from datetime import datetime

import msgspec


class ConsumerHealth(msgspec.Struct, frozen=True):
    """One consumer at this moment.

    Attributes:
        topics: What it consumes.
        group: As whom.
        running: Started, and neither stopped nor broken.
        in_flight: Messages received and not settled.
        last_settled: When the broker last took an acknowledgement or a release; None before the first.
        oldest_in_flight: For how many seconds the oldest of them has been held; None where there is none.
        reason: Why it is not well; None where it is.
    """

    topics: tuple[str, ...]
    group: str
    running: bool
    in_flight: int
    last_settled: datetime | None
    oldest_in_flight: float | None
    reason: str | None = None


class Health(msgspec.Struct, frozen=True):
    """Whether the broker answers and every consumer gets on; `reason` is a sentence where one does not."""

    ok: bool
    reason: str | None = None
    consumers: tuple[ConsumerHealth, ...] = ()
