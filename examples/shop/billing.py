"""The service that bills: what comes twice, as it may behind a relay and from any broker, is billed once."""

import os

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from examples.shop.contracts import Order, orders
from things_kit import App, Hook, Lifecycle, invoke
from things_kit.modules import config, kafka, logging
from things_kit.patterns import Inbox, Outbox

TABLE = text("CREATE TABLE IF NOT EXISTS bills (number SERIAL, order_id TEXT, customer TEXT, cents INTEGER)")
BILL = text("INSERT INTO bills (order_id, customer, cents) VALUES (:id, :customer, :cents)")

engine = create_async_engine(os.environ["BILLING_DATABASE"])
inbox = Inbox(engine)


def database(lifecycle: Lifecycle) -> None:
    """The tables, and the inbox's beside them."""

    async def create() -> None:
        await Outbox().create(engine)
        async with engine.begin() as connection:
            await connection.execute(TABLE)

    lifecycle.append(Hook(on_start=create, on_stop=engine.dispose))


app = App(config.module, logging.module, kafka.module, invoke(database))  # Kafka is where KAFKA_URL says


@app.on(orders, group="billing", middleware=[inbox])
async def bill(order: Order, session: AsyncSession) -> None:
    """Write a bill in the transaction that marks the message: nothing in the table itself keeps twins out."""
    await session.execute(BILL, vars(order))
