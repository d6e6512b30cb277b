"""A real broker delivers a message again whose handling was torn off, at either side of its commit: it has its effect once."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tests.patterns.mortal import KILLED, child, ended, started
from things_kit import Broker, Message, connect
from things_kit.engine.consumer import BrokerConsumer
from things_kit.patterns import Inbox, Outbox
from things_kit.patterns.inbox.transactions import AsyncTransaction, Transaction
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.relay import Relay

kafka = shared(KafkaServer, "kafka")
rabbitmq = shared(RabbitMQServer, "rabbitmq")

When = Literal["in its transaction", "after its commit"]


@pytest.fixture
def broker_url(request: pytest.FixtureRequest) -> str:
    return url_of(request.getfixturevalue(request.param))


def url_of(server: KafkaServer | RabbitMQServer) -> str:
    return f"{server.url}?session_timeout=1" if isinstance(server, KafkaServer) else server.url


class Shop:
    """What all processes have: messages of one key, a database with effects, and a file that says what was delivered."""

    def __init__(self, database: str, folder: Path, messages: list[str]) -> None:
        self.database = database
        self.messages = messages
        self.topic = f"orders-{uuid4().hex[:8]}"
        self._noted = folder / "delivered"
        self._noted.touch()

    def engine(self) -> AsyncEngine:
        driver = "aiosqlite" if self.database.startswith("sqlite") else "asyncpg"
        return create_async_engine(self.database.replace("://", f"+{driver}://"), poolclass=NullPool)

    async def prepare(self, url: str) -> None:
        engine = self.engine()
        await Outbox().create(engine)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE effects (number INTEGER, id TEXT)"))
        async with connect(url) as broker:
            await broker.declare(self.topic, ["g"])
            await broker.producer().publish_batch(
                [Message(self.topic, b"", b"k", id=name) for name in self.messages]
            )

    def note(self, message: Message) -> None:
        with self._noted.open("a") as file:
            file.write(f"{message.id}\n")

    def delivered(self) -> list[str]:
        return self._noted.read_text().split()

    async def until_delivered(self, name: str, times: int) -> None:
        async with asyncio.timeout(60):
            while self.delivered().count(name) < times:  # noqa: ASYNC110 - a process may have written it
                await asyncio.sleep(0.01)

    async def write_effect(self, session: AsyncSession, message: Message) -> None:
        count = (await session.execute(text("SELECT count(*) FROM effects"))).scalar()
        await session.execute(
            text("INSERT INTO effects VALUES (:number, :id)"), {"number": count, "id": message.id}
        )

    async def effects(self) -> list[str]:
        async with self.engine().connect() as connection:
            return [
                name for (name,) in await connection.execute(text("SELECT id FROM effects ORDER BY number"))
            ]


class Afterwards(Inbox):
    """Something happens when a handler's transaction is committed, before the broker hears of it."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    async def begin(self) -> Transaction:
        transaction = await super().begin()
        assert isinstance(transaction, AsyncTransaction)
        end = transaction.end

        async def ending(*, commit: bool) -> None:
            await end(commit=commit)
            if commit and hasattr(transaction, "session"):
                self.happens()

        transaction.end = ending  # type: ignore[method-assign] # of this one
        return transaction


def noting(shop: Shop, over: asyncio.Event):  # type: ignore[no-untyped-def] # a middleware
    """Around the inbox: writes down what is delivered, and tells when the last message is over."""

    def wrap(handle):  # type: ignore[no-untyped-def] # as a middleware's
        async def noted(message: Message) -> None:
            shop.note(message)
            await handle(message)
            if message.id == shop.messages[-1]:
                over.set()

        return noted

    return wrap


