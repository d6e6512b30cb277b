"""What a broker and its consumers say of themselves."""

from datetime import datetime

import msgspec


class MiddlewareState(msgspec.Struct, frozen=True):
    """How a consumer's middleware is.

    Attributes:
        name: Its name, such as "circuit_breaker".
        state: A word for it, such as "open".
    """

    name: str
    state: str


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
        put_off: How many of those in flight wait by `Later`.
        middleware: Of its middleware, outermost first, that which has a state: how it is.
        age: For how many seconds the oldest of them has been published; 0 where there is none.
    """

    topics: tuple[str, ...]
    group: str
    running: bool
    in_flight: int
    last_settled: datetime | None
    oldest_in_flight: float | None
    reason: str | None = None
    put_off: int = 0
    middleware: tuple[MiddlewareState, ...] = ()
    age: float = 0.0


class Health(msgspec.Struct, frozen=True):
    """Whether the broker answers and every consumer gets on; `reason` is a sentence where one does not."""

    ok: bool
    reason: str | None = None
    consumers: tuple[ConsumerHealth, ...] = ()
