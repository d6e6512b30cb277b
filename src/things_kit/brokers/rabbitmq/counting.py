"""What a queue counts of what comes back to it: all that another process knows of attempts.

| queue | counts |
|---|---|
| quorum, before RabbitMQ 4.3 | whatever comes back |
| quorum, from 4.3 on | what is rejected, and what a consumer held that was lost; not what a `basic.nack` gives back |
| others | nothing |

From 4.3 on a quorum queue goes on from what another one had counted that a message comes out of as a dead letter.
"""

from typing import Any, Final, Literal, TypeAlias

from pika.spec import Basic

Counts: TypeAlias = Literal["returns", "failures", "nothing"]

FAILURES_ALONE: Final = (4, 3)

HELD: Final = ".things-kit.held-"
"""How the names of the queues begin in which receivers have copies of what they hold (see `renewal`)."""

CONVICTS: Final = 2
"""So many times must a receiver be lost while it handles a suspect alone: a connection is lost for other reasons, too."""


def counts_of(version: tuple[int, ...], kind: object) -> Counts:
    """What a queue of this type counts at a server of this version; one whose type is not known is taken for a quorum queue."""
    if kind not in {"quorum", None}:
        return "nothing"
    return "failures" if version >= FAILURES_ALONE else "returns"


def way_back(counts: Counts, *, failed: bool) -> tuple[Any, int]:
    """How a delivery is given back, so that a failure is counted and nothing else where that can be; and by how much it is."""
    if counts == "failures" and failed:
        return Basic.Reject, 1
    return Basic.Nack, int(counts == "returns")


def losses(count: object, counts: Counts, *, died: bool) -> int:
    """Of a message that comes again: how often it failed or was lost, by its queue's count and that of its last receiver's queue."""
    counted = count if isinstance(count, int) and count > 0 else 0
    return max(died, counted) if counts == "failures" else died + counted


def was_lost(deaths: object) -> bool:
    """Whether a message comes out of the queue of a receiver that was lost, by its header `x-death`."""
    entries = deaths if isinstance(deaths, list) else []
    return any(isinstance(entry, dict) and str(entry.get("queue", "")).startswith(HELD) for entry in entries)