async def serve(shop: Shop, url: str, disturbed: When | None, disturb: Callable[[], object]) -> None:
    """Handle until the last message is over; the first is disturbed."""
    inbox, over = Afterwards(shop.engine()), asyncio.Event()
    if disturbed == "after its commit":
        inbox.happens = disturb

    async def handle(message: Message, session: AsyncSession) -> None:
        await shop.write_effect(session, message)
        if disturbed == "in its transaction":
            disturb()

    middleware = [noting(shop, over), inbox]
    async with (
        connect(url) as broker,
        broker.consumer(shop.topic, group="g", handler=handle, middleware=middleware, concurrency=1),
    ):
        await over.wait()


def die() -> None:
    os._exit(KILLED)


def stand_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("broker_url", "database"),
    [("kafka", "postgresql"), ("rabbitmq", "postgresql"), ("rabbitmq", "sqlite")],
    indirect=True,
)
def test_what_a_killed_process_has_handled_comes_again_and_has_its_effect_once(
    broker_url: str, database: str, tmp_path: Path
) -> None:
    shop = Shop(database, tmp_path, ["m-0", "m-1", "m-2"])
    assert child(shop.prepare(broker_url)) == 0
    assert child(serve(shop, broker_url, "in its transaction", die)) == KILLED
    assert child(serve(shop, broker_url, "after its commit", die)) == KILLED
    assert child(serve(shop, broker_url, None, die)) == 0
    assert shop.delivered()[:3] == ["m-0"] * 3
    assert asyncio.run(shop.effects()) == shop.messages


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_a_process_holds_that_stands_still_is_handled_once_though_another_has_it_too(
    kafka: KafkaServer, database: str, tmp_path: Path
) -> None:
    shop, url = Shop(database, tmp_path, ["m-0"]), url_of(kafka)
    assert child(shop.prepare(url)) == 0
    still = started(serve(shop, url, "in its transaction", stand_still), within=60)
    try:
        assert os.WIFSTOPPED(os.waitpid(still, os.WUNTRACED)[1])
        other = started(serve(shop, url, None, die), within=60)
        asyncio.run(shop.until_delivered("m-0", 2))  # the other waits for the mark of the first
        os.kill(still, signal.SIGCONT)
        assert ended(other) == 0
    finally:
        os.kill(still, signal.SIGKILL)
        ended(still)
    assert asyncio.run(shop.effects()) == shop.messages


@pytest.mark.parametrize("when", ["in its transaction", "after its commit"])
async def test_what_was_in_hand_as_the_connection_broke_is_handled_once_though_another_has_it_too(
    rabbitmq: RabbitMQServer, database: str, tmp_path: Path, when: When
) -> None:
    shop = Shop(database, tmp_path, ["m-0"])
    await shop.prepare(rabbitmq.url)
    inbox, calls, go_on = Afterwards(shop.engine()), list[str | None](), asyncio.Event()

    async def handle(message: Message, session: AsyncSession) -> None:
        calls.append(message.id)
        await shop.write_effect(session, message)
        await go_on.wait()
        if when == "in its transaction":
            cut()
            await shop.until_delivered("m-0", 2)  # the other waits for our mark

    def cut() -> None:
        for connection in relay.connections:
            connection.cut()

    def consumer(broker: Broker) -> BrokerConsumer:
        middleware = [noting(shop, asyncio.Event()), inbox]
        return broker.consumer(shop.topic, group="g", handler=handle, middleware=middleware, concurrency=1)

    async with (
        asyncio.timeout(60),
        Relay(rabbitmq.ports[0]) as relay,
        connect(f"amqp://guest:guest@127.0.0.1:{relay.port}/") as broker,
        connect(rabbitmq.url) as other,
    ):
        if when == "after its commit":
            inbox.happens = cut
        async with consumer(broker):
            await shop.until_delivered("m-0", 1)
            async with consumer(other):
                go_on.set()
                await shop.until_delivered("m-0", 2)
                while await other.lag(shop.topic, "g"):  # noqa: ASYNC110 - only the broker knows
                    await asyncio.sleep(0.01)
    assert calls == ["m-0"]
    assert await shop.effects() == ["m-0"]
