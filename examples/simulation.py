"""A handler that charges twice, found by simulation, and one that does not: what crashes and redeliveries do to both."""

import asyncio

import msgspec

from things_kit import Message, Topic
from things_kit.engine.broker import Broker
from things_kit.messaging.producer import Producer
from things_kit.testing import SimulationFailed, World, simulate


class Order(msgspec.Struct):
    id: str
    total: int


orders = Topic("orders", Order, key="id")


class Ledger:
    """The database: what is in it outlives every crash."""

    def __init__(self) -> None:
        self.charges: list[str] = []

    def charge(self, order: str) -> None:
        self.charges.append(order)

    def charged(self, order: str) -> bool:
        return order in self.charges


class Billing(World):
    """Charges each order once, or so it is meant."""

    async def setup(self) -> None:
        self.ledger = Ledger()

    def consumers(self, broker: Broker) -> list[object]:
        return [broker.consumer(orders, group="billing", handler=self.bill, concurrency=4)]

    async def bill(self, order: Order) -> None:
        await asyncio.sleep(0.05)  # the bank takes a moment
        self.ledger.charge(order.id)

    async def workload(self, producer: Producer) -> None:
        await producer.publish_batch(orders.messages([Order(f"o-{n}", 5) for n in range(20)]))

    def always(self) -> None:
        assert len(self.ledger.charges) == len(set(self.ledger.charges)), "an order was charged twice"

    def eventually(self) -> None:
        assert self.ledger.charges == self.history.published(orders)


class Careful(Billing):
    """The same, idempotent: it looks first whether the order is charged, and charges in the same step."""

    async def bill(self, order: Order, message: Message) -> None:  # type: ignore[override]
        await asyncio.sleep(0.05)
        if not self.ledger.charged(order.id):
            self.ledger.charge(order.id)


if __name__ == "__main__":
    try:
        simulate(Billing, seeds=200, broker="kafka")
    except SimulationFailed as failed:
        print(failed.report)
    print(simulate(Careful, seeds=200, broker="kafka"))
