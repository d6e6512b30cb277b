"""The contract of a consumer."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Consumer(Protocol):
    """Brings messages to a handler, from `start` until `stop`."""

    async def start(self) -> None:
        """Begin; returns once messages can arrive."""

    async def stop(self) -> None:
        """Drain: what has begun may finish, the rest goes back to the broker. Stopping twice is fine."""

    async def wait(self) -> None:
        """Wait until it has stopped; raises what broke it."""
