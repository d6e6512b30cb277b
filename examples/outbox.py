"""Outbox and inbox: an order and its message are one transaction, a bill and the order's mark another.

All of it is in one SQLite file: the tables of the shop, and those of the broker `sqlite://`.
"""

import asyncio
import sys
import tempfile
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from things_kit import Topic, connect
from things_kit.patterns import Inbox, Outbox


@dataclass
class Order:
    """What a customer buys."""

    id: str
    customer: str
    cents: int


@dataclass
class Bill:
    """What an order costs."""

    order: str
    cents: int


orders = Topic("orders", Order, key=lambda order: order.customer)
bills = Topic("bills", Bill, key=lambda bill: bill.order)
outbox = Outbox()


async def place(engine: AsyncEngine, order: Order, *, in_stock: bool = True) -> None:
    """Write the order and publish it: both, or neither."""
    async with AsyncSession(engine) as session:
        await session.execute(
            text("INSERT INTO placed VALUES (:id, :cents)"), {"id": order.id, "cents": order.cents}
        )
        await outbox.publish(session, orders.message(order, id=order.id))
        if in_stock:
            await session.commit()


async def main(path: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    await outbox.create(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE placed (id TEXT, cents INTEGER)"))
        await connection.execute(text("CREATE TABLE billed (id TEXT)"))
    inbox = Inbox(engine, outbox=outbox)
    sent = asyncio.Semaphore(0)

    async def bill(order: Order) -> Bill:  # its result is published in the inbox's transaction too
        await inbox.session().execute(text("INSERT INTO billed VALUES (:id)"), {"id": order.id})
        return Bill(order.id, order.cents)

    async def send(bill: Bill) -> None:
        print(f"bill of {bill.order}: {bill.cents} cents")
        sent.release()

    async with (
        connect(f"sqlite:///{path}") as broker,
        broker.consumer(orders, group="billing", handler=bill, middleware=[inbox], publish=bills),
        broker.consumer(bills, group="post", handler=send),
    ):
        await place(engine, Order("o-1", "ada", 1190))
        await place(engine, Order("o-2", "ada", 500), in_stock=False)  # rolled back: nobody hears of it
        await place(engine, Order("o-1", "ada", 1190))  # the same message again: it has its mark
        await place(engine, Order("o-3", "ada", 700))  # of the same key: handled after those before
        for _ in range(2):
            await sent.acquire()
    async with engine.connect() as connection:
        print("billed:", (await connection.execute(text("SELECT count(*) FROM billed"))).scalar())
    await engine.dispose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(*sys.argv[1:] or [f"{folder}/shop.db"]))
