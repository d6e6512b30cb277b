"""A process that brings dead letters back from time to time, and writes down what lags."""

import asyncio
import contextlib
from typing import Final

from things_kit.brokers.connect import connect
from things_kit.engine.broker import Broker
from things_kit.messaging import names
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.message import Message
from things_kit.testing.soak.plan import BATCH, BRIDGE, FREE, ORDERED, RESULTS, dead_letters_of, results_of
from things_kit.testing.soak.station import Station, main

EVERY: Final = 15.0
"""Seconds between two replays."""

LAGS_EVERY: Final = 2.0
PATIENCE: Final = 20.0


class Clerk:
    """Looks after dead letters and lags."""

    def __init__(self, station: Station, broker: Broker) -> None:
        self._journal = station.journal
        topic = station.plan.topic
        self._groups = [(topic, group) for group in (ORDERED, FREE, BATCH, BRIDGE)] + [
            (results_of(topic), RESULTS)
        ]
        self._dead_letters = dead_letters_of(topic)
        self._broker = broker

    async def replay(self) -> None:
        """Bring all dead letters back, again and again."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                number = await self._broker.replay(self._dead_letters, where=self._look)
            except ThingsKitError as error:
                self._journal.add("ill", text=f"replay: {error}")
            else:
                self._journal.add("replayed", figures={"number": number})

    async def watch_lags(self) -> None:
        """Write down how much each group has not acknowledged."""
        while True:
            await asyncio.sleep(LAGS_EVERY)
            for topic, group in self._groups:
                with contextlib.suppress(TimeoutError, ThingsKitError):
                    lag = await asyncio.wait_for(self._broker.lag(topic, group), PATIENCE)
                    if lag is not None:
                        self._journal.add("lag", group=group, figures={"lag": lag})

    def _look(self, message: Message) -> bool:
        headers = message.headers
        self._journal.add(
            "buried",
            message.id or "",
            group=headers.get(names.CONSUMER_GROUP, ""),
            attempt=int(headers.get(names.ATTEMPTS, 0)),
            text=headers.get(names.ERROR_TYPE, ""),
        )
        return True


async def keep(station: Station) -> None:
    """Do both until told to end."""
    async with connect(station.plan.url) as broker, station.watching(broker):
        clerk = Clerk(station, broker)
        tasks = [asyncio.create_task(clerk.replay()), asyncio.create_task(clerk.watch_lags())]
        station.journal.add("ready")
        try:
            await station.until_told(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main(keep)
