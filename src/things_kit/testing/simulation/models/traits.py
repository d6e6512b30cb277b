"""What the contract of one broker is, where models differ."""

from typing import Final

import msgspec

from things_kit.engine.driver import Capabilities

BY_DEFAULT: Final = Capabilities()


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """One broker's.

    Attributes:
        name: As `simulate(broker=...)` has it.
        capabilities: Those of its driver.
        impossible: The faults that it cannot have.
        pushed: It pushes messages for credit, instead of being asked.
        counts: It counts deliveries, also those to processes that died.
        listened: What is published to a topic without a group is dropped, and so refused.
        keyed: It hands out the messages of one key in order, to one receiver at a time.
        waits: It hands out no more of a key while any of it is not settled.
        duplicates: It may hand out a message twice though nothing is wrong.
        unordered: It keeps no order at all.
        returned_first: What was given back is handed out before all else, first what was given back first.
        counts_returns: It counts what is given back as one more attempt, for all but the process that gave it back.
        forgets: A server that was killed may have forgotten who has what, and that it was handed out.
        shortest_lease: How much of a lease is left at the least when a message is handed out.
        later: It keeps copies until they are due.
        schedules: It keeps messages for all groups until they are due.
        partitions: How many a topic has; 0 where there are none.
    """

    name: str
    capabilities: Capabilities = BY_DEFAULT
    impossible: frozenset[str] = frozenset({"rebalance"})
    pushed: bool = False
    counts: bool = False
    listened: bool = False
    keyed: bool = False
    waits: bool = False
    duplicates: bool = False
    unordered: bool = False
    returned_first: bool = False
    counts_returns: bool = False
    forgets: bool = False
    shortest_lease: float = 1.0
    later: bool = False
    schedules: bool = False
    partitions: int = 0
