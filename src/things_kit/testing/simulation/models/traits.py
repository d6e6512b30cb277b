"""What the contract of one broker is, where models differ."""

import math
from typing import Final, Literal

import msgspec

from things_kit.engine.driver import Capabilities

BY_DEFAULT: Final = Capabilities()


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """How a broker keeps messages until they are due.

    Attributes:
        by: What says that it is due: the broker's own clock; the wait that it is told, which is reckoned by the clock of
            who schedules; or the clock of who receives the copy that each group got at once.
        punctual: It takes its place before whatever is published after its time. Else when the broker looks.
        late: Seconds after its time within which the broker looks by itself.
        loose: Seconds within which those that were not scheduled in one call may change places.
        margin: Seconds before its time from which on it can neither be replaced nor cancelled.
        patient: It stays while its topic has no group, and comes to the first.
        longest: Seconds ahead up to which it is kept.
    """

    by: Literal["clock", "wait", "copies"] = "clock"
    punctual: bool = False
    late: float = 0.1
    loose: float = 0.0
    margin: float = 0.0
    patient: bool = False
    longest: float = math.inf


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """One broker's.

    Attributes:
        name: As `simulate(broker=...)` has it.
        capabilities: Those of its driver.
        impossible: The faults that it cannot have.
        pushed: It pushes messages for credit, instead of being asked.
        counts: It counts deliveries, also those to processes that died.
        listened: What is published to a topic without a group is dropped; but the broker can be asked who listens.
        mandatory: The same, and it says so of each message.
        keyed: It hands out the messages of one key in order, to one receiver at a time.
        waits: It hands out no more of a key while any of it is not settled.
        duplicates: It may hand out a message twice though nothing is wrong.
        unordered: It keeps no order at all.
        returned_first: What was given back is handed out before all else, first what was given back first.
        counts_returns: It counts what is given back as one more attempt, for all but the process that gave it back.
        forgets: A server that was killed may have forgotten who has what, and that it was handed out.
        shortest_lease: How much of a lease is left at the least when a message is handed out.
        later: It keeps copies until they are due.
        keeping: How it keeps messages for all groups until they are due; None: not at all.
        partitions: How many a topic has; 0 where there are none.
        session: Seconds after which a group notices that a member has died, where there are partitions.
    """

    name: str
    capabilities: Capabilities = BY_DEFAULT
    impossible: frozenset[str] = frozenset({"rebalance"})
    pushed: bool = False
    counts: bool = False
    listened: bool = False
    mandatory: bool = False
    keyed: bool = False
    waits: bool = False
    duplicates: bool = False
    unordered: bool = False
    returned_first: bool = False
    counts_returns: bool = False
    forgets: bool = False
    shortest_lease: float = 1.0
    later: bool = False
    keeping: Keeping | None = None
    partitions: int = 0
    session: float = 10.0
