"""Three versions of a message live at once: old producers go on, and the consumer of today reads all of them."""

import asyncio
import sys
from typing import Any

import msgspec

from things_kit import Topic, connect


class OrderV1(msgspec.Struct):
    id: str
    name: str


class OrderV2(msgspec.Struct):
    id: str
    name: str
    currency: str


class Order(msgspec.Struct):
    id: str
    first_name: str
    last_name: str
    currency: str


def add_currency(old: dict[str, Any]) -> dict[str, Any]:
    return {**old, "currency": "EUR"}


def split_name(old: dict[str, Any]) -> dict[str, Any]:
    first, _, last = old["name"].partition(" ")
    return {"id": old["id"], "first_name": first, "last_name": last, "currency": old["currency"]}


# What three deployments of the shop publish by; the first of them knew nothing of versions
first = Topic("orders", OrderV1, key="id")
second = Topic("orders", OrderV2, key="id", version=2, upcast={1: add_currency})
third = Topic("orders", Order, key="id", version=3, upcast={1: add_currency, 2: split_name})


async def main(url: str = "memory://") -> None:
    seen = asyncio.Semaphore(0)

    async def bill(order: Order) -> None:
        print(f"{order.id}: {order.first_name} {order.last_name} pays in {order.currency}")
        seen.release()

    async with connect(url) as broker, broker.consumer(third, group="billing", handler=bill):
        producer = broker.producer()
        await producer.publish(first, OrderV1("o-1", "Ada Lovelace"))
        await producer.publish(second, OrderV2("o-2", "Grace Hopper", "USD"))
        await producer.publish(third, Order("o-3", "Alan", "Turing", "GBP"))
        for _ in range(3):
            await seen.acquire()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
