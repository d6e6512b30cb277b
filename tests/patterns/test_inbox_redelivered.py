"""A real broker delivers a message again whose process died between commit and acknowledgement: it has its effect once."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tests.patterns.mortal import KILLED, child
from things_kit import Message, connect
from things_kit.patterns import Inbox, Outbox
from things_kit.patterns.inbox.transactions import AsyncTransaction, Transaction
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer

kafka = shared(KafkaServer, "kafka")
rabbitmq = shared(RabbitMQServer, "rabbitmq")


@pytest.fixture(params=["kafka", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param).url
    return f"{url}?session_timeout=1" if request.param == "kafka" else url


class DiesAfterItsCommit(Inbox):
    """The process ends when a handler's transaction is committed, before anybody hears of it."""

    async def begin(self) -> Transaction:
        transaction = await super().begin()
        assert isinstance(transaction, AsyncTransaction)
        end = transaction.end

        async def dying(*, commit: bool) -> None:
            await end(commit=commit)
            if commit:
                os._exit(KILLED)

        transaction.end = dying  # type: ignore[method-assign] # of this one
        return transaction


async def prepare(url: str, topic: str, path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    await Outbox().create(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effects (id TEXT)"))
        await connection.execute(text("CREATE TABLE deliveries (id TEXT)"))
    async with connect(url) as broker:
        await broker.declare(topic, ["g"])
        await broker.producer().publish_batch([Message(topic, b"", b"k", id=f"m-{n}") for n in range(3)])


async def serve(url: str, topic: str, path: Path, *, dies: bool) -> None:
    """Handle until the last message has its effect, writing down beside it what was delivered."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    inbox = (DiesAfterItsCommit if dies else Inbox)(engine)
    last = asyncio.Event()

    def noting(handle):  # type: ignore[no-untyped-def] # as a middleware's
        async def noted(message: Message) -> None:
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("INSERT INTO deliveries VALUES (?)", (message.id,))
            await handle(message)
            if message.id == "m-2":
                last.set()

        return noted

    async def handle(message: Message, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effects VALUES (:id)"), {"id": message.id})

    async with (
        connect(url) as broker,
        broker.consumer(topic, group="g", handler=handle, middleware=[noting, inbox], concurrency=1),
    ):
        await last.wait()


def test_what_is_delivered_again_has_its_effect_once(broker_url: str, tmp_path: Path) -> None:
    topic, path = f"orders-{uuid4().hex[:8]}", tmp_path / "app.db"
    assert child(prepare(broker_url, topic, path)) == 0
    assert child(serve(broker_url, topic, path, dies=True)) == KILLED
    assert child(serve(broker_url, topic, path, dies=False)) == 0
    with closing(sqlite3.connect(path)) as connection:
        delivered = [row[0] for row in connection.execute("SELECT id FROM deliveries ORDER BY rowid")]
        effects = [row[0] for row in connection.execute("SELECT id FROM effects ORDER BY rowid")]
    assert delivered[:2] == ["m-0", "m-0"]
    assert effects == ["m-0", "m-1", "m-2"]
