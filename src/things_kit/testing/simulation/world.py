"""What users write: a world in which their handlers live."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from things_kit.testing.simulation.history import History

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker


class World:
    """The database, the consumers, the work, and what must hold. Subclass it; see `simulate`.

    Attributes:
        history: What happened so far.
    """

    history: History

    async def setup(self) -> None:
        """Make what outlives a crash."""

    def consumers(self, broker: "Broker") -> Iterable[Any]:
        """The consumers of one process, made anew at each of its starts; the simulation starts and stops them.

        Anything else with `start` and `stop` may be among them, such as a relay.
        """
        raise NotImplementedError(f"{type(self).__name__}.consumers")

    async def workload(self, producer: Any) -> None:
        """What is published. It begins when every process consumes, and its process never crashes."""

    def always(self) -> None:
        """Checked after every step."""

    def eventually(self) -> None:
        """Checked when all is healed and everything was handled."""

    def at_rest(self) -> bool:
        """Whether nothing of the world's own is left to do, such as in an outbox: `eventually` waits for that."""
        return True

    def crashed(self, process: int) -> None:
        """A process has died: let go of what a database would, such as its connections and transactions."""
