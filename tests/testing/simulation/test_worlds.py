"""The engine itself under simulation: what it promises holds in every history that is drawn, on every model."""

import asyncio
import os
from typing import Any, ClassVar

import msgspec
import pytest

from things_kit import Batch, BatchError, Message, Reject, Retry, RetryPolicy, Topic
from things_kit.engine.broker import Broker
from things_kit.testing import Fault, Faults, World, reached, simulate
from things_kit.testing.simulation.models import MODELS
from things_kit.testing.simulation.search import Simulation

SEEDS = int(os.environ.get("SEEDS", "500"))
"""Histories of each world, over all of its brokers; 200,000 were run before a release."""

QUICK = RetryPolicy(attempts=20, first=0.1, limit=2.0)
"""So many attempts that whatever is drawn brings no good message to its dead letter."""


def each_of(brokers: int) -> int:
    """Histories of a world on each of so many brokers."""
    return max(1, SEEDS // brokers)


class Engine(World):
    """Twenty messages of five keys and some without, in four parts; one group."""

    count = 20
    retry = QUICK
    options: ClassVar[dict[str, Any]] = {}
    processes = 2

    def consumers(self, broker: Broker) -> list[Any]:
        return [
            broker.consumer(
                "orders", group="g", handler=self.handle, concurrency=4, retry=self.retry, **self.options
            )
        ]

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.02)

    async def workload(self, producer: Any) -> None:
        size = self.count // 4
        for part in range(4):
            await producer.publish_batch(
                [
                    Message("orders", b"%d" % n, key=b"k%d" % (n % 5) if n % 7 else None)
                    for n in range(part * size, part * size + size)
                ]
            )
            await asyncio.sleep(0.5)

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert not self.history.dead_letters


class InPlace(Engine):
    """Failures are tried again where they are, and keep the order of their key within a process."""

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.02)
        if int(message.value) % 3 == 0 and message.attempt == 1:
            reached("failed")
            raise ConnectionError("not yet")


class Ordered(InPlace):
    """The messages of a key come in their order."""

    def eventually(self) -> None:
        super().eventually()
        self.history.order_by_key()


class Deployed(Ordered):
    """The same where the only process is stopped again and again: what it gives back, it gives back in order."""

    processes = 1
    stops = Faults(stop=Fault(probability=0.3, budget=3), slow_handler=Fault(probability=0.1, budget=3))

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.3)


class PutAside(InPlace):
    """Failures are put aside, and their key goes on."""

    retry = msgspec.structs.replace(QUICK, mode="delayed", first=1.5)

    async def handle(self, message: Message) -> None:
        if int(message.value) % 4 == 0 and message.attempt == 1:
            reached("failed")
            raise Retry(after=3)


class Buried(Engine):
    """What is refused is a dead letter, once or more, and nothing else is."""

    async def handle(self, message: Message) -> None:
        if int(message.value) % 5 == 0:
            reached("failed")
            raise Reject("never")

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert {int(letter.value) for letter in self.history.dead_letters} == {0, 5, 10, 15}


class Replayed(Engine):
    """What was refused is brought back once its cause is mended, by whoever is told to: then all of it is handled."""

    async def setup(self) -> None:
        self.mended = False

    def consumers(self, broker: Broker) -> list[Any]:
        async def bring_back(message: Message) -> None:
            if await broker.replay("orders-dlq"):
                reached("failed")

        return [
            *super().consumers(broker),
            broker.consumer("repairs", group="operator", handler=bring_back, retry=self.retry),
        ]

    async def handle(self, message: Message) -> None:
        if int(message.value) % 4 == 0 and not self.mended:
            raise Reject("not while it is broken")

    async def workload(self, producer: Any) -> None:
        await super().workload(producer)
        self.mended = True
        for number in range(3):
            await asyncio.sleep(70)  # who died while it brought them back has them for as long as a lease
            await producer.publish(Message("repairs", b"%d" % number))

    def eventually(self) -> None:
        self.history.nothing_lost()
        done = set(self.history.handled(group="g").ids)
        lost = [message for message in self.history.published("orders") if message.id not in done]
        assert not lost, f"{lost[0].value!r} was never brought back"


