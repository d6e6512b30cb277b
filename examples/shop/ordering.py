"""The service that takes orders: an order and its message are there together, or not at all."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from examples.shop.contracts import Order, orders
from things_kit.patterns import Outbox

TABLE = text("CREATE TABLE IF NOT EXISTS placed (id TEXT PRIMARY KEY, customer TEXT, cents INTEGER)")
PLACE = text("INSERT INTO placed VALUES (:id, :customer, :cents) ON CONFLICT DO NOTHING RETURNING id")

engine = create_async_engine(os.environ["ORDERING_DATABASE"])
outbox = Outbox()


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
    await outbox.create(engine)
    async with engine.begin() as connection:
        await connection.execute(TABLE)
    yield
    await engine.dispose()


async def order(request: Request) -> Response:
    """Place an order. A customer who gets no answer cannot know what became of it, and asks again."""
    try:
        wanted = msgspec.json.decode(await request.body(), type=Order)
    except msgspec.MsgspecError as error:
        return Response(str(error), status_code=400)
    async with AsyncSession(engine) as session, session.begin():
        if (await session.execute(PLACE, vars(wanted))).scalar():  # it was not there yet
            await outbox.publish(session, orders, wanted, id=wanted.id)
    return Response(status_code=204)


web = Starlette(routes=[Route("/orders", order, methods=["PUT"])], lifespan=lifespan)
