"""The model of the embedded broker in a SQLite file, shared by the processes of one machine.

What the real one may do, and where that is written (docs/brokers/sqlite.md):

* Keys are lanes: their messages go to one process at a time, in order, also through retries and deaths.
* What a process that died had taken comes again when its lease ends; attempts and delays are in the file.
* A commit is a commit: nothing that was confirmed is lost, and nothing comes twice without a cause.
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Keeping, Traits

TRAITS: Final = Traits(
    name="sqlite",
    capabilities=Capabilities(
        delay=True,
        lanes=True,
        lease=5.0,
        retained=True,
        attempts=True,
        targeted=True,
        suspects=True,
        schedule_ids=True,
        schedules=True,
        max_message_bytes=16 * 1024 * 1024,
    ),
    counts=True,
    keeping=Keeping(punctual=True),
)
GROUP: Final = QueueGroup
