"""Several kinds of message on one topic, each with a handler of its own, told apart by a header."""

import asyncio
import sys
from dataclasses import dataclass

from things_kit import Message, MessageRouter, connect


@dataclass
class Order:
    id: str


async def main(url: str = "memory://") -> None:
    router = MessageRouter(by="type")
    seen = asyncio.Semaphore(0)

    class PaymentHandler:
        async def handle(self, message: Message) -> None:
            print(f"paid: {message.value.decode()}")
            seen.release()

    router.register("payment.processed", PaymentHandler())

    @router.on("order.created", "order.changed")
    async def order(order: Order, message: Message) -> None:
        print(f"{message.headers['type']}: {order.id}")
        seen.release()

    async with connect(url) as broker, broker.consumer("shop", group="shop", handler=router):
        await broker.producer().publish_batch(
            [
                Message("shop", b'{"id": "o-1"}', headers={"type": "order.created"}),
                Message("shop", b'{"id": "o-1"}', headers={"type": "order.changed"}),
                Message("shop", b"o-1", headers={"type": "payment.processed"}),
            ]
        )
        for _ in range(3):
            await seen.acquire()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
