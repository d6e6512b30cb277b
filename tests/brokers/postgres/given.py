"""What the tests of PostgreSQL share."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import asyncpg

from things_kit.brokers.postgres.driver import PostgresDriver
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import Delivery, Subscription
from things_kit.messaging.message import Message

NOW = datetime(2026, 5, 9, 7, 35, 25, 123456, tzinfo=UTC)

Open: TypeAlias = Callable[..., Awaitable[PostgresDriver]]

Swept: TypeAlias = Callable[[PostgresDriver], Awaitable[None]]
"""Waits until the sweep with which every process begins is over."""


def message(value: bytes = b"", key: bytes | None = None, topic: str = "t", **fields: Any) -> Message:
    return Message(topic, value, key, timestamp=NOW, id="id", **fields)


async def publish(broker: PostgresDriver, *pairs: str, topic: str = "t") -> None:
    """Publish "k1": key k and value k1; "-1" has no key."""
    messages = [
        message(pair.encode(), None if pair[0] == "-" else pair[:1].encode(), topic) for pair in pairs
    ]
    assert not any(await broker.send(messages))


async def join(broker: PostgresDriver, group: str = "g", topic: str = "t", **fields: Any) -> Collecting:
    return await collect(broker, Subscription(topic=topic, group=group, **fields))


async def take(receiver: Collecting, limit: int = 100, wait: float = 0) -> list[Delivery]:
    return list(await receiver.receive(limit, wait))


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.value.decode() for delivery in deliveries]


INSERT = "INSERT INTO {s}.message (topic, key, value) VALUES ($1, $2, $3)"


async def insert(connection: asyncpg.Connection, schema: str, *pairs: str, topic: str = "t") -> None:
    """Publish as a foreign transaction does."""
    for pair in pairs:
        await connection.execute(INSERT.format(s=schema), topic, pair[:1].encode(), pair.encode())


async def consistent(connection: asyncpg.Connection, s: str) -> None:
    """What must hold between the rows whatever was done."""
    stuck = f"""SELECT grp, lane FROM {s}.queued WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(due) = 0
        EXCEPT SELECT grp, lane FROM {s}.loan"""
    assert await connection.fetch(stuck) == [], "a lane waits for nobody"
    overtaken = f"""SELECT 1 FROM {s}.queued a JOIN {s}.queued b USING (grp, lane)
        WHERE a.due IS NULL AND b.due IS NOT NULL AND b.off > a.off"""
    assert await connection.fetch(overtaken) == [], "a free message is behind a waiting one of its lane"
    shared = (
        f"SELECT 1 FROM {s}.loan WHERE lane IS NOT NULL GROUP BY grp, lane HAVING count(DISTINCT owner) > 1"
    )
    assert await connection.fetch(shared) == [], "a lane has two owners"
    lost = f"SELECT 1 FROM {s}.loan WHERE owner NOT IN (SELECT id FROM {s}.receiver)"
    assert await connection.fetch(lost) == [], "a loan is nobody's"
    shared = f"""SELECT 1 FROM {s}.loan a JOIN {s}.loan b ON a.grp = b.grp AND a.off <= b.last AND b.off <= a.last
        WHERE (a.owner, a.off) < (b.owner, b.off)"""
    assert await connection.fetch(shared) == [], "a message is handed out twice"
    noted = f"SELECT 1 FROM {s}.loan WHERE last < off OR last > off AND (lane IS NOT NULL OR attempt > 1 OR suspect > 0)"
    assert await connection.fetch(noted) == [], "something is noted of many messages in one row"
