"""The model of a broker in PostgreSQL's tables: that of SQLite, for many machines.

What the real one may do: as the model of SQLite; and a commit whose answer is lost with the connection may have happened.
"""

from typing import Final

from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.server import Traits
from things_kit.testing.simulation.models.sqlite import CAPABILITIES

TRAITS: Final = Traits(name="postgres", capabilities=CAPABILITIES, counts=True)
GROUP: Final = QueueGroup
