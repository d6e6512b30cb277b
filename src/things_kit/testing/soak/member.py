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
from things_kit.messaging.topic import Topic
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
    PARTITIONED,
    PLACE,
    RESULTS,
    Planted,
    Result,
    Role,
    fate,
    results_of,
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

    async def handle(self, message: Message) -> Result | None:
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
        return Result(message.id or "", _place(message)) if self._group == ORDERED else None

    async def handle_batch(self, messages: list[Message]) -> None:
        """The same with each of a list, at once. None is done before all are: until then they come again if we end."""
        for message in messages:
            self._note("began", message)
        try:
            answers = await asyncio.gather(*map(self._act, messages), return_exceptions=True)
        except asyncio.CancelledError:
            for message in messages:
                self._note("cancelled", message)
            raise
        errors = {n: answer for n, answer in enumerate(answers) if isinstance(answer, Exception)}
        for n, message in enumerate(messages):
            if n in errors:
                self._note("failed", message, type(errors[n]).__name__)
            else:
                self._note("done", message)
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
        known = kind == "began" and message.partition is not None and self._group in PARTITIONED
        self._journal.add(
            kind,
            message.id or "",
            group=self._group,
            key=(message.key or b"").decode(),
            place=_place(message),
            attempt=message.attempt,
            text=text,
            figures={"partition": float(message.partition or 0)} if known else None,
        )


def _place(message: Message) -> int:
    return int(message.headers.get(PLACE, 0))


class HandlingResults:
    """The handler of what the handlers of `ordered` returned: it writes that down under the message that it was made of."""

    def __init__(self, station: Station) -> None:
        self._journal = station.journal

    async def handle(self, result: Result, message: Message) -> None:
        """Note it, with the id under which it came."""
        self._note("began", result, message)
        await asyncio.sleep(LATE)
        self._note("done", result, message)

    def _note(self, kind: Kind, result: Result, message: Message) -> None:
        key = (message.key or b"").decode()
        self._journal.add(
            kind, result.of, group=RESULTS, key=key, place=result.place, attempt=message.attempt, text=message.id or ""
        )  # fmt: skip


def consumer_of(station: Station, broker: Broker, role: Role) -> BrokerConsumer:
    """A consumer of the group that this role is a member of."""
    handling, plan = Handling(station, role), station.plan
    results = Topic(results_of(plan.topic), Result)
    if role == RESULTS:
        return broker.consumer(
            results, group=RESULTS, handler=HandlingResults(station), concurrency=plan.concurrency,
            drain_timeout=DRAIN,
        )  # fmt: skip
    if role == ORDERED:
        return broker.consumer(
            plan.topic, group=ORDERED, handler=handling.handle, concurrency=plan.concurrency,
            publish=results, retry=IN_PLACE, drain_timeout=DRAIN,
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
