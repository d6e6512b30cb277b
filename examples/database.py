"""A handler with a database: SQLAlchemy on SQLite, or on PostgreSQL, as `postgresql+asyncpg://user@host/shop`.

A broker delivers at least once. What the handler writes happens exactly once all the same: in one transaction with it goes
a mark that the message was handled, and a message that is marked is left alone. Either both are written or none.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import String, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from things_kit import App, Message, Producer, invoke, provide
from things_kit.modules import config, sqlite

CONFIG = "sqlite: {path: events.db, topic: orders, group_id: billing, concurrency: 4}\n"


class Base(DeclarativeBase):
    """The tables."""


class Account(Base):
    """What a customer owes: to add to it twice would be wrong."""

    __tablename__ = "accounts"
    customer: Mapped[str] = mapped_column(String(100), primary_key=True)
    owes: Mapped[int]


class Handled(Base):
    """The messages that were handled; those older than any that may come again can be deleted."""

    __tablename__ = "handled"
    message_id: Mapped[str] = mapped_column(String(200), primary_key=True)


class Database(str):
    """Where the database is."""


async def engine(url: Database) -> AsyncIterator[AsyncEngine]:
    """Connections for as long as the app runs."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


class Orders:
    """Bills each order once."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.handled = asyncio.Semaphore(0)

    async def handle(self, message: Message) -> None:
        async with AsyncSession(self.engine) as session:
            if await first_time(session, message):
                await self.bill(session, message)
                await session.commit()
        self.handled.release()

    async def bill(self, session: AsyncSession, message: Message) -> None:
        customer = (message.key or b"").decode()
        account = await session.get(Account, customer, with_for_update=True)
        if account is None:
            session.add(Account(customer=customer, owes=int(message.value)))
        else:
            account.owes += int(message.value)


async def first_time(session: AsyncSession, message: Message) -> bool:
    """Mark a message as handled, in the session's transaction; False if it was.

    The database has whoever else handles it at this moment wait for the end of that transaction.
    """
    session.add(Handled(message_id=message.id))
    try:
        await session.flush()
    except IntegrityError:
        await session.rollback()
        return False
    return True


async def main(url: str) -> None:
    app = App(
        config.module,
        sqlite.module,
        provide(Database(url)),
        provide(engine),
        provide(Orders),
        invoke(sqlite.run_consumer),
    )
    async with app:
        producer = await app.get(Producer)
        for id_, customer, amount in [("o-1", b"ada", b"10"), ("o-2", b"bob", b"5"), ("o-1", b"ada", b"10")]:
            await producer.publish(
                Message("orders", amount, key=customer, id=id_)
            )  # the last is the first again
        orders = await app.get(Orders)
        for _ in range(3):
            await orders.handled.acquire()
        async with AsyncSession(orders.engine) as session:
            for account in await session.scalars(select(Account).order_by(Account.customer)):
                print(f"{account.customer} owes {account.owes}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("config.yaml").write_text(CONFIG)
        asyncio.run(main(*sys.argv[1:] or ["sqlite+aiosqlite:///shop.db"]))