class Batched(Engine):
    """Lists, of which some fail in part."""

    options: ClassVar[dict[str, Any]] = {"batch": Batch(size=4, wait=0.5)}

    async def handle(self, messages: list[Message]) -> None:  # type: ignore[override]
        await asyncio.sleep(0.02)
        failed = {
            n: ConnectionError() for n, m in enumerate(messages) if int(m.value) % 6 == 0 and m.attempt < 2
        }
        if failed:
            reached("failed")
            raise BatchError(failed)


class Forwarding(Engine):
    """What a handler returns is published before its message is acknowledged."""

    bills = Topic("bills", int, key=str)

    def consumers(self, broker: Broker) -> list[Any]:
        async def bill(message: Message) -> int:
            return int(message.value)

        async def paid(message: Message) -> None:
            reached("failed")

        return [
            broker.consumer("orders", group="g", handler=bill, publish=self.bills, retry=self.retry),
            broker.consumer("bills", group="paying", handler=paid, retry=self.retry),
        ]

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert {int(message.value) for message in self.history.published("bills")} == set(range(20))


class Asking(Engine):
    """A handler asks another group, which may be slow, crash or answer twice; no answer goes to another request."""

    count = 8

    async def setup(self) -> None:
        self.answered: set[int] = set()
        self.wrong: list[tuple[int, int]] = []

    def consumers(self, broker: Broker) -> list[Any]:
        async def price(message: Message) -> int:
            await asyncio.sleep(0.02)
            return 2 * int(message.value)

        async def order(message: Message) -> None:
            number = int(message.value)
            answer = await broker.request(Message("prices", message.value), reply=int, timeout=10)
            if answer != 2 * number:
                self.wrong.append((number, answer))
            self.answered.add(number)
            reached("failed")

        common: dict[str, Any] = {"concurrency": 4, "retry": self.retry}
        return [
            broker.consumer("prices", group="pricing", handler=price, **common),
            broker.consumer("orders", group="g", handler=order, **common),
        ]

    def always(self) -> None:
        assert self.wrong == []

    def eventually(self) -> None:
        assert self.answered == set(range(self.count))


WORLDS = (InPlace, PutAside, Buried, Replayed, Batched, Forwarding, Asking)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("broker", MODELS)
def test_the_engine_keeps_its_promises(broker: str, world: type[World]) -> None:
    simulate(world, seeds=each_of(len(MODELS)), broker=broker, sometimes=["failed"])


ORDERED = [name for name in MODELS if name != "sqs"]
"""A standard queue of SQS has no order."""


@pytest.mark.parametrize("broker", ORDERED)
def test_one_process_keeps_the_order_of_each_key(broker: str) -> None:
    faults = Faults.only("slow_handler", "clock_skew")
    simulate(Ordered, seeds=each_of(len(ORDERED)), broker=broker, processes=1, faults=faults)


@pytest.mark.parametrize("broker", ORDERED)
def test_the_order_of_each_key_outlives_stops(broker: str) -> None:
    simulate(Deployed, seeds=each_of(len(ORDERED)), broker=broker, processes=1, faults=Deployed.stops)


@pytest.mark.parametrize("broker", ["sqlite", "postgres"])
def test_where_keys_are_lanes_their_order_outlives_everything(broker: str) -> None:
    simulate(Ordered, seeds=each_of(2), broker=broker, processes=3)


def test_dead_letters_that_a_killed_process_had_in_hand_are_brought_back_by_the_next() -> None:
    faults = Faults.all().for_broker("pubsub", frozenset({"rebalance"}))
    Simulation(Replayed, "pubsub", 2, faults).search([1163], 1, ())
