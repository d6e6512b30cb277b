"""What the demo and its workers must agree on."""

from typing import Final

import msgspec

GROUP: Final = "auditors"
"""The workers are one group: they share the files."""
WATCHERS: Final = "watchers"
"""The group as which the demo itself reads the reports and the dead letters."""

HOLD: Final = "hold"
RESUME: Final = "resume"
READY: Final = "ready"
ARMED: Final = "armed"
HOLDING: Final = "holding"


class Plan(msgspec.Struct, frozen=True):
    """One run: the broker, its topics, and which worker this is."""

    url: str
    topic: str
    worker: str = ""

    @property
    def reports(self) -> str:
        """The topic to which workers report each file."""
        return f"{self.topic}-reports"

    @property
    def dead_letters(self) -> str:
        """The topic of the files that failed."""
        return f"{self.topic}-dlq"


class Report(msgspec.Struct, frozen=True):
    """What a worker has to say of one handling attempt.

    Attributes:
        message_id: The message that it handled.
        worker: Which worker.
        attempt: The attempt, from 1.
        error_type: The name of what was wrong; None where the file was verified.
    """

    message_id: str
    worker: str
    attempt: int
    error_type: str | None = None
