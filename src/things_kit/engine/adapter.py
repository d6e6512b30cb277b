"""Receivers of the first contract, which returned what arrived, as receivers of today's."""

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

from things_kit.engine.driver import Delivery, Inbox, Receiver, Release


@runtime_checkable
class Returning(Protocol):
    """A receiver that returns what arrived."""

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Up to `limit` messages, in order; none if none came within `wait` seconds."""

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """See `Receiver.settle`."""

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Receiver.extend`."""

    async def close(self) -> None:
        """See `Receiver.close`."""


class Adapted:
    """Puts into the inbox what a `Returning` receiver returns."""

    def __init__(self, receiver: Returning, inbox: Inbox) -> None:
        self.inner = receiver
        self._inbox = inbox
        self.settle = receiver.settle
        self.extend = receiver.extend
        self.close = receiver.close

    async def fetch(self, limit: int, wait: float) -> None:
        """See `Fetching.fetch`."""
        self._inbox.put(await self.inner.receive(limit, wait))

    async def quiesce(self) -> None:
        """What it has and did not return goes back when it closes."""

    async def overdue(self) -> int | None:
        """It cannot say."""
        return None


def adapted(receiver: Any, inbox: Inbox) -> Receiver:
    """The receiver itself, or an adapter of one that returns what arrives."""
    return cast("Receiver", Adapted(receiver, inbox)) if isinstance(receiver, Returning) else receiver
