"""The contract of a consumer."""

from typing import Protocol, runtime_checkable

from things_kit.messaging.policy import Batch


class Bound(Protocol):
    """A consumer as middleware sees it, whose method `bind` is called with it at start, where it has one."""

    group: str

    @property
    def topics(self) -> tuple[str, ...]:
        """What it consumes."""

    @property
    def batch(self) -> Batch | None:
        """How it hands out lists; None where it handles one message a call."""

    @property
    def in_threads(self) -> bool:
        """Whether its handler is a plain function, which is called in a thread."""

    @property
    def publishes(self) -> bool:
        """Whether what its handler returns is published."""

    @property
    def paused(self) -> bool:
        """Whether it is paused."""

    def pause(self) -> None:
        """Begin nothing more, until `resume`."""

    def resume(self) -> None:
        """Go on after `pause`."""


@runtime_checkable
class Consumer(Protocol):
    """Brings messages to a handler, from `start` until `stop`."""

    async def start(self) -> None:
        """Begin; returns once messages can arrive."""

    async def stop(self) -> None:
        """Drain: what has begun may finish, the rest goes back to the broker. Stopping twice is fine."""

    async def wait(self) -> None:
        """Wait until it has stopped; raises what broke it."""
