"""A question over a broker: typed on both sides, with a handler that fails, and one that is not there."""

import asyncio
import sys
from dataclasses import dataclass

from things_kit import Reject, RemoteError, Topic, connect


@dataclass
class Order:
    id: str
    amount: int


@dataclass
class Invoice:
    order: str
    total: int


orders = Topic("orders", Order, key="id", reply=Invoice)
returns = Topic("returns", Order)


async def bill(order: Order) -> Invoice:
    if order.amount < 0:
        raise Reject(f"{order.id} asks for less than nothing")
    return Invoice(order.id, order.amount * 119)


async def main(url: str = "memory://") -> None:
    async with connect(url) as broker, broker.consumer(orders, group="billing", handler=bill):
        invoice = await broker.request(orders, Order("o-1", 10), reply=Invoice, timeout=5)
        print(f"{invoice.order} costs {invoice.total} cents")

        invoices = await asyncio.gather(
            *(
                broker.request(orders, Order(f"o-{number}", number), reply=Invoice, timeout=5)
                for number in range(100)
            )
        )
        print(f"{len(invoices)} at once: {sum(invoice.total for invoice in invoices)} cents")

        try:
            await broker.request(orders, Order("o-2", -1), reply=Invoice, timeout=5)
        except RemoteError as error:
            print(f"refused: {error.error}")

        await broker.declare(returns, groups=["returns"])
        try:
            await broker.request(returns, Order("o-1", 10), timeout=0.2)
        except TimeoutError as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
