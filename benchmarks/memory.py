"""The engine on the memory broker, and above a driver that only hands out ready-made deliveries."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from benchmarks.common import consume, counting_handler, messages
from benchmarks.result import Result, rate
from things_kit import connect
from things_kit.engine.broker import Broker
from things_kit.engine.driver import Capabilities, Delivery, Inbox, Release, Subscription
from things_kit.engine.url import BrokerURL

COUNT = 300_000
RUNS = 3


class ReadyMade:
    """A driver and receiver in one that does nothing but hand out what was made before."""

    _inbox: Inbox

    capabilities = Capabilities()

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries = deliveries
        self._next = 0

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Made by hand, not from a URL."""
        raise NotImplementedError

    async def fetch(self, limit: int, wait: float) -> None:
        """Bring the next of them."""
        batch = self._deliveries[self._next : self._next + limit]
        self._next += len(batch)
        if not batch:
            await asyncio.sleep(wait)
        self._inbox.put(batch)

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Forget them."""

    async def subscribe(self, subscription: Subscription) -> Self:
        """It is its own receiver."""
        self._inbox = subscription.inbox
        return self

    async def lag(self, topic: str, group: str) -> int | None:
        """Nothing is ever left."""
        return 0

    async def _nothing(self, *_: Any) -> Any:
        return None

    open = close = ping = declare = remove = send = extend = quiesce = overdue = _nothing


async def overhead() -> float:
    """Seconds a message that the engine adds to calling the handler in a loop."""
    ready = [Delivery(message) for message in messages(COUNT)]

    async def direct() -> None:
        handle, _ = counting_handler(COUNT)
        for delivery in ready:
            await handle(delivery.message)

    async def engine() -> None:
        async with Broker(ReadyMade(ready), BrokerURL.parse("ready://made")) as broker:
            await consume(broker, COUNT)

    return 1 / await rate(COUNT, engine) - 1 / await rate(COUNT, direct)


async def consumed() -> float:
    """Messages a second through the memory broker."""
    async with connect("memory://") as broker:
        await broker.producer().publish_batch(messages(COUNT))
        return (await consume(broker, COUNT)).rate


async def run() -> list[Result]:
    """The best of a few runs: the machine's other work only ever slows one down."""
    per_second = max([await consumed() for _ in range(RUNS)])
    added = min([await overhead() for _ in range(RUNS)]) * 1e6
    return [
        Result(
            "memory: consume, async no-op handler, key order, concurrency 8",
            f"{per_second:,.0f} messages/s", "at least 437,000", per_second >= 437_000,
        ),
        Result(
            "engine above a driver of ready-made deliveries",
            f"{added:.2f} us a message", "at most 2", added <= 2,
            "beyond awaiting the handler in a plain loop",
        ),
    ]  # fmt: skip
