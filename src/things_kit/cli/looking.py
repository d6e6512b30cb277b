"""Connections for commands that only look: they create nothing that outlives them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from things_kit.brokers.connect import connect
from things_kit.engine.broker import Broker
from things_kit.engine.looking import check_topic


@asynccontextmanager
async def looking(url: str, topic: str | None = None) -> AsyncIterator[Broker]:
    """A broker by which nothing is created, open. Raises MissingError if it has no such topic."""
    async with connect(creating_nothing(url)) as broker:
        if topic is not None:
            await check_topic(broker, topic)
        yield broker


def creating_nothing(url: str) -> str:
    """The URL with `declare=false`."""
    front, _, query = url.partition("?")
    options = [option for option in query.split("&") if option and not option.startswith("declare=")]
    return f"{front}?{'&'.join([*options, 'declare=false'])}"
