"""The relay: a bridge out of an outbox, with the brokers that it opens itself."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from things_kit.brokers.connect import connect
from things_kit.engine.broker import Broker
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ClosedError, ConfigError, ThingsKitError
from things_kit.messaging.instrument import Instrument
from things_kit.messaging.topic import Topic
from things_kit.patterns.bridge import Bridge
from things_kit.patterns.routes import listed

PATIENCE: Final = 2.0
"""Seconds that the source may take to say how much is left, where somebody asks for the relay's health."""


class RelayHealth(msgspec.Struct, frozen=True):
    """One relay at this moment.

    Attributes:
        ok: Whether it gets on.
        reason: Why it does not; None where it does.
        topics: What it carries on.
        group: As whom it reads.
        lag: How many messages the whole group has not carried on; None where the source did not say.
        age: For how many seconds the oldest message in this relay's hands has been published; 0 where there is none.
        held: How many messages the target has refused so far.
        moved: How many this relay has carried on.
    """

    ok: bool
    reason: str | None
    topics: tuple[str, ...]
    group: str
    lag: int | None
    age: float
    held: int
    moved: int


class Relay:
    """Carries what an outbox holds to another broker, from `start` until `stop`; `async with` does both.

    Made by `Outbox.relay`. It is a part of an app: `App(..., outbox.relay(...))`. Any number of relays of one group share
    the work, and keep the order of each key.

    Attributes:
        topics: What it carries on.
        brokers: The source and the target while it runs, else none.
        instruments: What wraps the sending and handling of the brokers that it opens itself.
    """

    def __init__(
        self,
        source: Broker | str,
        target: Broker | str,
        topics: Sequence[str | Topic[Any]],
        **choices: Any,
    ) -> None:
        self.topics = listed(topics)
        self.brokers: tuple[Broker, ...] = ()
        self.instruments: Sequence[Instrument] = ()
        self._source, self._target = source, target
        self._choices = choices
        self._stack = AsyncExitStack()
        self._bridge: Bridge | None = None

    async def start(self) -> None:
        """Open the brokers that are not open, and begin: with topics that nobody has published to yet as well.

        Raises:
            ConfigError: The source has no such topic and `declare` is off there, the target cannot have one of that name, or
                it runs already.
            BrokerUnavailable: One of the two was not there for its `publish_timeout`.
        """
        if self.brokers:
            raise ConfigError("this relay runs already: make another one, to share the work")
        async with AsyncExitStack() as stack:
            source = await self._opened(stack, self._source)
            target = await self._opened(stack, self._target)
            if source.url.engine.declare:
                for topic in self.topics:
                    await source.declare(topic)
            bridge = Bridge(source, target, self.topics, **self._choices)
            await stack.enter_async_context(bridge)
            self._bridge, self.brokers, self._stack = bridge, (source, target), stack.pop_all()

    async def stop(self) -> None:
        """Wait a few seconds for the target to confirm what is on its way, and close what was opened. Idempotent."""
        self.brokers = ()
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def bridge(self) -> Bridge:
        """The bridge that does the work: its lag, what it has moved, what holds it up. Raises ClosedError before the start."""
        if self._bridge is None:
            raise ClosedError("the relay was not started: enter it with `async with`")
        return self._bridge

    @property
    def moved(self) -> int:
        """How many messages it has carried on."""
        return 0 if self._bridge is None else self._bridge.moved

    @property
    def display(self) -> str:
        """What it does, in words, without secrets."""
        source, target = (
            BrokerURL.parse(broker) if isinstance(broker, str) else broker.url
            for broker in (self._source, self._target)
        )
        return f"{', '.join(self.topics)} from {source.display} to {target.display}"

    async def wait(self) -> None:
        """Wait until it has stopped. Raises what broke it."""
        await self.bridge.wait()

    async def until_empty(self) -> None:
        """Wait until nothing is left at the source, and all of it is confirmed by the target."""
        await self.bridge.until_empty()

    async def lag(self) -> int | None:
        """How many messages are left at the source, those in hand included."""
        return await self.bridge.lag()

    async def health(self) -> RelayHealth:
        """How it is at this moment."""
        bridge, lag = self.bridge, None
        reason = bridge.trouble
        try:
            async with asyncio.timeout(PATIENCE):
                lag = await bridge.lag()
        except TimeoutError:
            reason = reason or f"{self.display}: the source did not say within {PATIENCE:g} s what is left"
        except ThingsKitError as error:
            reason = reason or str(error)
        if reason is None and bridge.held:
            reason = (
                f"{self.display}: the target refuses {bridge.held} of its messages, which are tried again"
            )
        return RelayHealth(
            ok=reason is None,
            reason=reason,
            topics=self.topics,
            group=bridge.group,
            lag=lag,
            age=bridge.age,
            held=bridge.held,
            moved=bridge.moved,
        )

    async def _opened(self, stack: AsyncExitStack, broker: Broker | str) -> Broker:
        """The broker, open: who brings one that is open closes it."""
        if isinstance(broker, str):
            broker = connect(broker)
            broker.instrument(*self.instruments)
        elif broker.transmission.loop is not None:
            return broker
        return await stack.enter_async_context(broker)
