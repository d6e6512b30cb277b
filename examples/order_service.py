"""An order service: typed topics, Avro with a schema registry, bills published before the order is acknowledged.

Takes a broker's URL and a registry's, such as http://localhost:8081; in memory without them.
"""

import asyncio
import sys

import msgspec

from things_kit import MessageRouter, Topic, connect
from things_kit.codecs import Avro, MemoryRegistry, Registry


class OrderPlaced(msgspec.Struct):
    """Somebody wants something."""

    id: str
    amount: int
    currency: str = "EUR"


class OrderCancelled(msgspec.Struct):
    """Somebody does not want it any more."""

    id: str


class Bill(msgspec.Struct):
    """What is to be paid."""

    order: str
    amount: int


async def main(url: str = "memory://", registry_url: str | None = None) -> None:
    registry = MemoryRegistry() if registry_url is None else Registry(registry_url, compatibility="BACKWARD")
    codec = Avro(namespace="shop", registry=registry)
    orders = Topic[OrderPlaced | OrderCancelled](
        "orders",
        {"order.placed": OrderPlaced, "order.cancelled": OrderCancelled},
        by="type",
        key="id",
        codec=codec,
    )
    bills = Topic("bills", Bill, key="order", codec=codec)
    router, done = MessageRouter.of(orders), asyncio.Semaphore(0)

    @router.on(OrderPlaced)
    async def placed(order: OrderPlaced) -> Bill:
        return Bill(order.id, order.amount)

    @router.on(OrderCancelled)
    async def cancelled(order: OrderCancelled) -> None:
        print(f"{order.id} is cancelled")
        done.release()

    async def send(bill: Bill) -> None:
        print(f"bill of {bill.order}: {bill.amount}")
        done.release()

    async with (
        connect(url) as broker,
        broker.consumer(bills, group="post", handler=send),
        broker.consumer(orders, group="billing", handler=router, publish=bills),
    ):
        producer = broker.producer()
        await producer.publish(orders, OrderPlaced("o-1", 20))
        await producer.publish(orders, OrderCancelled("o-2"))
        for _ in range(2):
            await done.acquire()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
