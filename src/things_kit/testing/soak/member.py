"""A process that consumes: as one of a group, or as the bridge to the broker beside and the consumer there."""

import asyncio
import zlib
from typing import Final

from things_kit.brokers.connect import connect
from things_kit.engine.broker import Broker
from things_kit.engine.consumer import BrokerConsumer
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError, Reject, Retry
from things_kit.messaging.policy import Batch, RetryPolicy
from things_kit.patterns.bridge import Bridge
from things_kit.testing.soak.plan import (
    ATTEMPTS,
    BATCH,
    BRIDGE,
    CHECKSUM,
    DRAIN,
    FAR,
    FREE,
    ORDERED,
    PLACE,
    Planted,
    Role,
    fate,
)
from things_kit.testing.soak.records import Kind
from things_kit.testing.soak.station import Station, main

WHILE: Final = 0.1
AGAIN: Final = 1.5
LATE: Final = 0.002

IN_PLACE: Final = RetryPolicy(attempts=ATTEMPTS, first=0.2)
DELAYED: Final = RetryPolicy(attempts=ATTEMPTS, first=1.5, mode="delayed")


class Handling:
    """The handler of one group: it writes down each step before it takes it, and after."""

    def __init__(self, station: Station, group: str) -> None:
        self._journal = station.journal
        self._long = station.plan.long
        self._group = group

    async def handle(self, message: Message) -> None:
        """Do with it what its fate is."""
        self._note("began", message)
        try:
            await self._act(message)
        except asyncio.CancelledError:
            self._note("cancelled", message)
            raise
        except Exception as error:
            self._note("failed", message, type(error).__name__)
            raise
        self._note("done", message)

    async def handle_batch(self, messages: list[Message]) -> None:
        """The same with each of a list, at once."""
        answers = await asyncio.gather(*map(self.handle, messages), return_exceptions=True)
        errors = {n: answer for n, answer in enumerate(answers) if isinstance(answer, BaseException)}
        if errors:
            raise BatchError(errors)

    async def _act(self, message: Message) -> None:
        if message.headers.get(CHECKSUM) != str(zlib.crc32(message.value)):
            self._note("spoiled", message)
        match fate(message, self._group):
            case "well":
                await asyncio.sleep(LATE)
            case "takes a while":
                await asyncio.sleep(WHILE)
            case "outlasts a lease":
                await asyncio.sleep(self._long)
            case "fails once" if message.attempt == 1:
                raise Planted("once")
            case "asks again" if message.attempt == 1:
                raise Retry(after=AGAIN)
            case "hopeless":
                raise Planted("always")
            case "rejected":
                raise Reject("as planned")

    def _note(self, kind: Kind, message: Message, text: str = "") -> None:
        self._journal.add(
            kind,
            message.id or "",
            group=self._group,
            key=(message.key or b"").decode(),
            place=int(message.headers.get(PLACE, 0)),
            attempt=message.attempt,
            text=text,
        )


def consumer_of(station: Station, broker: Broker, role: Role) -> BrokerConsumer:
    """A consumer of the group that this role is a member of."""
    handling, plan = Handling(station, role), station.plan
    if role == ORDERED:
        return broker.consumer(
            plan.topic, group=ORDERED, handler=handling.handle, concurrency=plan.concurrency,
            retry=IN_PLACE, drain_timeout=DRAIN,
        )  # fmt: skip
    if role == FREE:
        return broker.consumer(
            plan.topic, group=FREE, handler=handling.handle, concurrency=plan.concurrency, ordering="none",
            retry=DELAYED, drain_timeout=DRAIN,
        )  # fmt: skip
    return broker.consumer(
        plan.topic, group=BATCH, handler=handling.handle_batch, concurrency=plan.concurrency,
        batch=Batch(size=20, wait=0.1), retry=IN_PLACE, drain_timeout=DRAIN,
    )  # fmt: skip


async def consume(station: Station) -> None:
    """Be a member of a group until told to end."""
    async with (
        connect(station.plan.url) as broker,
        station.watching(broker),
        consumer_of(station, broker, station.plan.role) as consumer,
    ):
        station.journal.add("ready")
        await station.until_told(consumer.wait())


async def carry(station: Station) -> None:
    """Be the bridge, and handle what it has brought, until told to end."""
    plan = station.plan
    async with connect(plan.url) as source, connect(plan.beside) as target, station.watching(source):
        far = target.consumer(
            plan.topic, group=FAR, handler=Handling(station, FAR).handle, concurrency=plan.concurrency,
            drain_timeout=DRAIN,
        )  # fmt: skip
        async with far, Bridge(source, target, [plan.topic], group=BRIDGE, target_groups=[FAR]) as bridge:
            station.journal.add("ready")
            await station.until_told(bridge.wait(), far.wait())


async def work(station: Station) -> None:
    """What the plan says."""
    await (carry(station) if station.plan.role == "carrier" else consume(station))


if __name__ == "__main__":
    main(work)
