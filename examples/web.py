"""An app inside FastAPI: `uvicorn examples.web:web`, or as a program, which orders once.

Starlette takes `lifespan=kit.lifespan` in the same way. On SIGTERM the server finishes its requests, then the app drains.
"""

import asyncio
import os
import tempfile
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI
from pydantic import BaseModel

from things_kit import App, Message, Producer, invoke, provide
from things_kit.modules import config, sqlite

os.environ.setdefault("SQLITE_PATH", "events.db")
os.environ.setdefault("SQLITE_TOPIC", "orders")
os.environ.setdefault("SQLITE_GROUP_ID", "billing")


class Order(BaseModel):
    """What is ordered."""

    id: str
    items: int = 1


class Orders:
    """Bills what the web application publishes."""

    def __init__(self) -> None:
        self.billed = asyncio.Event()

    async def handle(self, message: Message) -> None:
        print(f"billed {Order.model_validate_json(message.value).id}", flush=True)
        self.billed.set()


kit = App(config.module, sqlite.module, provide(Orders), invoke(sqlite.run_consumer))
web = FastAPI(lifespan=kit.lifespan)


@web.post("/orders", status_code=202)
async def order(order: Order, producer: Annotated[Producer, Depends(kit.dependency(Producer))]) -> str:
    await producer.publish(Message("orders", order.model_dump_json().encode(), key=order.id.encode()))
    return "ordered"  # the broker has confirmed it: it will be billed, whatever happens to this process


async def main() -> None:
    async with kit.lifespan():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
            answer = await client.post("/orders", json={"id": "o-1", "items": 2})
        print(answer.status_code, answer.json())
        await (await kit.get(Orders)).billed.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        asyncio.run(main())
