"""A process that publishes: with and without keys, singly and in batches, small and large."""

import asyncio
import contextlib
import random
import zlib
from collections import Counter
from collections.abc import Coroutine
from typing import Final

from things_kit.brokers.connect import connect
from things_kit.messaging.errors import PublishError, ThingsKitError
from things_kit.messaging.message import Message
from things_kit.messaging.producer import Producer
from things_kit.testing.soak.plan import CHECKSUM, PLACE
from things_kit.testing.soak.records import Kind
from things_kit.testing.soak.station import Station, main

KEYS: Final = 12
BATCH: Final = 20
AT_ONCE: Final = 200
"""Publishes that may be under way; while the broker is away no more are begun."""

SIZES: Final = (10, 40, 200, 200, 200, 1_000, 1_000, 5_000)
LARGE: Final = 200 * 1024
LARGE_ONE_IN: Final = 400


class Publishing:
    """Publishes what it makes up, and writes down what was confirmed."""

    def __init__(self, station: Station, producer: Producer) -> None:
        self._journal = station.journal
        self._plan = station.plan
        self._producer = producer
        self._chance = random.Random(f"{station.plan.seed}/{station.plan.name}")  # noqa: S311 - no secret
        self._places: Counter[str] = Counter()
        self._number = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._steady = asyncio.Event()

    def obey(self, order: str) -> None:
        """Go on, rest, or publish a burst."""
        if order == "steady":
            self._steady.set()
        elif order == "rest":
            self._steady.clear()
        elif order == "burst":
            self._begin(self._burst())

    async def run(self) -> None:
        """Publish at the rate of the plan while told to, until cancelled."""
        while True:
            await self._steady.wait()
            while len(self._under_way) >= AT_ONCE:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            if self._chance.random() < 0.5 / BATCH:
                self._begin(self._batch())
            else:
                self._begin(self._one())
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) / self._plan.rate)

    async def finish(self) -> None:
        """Wait for what is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _message(self) -> Message:
        self._number += 1
        chance = self._chance
        size = LARGE if chance.randrange(LARGE_ONE_IN) == 0 else chance.choice(SIZES)
        value = chance.randbytes(size)
        key, headers = "", {CHECKSUM: str(zlib.crc32(value))}
        if chance.random() < 0.75:
            key = f"{self._plan.name}/{chance.randrange(KEYS)}"
            self._places[key] += 1
            headers[PLACE] = str(self._places[key])
        id_ = f"{self._plan.name}/{self._number}"
        return Message(self._plan.topic, value, key.encode() or None, headers, id=id_)

    def _note(self, message: Message, error: BaseException | None = None) -> None:
        key = (message.key or b"").decode()
        place = int(message.headers.get(PLACE, 0))
        kind: Kind = "published" if error is None else "unpublished"
        text = "" if error is None else f"{type(error).__name__}: {error}"
        self._journal.add(kind, message.id or "", key=key, place=place, text=text)

    async def _one(self) -> None:
        message = self._message()  # here, as places are to be in the order of the calls
        self._journal.add("publishing", message.id or "")
        try:
            await self._producer.publish(message)
        except ThingsKitError as error:
            self._note(message, error)
        else:
            self._note(message)

    async def _batch(self) -> None:
        messages = [self._message() for _ in range(BATCH)]
        for message in messages:
            self._journal.add("publishing", message.id or "")
        failures: dict[int, BaseException] = {}
        try:
            await self._producer.publish_batch(messages)
        except PublishError as error:
            failures = dict(error.failures) or dict.fromkeys(range(len(messages)), error)
        except ThingsKitError as error:
            failures = dict.fromkeys(range(len(messages)), error)
        for index, message in enumerate(messages):
            self._note(message, failures.get(index))

    async def _burst(self) -> None:
        for _ in range(self._plan.burst // BATCH):
            await self._batch()


async def produce(station: Station) -> None:
    """Publish until told to end."""
    async with connect(station.plan.url) as broker:
        publishing = Publishing(station, broker.producer())
        async with station.watching(broker, publishing.obey):
            running = asyncio.create_task(publishing.run())
            station.journal.add("ready")
            try:
                await station.until_told(running)
            finally:
                running.cancel()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(publishing.finish(), 5.0)


if __name__ == "__main__":
    main(produce)
