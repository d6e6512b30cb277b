"""A handler with a database: SQLAlchemy, here on SQLite; give it any other URL of SQLAlchemy, such as PostgreSQL's.

A message may come twice: the row of an id is written once, in the transaction of what is done with it.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from things_kit import App, Message, Producer, invoke, provide
from things_kit.modules import config, sqlite

CONFIG = "sqlite: {path: events.db, topic: orders, group_id: billing, concurrency: 4}\n"


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    """An order that was billed."""

    __tablename__ = "orders"
    message_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str]


class Database(str):
    """Where the database is."""


def engine(url: Database) -> Iterator[Engine]:
    """Connections for as long as the app runs."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


class Orders:
    """Bills each order once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.handled = asyncio.Semaphore(0)

    async def handle(self, message: Message) -> None:
        await asyncio.to_thread(self._bill, message)  # SQLAlchemy blocks, the event loop must not
        self.handled.release()

    def _bill(self, message: Message) -> None:
        with Session(self.engine) as session, session.begin():
            if session.get(Order, message.id) is None:
                session.add(Order(message_id=message.id, value=message.value.decode()))


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
        producer = await app.get(Producer)  # type: ignore[type-abstract]
        for value in (b"o-1", b"o-2", b"o-1"):  # the first comes twice
            await producer.publish(Message("orders", value, key=value, id=value.decode()))
        orders = await app.get(Orders)
        for _ in range(3):
            await orders.handled.acquire()
        with Session(orders.engine) as session:
            print("billed:", ", ".join(session.scalars(select(Order.value).order_by(Order.value))))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("config.yaml").write_text(CONFIG)
        asyncio.run(main(*sys.argv[1:] or ["sqlite:///shop.db"]))
