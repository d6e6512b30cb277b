"""The relay: a bridge out of an outbox, with the brokers that it opens itself."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from things_kit.brokers.connect import connect
from things_kit.engine.broker import Broker
from things_kit.messaging.errors import ClosedError
from things_kit.patterns.bridge import Bridge


class Relay:
    """Carries what an outbox holds to another broker, while `async with` is inside. Made by `Outbox.relay`.

    Any number of relays of one group share the work, and keep the order of each key.
    """

    def __init__(
        self, source: Broker | str, target: Broker | str, topics: Sequence[str], **choices: Any
    ) -> None:
        self._source, self._target = source, target
        self._topics, self._choices = topics, choices
        self._stack = AsyncExitStack()
        self._bridge: Bridge | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            source = await self._opened(stack, self._source)
            target = await self._opened(stack, self._target)
            bridge = Bridge(source, target, self._topics, **self._choices)
            await stack.enter_async_context(bridge)
            self._bridge, self._stack = bridge, stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @property
    def bridge(self) -> Bridge:
        """The bridge that does the work: its lag, what it has moved, what holds it up. Raises ClosedError before the start."""
        if self._bridge is None:
            raise ClosedError("the relay was not started: enter it with `async with`")
        return self._bridge

    async def wait(self) -> None:
        """Wait until it has stopped. Raises what broke it."""
        await self.bridge.wait()

    async def until_empty(self) -> None:
        """Wait until nothing is left at the source, and all of it is confirmed by the target."""
        await self.bridge.until_empty()

    async def lag(self) -> int | None:
        """How many messages are left at the source, those in hand included."""
        return await self.bridge.lag()

    @staticmethod
    async def _opened(stack: AsyncExitStack, broker: Broker | str) -> Broker:
        """The broker, open: who brings one that is open closes it."""
        if isinstance(broker, str):
            broker = connect(broker)
        elif broker.transmission.loop is not None:
            return broker
        return await stack.enter_async_context(broker)
