"""Two ways to get "store it, and tell others" wrong, shown by simulation, and the one that is right: an outbox."""

import asyncio

import msgspec

from things_kit import Message, Topic
from things_kit.engine.broker import Broker
from things_kit.messaging.producer import Producer
from things_kit.testing import Faults, SimulationFailed, World, simulate


class Order(msgspec.Struct):
    id: str
    total: int


orders = Topic("orders", Order, key="id")
placed = Topic("placed", Order, key="id")


class Database:
    """What is in it outlives every crash; what is done in one step is one transaction."""

    def __init__(self, stock: int) -> None:
        self.stock = stock
        self.orders: dict[str, Order] = {}
        self.outbox: list[Message] = []

    def commit(self, order: Order, *events: Message) -> bool:
        """Whether it was stored; not if it is there already, or sold out."""
        if order.id in self.orders or len(self.orders) == self.stock:
            return False
        self.orders[order.id] = order
        self.outbox += events
        return True

    def takes(self, order: Order) -> bool:
        """Whether it could be stored now."""
        return order.id in self.orders or len(self.orders) < self.stock


class Shop(World):
    """Stores each order while there is stock, and publishes that it was placed."""

    async def setup(self) -> None:
        self.database = Database(stock=2)

    def consumers(self, broker: Broker) -> list[object]:
        producer = broker.producer()

        async def place(order: Order) -> None:
            await asyncio.sleep(0.01)
            await self.place(order, producer)

        return [broker.consumer(orders, group="shop", handler=place, concurrency=1)]

    async def place(self, order: Order, producer: Producer) -> None:
        raise NotImplementedError

    async def workload(self, producer: Producer) -> None:
        for number in range(4):
            await producer.publish(orders, Order(f"o-{number}", 5))
            await asyncio.sleep(0.5)

    def eventually(self) -> None:
        announced = self.history.published(placed).keys
        for order in self.database.orders:
            assert order in announced, f"{order} is there, and nobody was told"
        for each in announced:
            assert each in self.database.orders, f"{each} was announced, and is not there"


class AfterCommit(Shop):
    """Whoever dies in between has told nobody; and when the order comes again, it is there already."""

    async def place(self, order: Order, producer: Producer) -> None:
        if self.database.commit(order):
            await producer.publish(placed, order)


class BeforeCommit(Shop):
    """Whoever dies in between has told of an order that is not there; when it comes again, it may be sold out."""

    async def place(self, order: Order, producer: Producer) -> None:
        if self.database.takes(order):
            await producer.publish(placed, order)
            self.database.commit(order)


class WithOutbox(Shop):
    """The event is in the transaction; a relay carries it on until the broker has it. `things_kit.patterns.Outbox` does both."""

    def consumers(self, broker: Broker) -> list[object]:
        return [*super().consumers(broker), Relay(self.database, broker.producer())]

    async def place(self, order: Order, producer: Producer) -> None:
        self.database.commit(order, placed.message(order))

    def at_rest(self) -> bool:
        return not self.database.outbox


class Relay:
    """Publishes what is in the outbox, and takes away what the broker has confirmed."""

    def __init__(self, database: Database, producer: Producer) -> None:
        self.database = database
        self.producer = producer

    async def start(self) -> None:
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while True:
            for event in list(self.database.outbox):
                await self.producer.publish(event)
                if event in self.database.outbox:
                    self.database.outbox.remove(event)
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


if __name__ == "__main__":
    for wrong in (AfterCommit, BeforeCommit):
        try:
            simulate(wrong, seeds=300, broker="redis", faults=Faults.only("crash"))
        except SimulationFailed as failed:
            print(failed.report)
    print(simulate(WithOutbox, seeds=100, broker="redis"))
