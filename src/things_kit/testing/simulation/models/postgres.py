"""The model of a broker in PostgreSQL's tables: that of SQLite, for many machines.

What the real one may do: as the model of SQLite; and a commit whose answer is lost with the connection may have happened.
"""

from typing import Final

import msgspec

from things_kit.testing.simulation.models import sqlite
from things_kit.testing.simulation.models.queue import QueueGroup

TRAITS: Final = msgspec.structs.replace(sqlite.TRAITS, name="postgres")
GROUP: Final = QueueGroup
