"""An app inside a web application: `uvicorn examples.web:web`, or as a program, which asks it once.

FastAPI takes `lifespan=kit.lifespan` in the same way.
"""

import asyncio
import os

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from things_kit import App, Message, Producer, invoke, provide
from things_kit.modules import config, memory

os.environ.setdefault("MEMORY_TOPIC", "orders")
os.environ.setdefault("MEMORY_GROUP_ID", "billing")


class Orders:
    """Handles what the web application publishes."""

    def __init__(self) -> None:
        self.handled = asyncio.Event()

    async def handle(self, message: Message) -> None:
        print(f"billed {message.value.decode()}")
        self.handled.set()


kit = App(config.module, memory.module, provide(Orders), invoke(memory.run_consumer))


async def order(request: Request) -> Response:
    producer = await kit.get(Producer)  # type: ignore[type-abstract]
    await producer.publish(Message("orders", await request.body()))
    return PlainTextResponse("ordered", 202)


web = Starlette(routes=[Route("/orders", order, methods=["POST"])], lifespan=kit.lifespan)


async def main() -> None:
    async with web.router.lifespan_context(web):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
            answer = await client.post("/orders", content=b"o-1")
        print(answer.status_code, answer.text)
        await (await kit.get(Orders)).handled.wait()


if __name__ == "__main__":
    asyncio.run(main())
