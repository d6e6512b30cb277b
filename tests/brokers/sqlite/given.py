"""What the tests of SQLite share."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from things_kit.brokers.sqlite.driver import SQLiteDriver
from things_kit.brokers.sqlite.store import Store
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import Delivery, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.messaging.message import Message

NOW = datetime(2026, 5, 9, 7, 35, 25, 123456, tzinfo=UTC)


Open: TypeAlias = Callable[..., Awaitable[SQLiteDriver]]


def driver(path: Path, query: str = "") -> SQLiteDriver:
    return SQLiteDriver.from_url(BrokerURL.parse(f"sqlite:///{path}{query}"))


def message(value: bytes = b"", key: bytes | None = None, topic: str = "t", **fields: Any) -> Message:
    return Message(topic, value, key, timestamp=NOW, id="id", **fields)


async def publish(broker: SQLiteDriver, *pairs: str, topic: str = "t") -> None:
    """Publish "k1": key k and value k1; "-1" has no key."""
    messages = [
        message(pair.encode(), None if pair[0] == "-" else pair[:1].encode(), topic) for pair in pairs
    ]
    assert not any(await broker.send(messages))


async def join(broker: SQLiteDriver, group: str = "g", **fields: Any) -> Collecting:
    return await collect(broker, Subscription(topic="t", group=group, **fields))


async def take(receiver: Collecting, limit: int = 100, wait: float = 0) -> list[Delivery]:
    return list(await receiver.receive(limit, wait))


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.value.decode() for delivery in deliveries]


async def exactly(receiver: Collecting, count: int, wait: float = 10) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(wait):
        while len(got) < count:
            got += await receiver.receive(count - len(got), wait)
    return got


async def run_in_thread(broker: SQLiteDriver, work: Callable[[Store], Any]) -> Any:
    assert broker._worker is not None
    return await broker._worker.write(work)


def select(path: Path, statement: str) -> Any:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def consistent(path: Path) -> None:
    """What must hold between the rows whatever was done."""
    assert select(path, "PRAGMA integrity_check") == [("ok",)]
    stuck = """SELECT grp, lane FROM things_kit_queued WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(due) = 0
        EXCEPT SELECT grp, lane FROM things_kit_loan"""
    assert select(path, stuck) == [], "a lane waits for nobody"
    overtaken = """SELECT 1 FROM things_kit_queued a JOIN things_kit_queued b USING (grp, lane) WHERE a.due IS NULL AND b.due > 0 AND b.off > a.off"""
    assert select(path, overtaken) == [], "a free message is behind a waiting one of its lane"
    shared = "SELECT 1 FROM things_kit_loan WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(DISTINCT owner) > 1"
    assert select(path, shared) == [], "a lane has two owners"
    assert (
        select(path, "SELECT 1 FROM things_kit_loan WHERE owner NOT IN (SELECT id FROM things_kit_receiver)")
        == []
    )
