"""An outbox, its relay in an app and an inbox behind it, with every argument that they have; and the command line after them."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from typer.testing import CliRunner

from things_kit import App, Topic, connect
from things_kit.cli.app import app as command_line
from things_kit.patterns import Inbox, Outbox


class Order(msgspec.Struct):
    id: str


class Bill(msgspec.Struct):
    order: str


orders = Topic("orders", Order, key="id")
bills = Topic("bills", Bill, key="order")


def with_drivers(url: str) -> tuple[str, str]:
    """The URL for SQLAlchemy, of an asynchronous driver and of one that is not."""
    scheme, _, rest = url.partition("://")
    waiting, plain = {"sqlite": ("aiosqlite", "pysqlite"), "postgresql": ("asyncpg", "psycopg")}[scheme]
    return f"{scheme}+{waiting}://{rest}", f"{scheme}+{plain}://{rest}"


async def test_from_a_transaction_by_a_relay_into_another_transaction(database: str) -> None:
    waiting, plain = with_drivers(database)
    engine, sync_engine = create_async_engine(waiting, poolclass=NullPool), create_engine(plain)
    outbox = Outbox(schema="things_kit")
    inbox = Inbox(engine, outbox=outbox, retain=timedelta(days=30))
    await outbox.create(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE billed (name TEXT)"))

    async with AsyncSession(engine) as session:
        await outbox.publish(session, orders, Order("1"), id="o-1")
        await outbox.publish_batch(session, orders.messages([Order("2"), Order("3")]), after=0)
        await session.commit()
    with Session(sync_engine) as plain_session:
        outbox.publish_sync(plain_session, orders.message(Order("4")))
        outbox.publish_batch_sync(plain_session, [orders.message(Order("1"), id="o-1")])
        plain_session.commit()
    sync_engine.dispose()

    async def bill(order: Order, session: AsyncSession) -> Bill:
        await session.execute(text("INSERT INTO billed VALUES (:name)"), {"name": order.id})
        return Bill(order.id)

    async with connect("memory://") as target, connect(database) as source:
        await source.declare(bills, ["post"])
        relay = outbox.relay(
            source,
            target,
            [orders],
            group="bridge",
            rename={"orders": "shop.orders"},
            target_groups=["billing"],
            dead_letter="{topic}-refused",
        )
        async with (
            App(relay),
            target.consumer(
                orders.renamed("shop.orders"),
                group="billing",
                handler=bill,
                middleware=[inbox],
                publish=bills,
            ),
            asyncio.timeout(60),
        ):
            await relay.until_empty()
            while await target.lag("shop.orders", "billing"):  # noqa: ASYNC110 - only the broker knows
                await asyncio.sleep(0.01)
        assert await source.lag(bills, "post") == 4
    assert await inbox.forget("billing", "shop.orders", "o-1") == 1
    assert await inbox.sweep() == 0
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT name FROM billed ORDER BY name"))
        assert [name for (name,) in rows] == ["1", "2", "3", "4"]
    await engine.dispose()


def test_the_command_line_goes_on_where_a_relay_stopped(tmp_path: Path) -> None:
    source, target = f"sqlite:///{tmp_path}/app.db", f"sqlite:///{tmp_path}/target.db"
    outbox = Outbox()

    def commit(name: str) -> None:
        with closing(sqlite3.connect(tmp_path / "app.db")) as session:
            outbox.publish_sync(session, orders, Order(name))
            session.commit()

    async def relay() -> None:
        async with outbox.relay(source, target, [orders]) as relay:
            commit("1")
            await relay.until_empty()

    async def arrived() -> int | None:
        async with connect(target) as broker:
            return await broker.lag(orders, "whoever comes")

    asyncio.run(relay())
    commit("2")
    done = CliRunner().invoke(command_line, ["bridge", source, target, "orders", "--until-empty"])
    assert done.exit_code == 0, done.output
    assert asyncio.run(arrived()) == 2
