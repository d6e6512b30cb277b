"""The model of a broker in PostgreSQL's tables: that of SQLite, for many machines.

What the real one may do: as the model of SQLite; a commit whose answer is lost with the connection may have happened; and a
lease is the receiver's, which is renewed by a hand-out only when a quarter of it is over (recorded,
tests/testing/simulation/recorded).
"""

from typing import Final

import msgspec

from things_kit.testing.simulation.models import sqlite
from things_kit.testing.simulation.models.queue import QueueGroup

TRAITS: Final = msgspec.structs.replace(
    sqlite.TRAITS,
    name="postgres",
    capabilities=msgspec.structs.replace(sqlite.TRAITS.capabilities, lease=10.0, max_batch=50_000),
    shortest_lease=0.75,
)
GROUP: Final = QueueGroup
