"""A suspect is handled as a marked copy in a queue of its receiver's own, by which a death is told from a wait."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

pytest.importorskip("pika")

from things_kit import Broker, Message, PublishError
from things_kit.brokers.rabbitmq.driver import RabbitMQDriver
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import ConnectionLost, Delivery, Later, Release, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.messaging.policy import Ordering
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.relay import Relay


class Process:
    """A receiver at an address of its own, so that nothing is known of what others have given back."""

    def __init__(self, receiver: Collecting, relay: Relay) -> None:
        self.receiver = receiver
        self._relay = relay

    async def take(self) -> Delivery:
        """The one message that there is."""
        found: list[Delivery] = []

        async def has_come() -> bool:
            found.extend(await self.receiver.receive(1, 0.1))
            return bool(found)

        await eventually(has_come, 20, "it comes")
        return found[0]

    async def begin(self) -> Delivery:
        """It is about to be handled alone, as the engine does it."""
        delivery = await self.take()
        await self.mark(delivery)
        return delivery

    async def mark(self, delivery: Delivery) -> None:
        delivery.suspect = delivery.message.attempt
        receiver: Any = self.receiver.receiver
        await receiver.mark(delivery, delivery.suspect)

    async def die(self) -> None:
        await self._relay.cut()


@contextlib.asynccontextmanager
async def process(server: RabbitMQServer, topic: str) -> AsyncIterator[Process]:
    async with Relay(server.ports[0]) as relay:
        url = server.url.replace(f":{server.ports[0]}", f":{relay.port}")
        driver = RabbitMQDriver.from_url(BrokerURL.parse(url))
        await driver.open()
        receiver = await collect(driver, Subscription(topic=topic, group="g"))
        yield Process(receiver, relay)
        await receiver.close()
        await driver.close()


@pytest.fixture
async def suspect(broker: Broker, topic: str) -> str:
    """A topic with a message."""
    await broker.declare(topic, ["g"])
    await broker.producer().publish(Message(topic, b"x", key=b"k", headers={"a": "b"}, id="1"))
    return topic


async def test_who_is_lost_twice_while_it_is_handled_alone_is_convicted(
    rabbitmq: RabbitMQServer, suspect: str
) -> None:
    for attempt in (1, 2):
        async with process(rabbitmq, suspect) as dying:
            delivery = await dying.begin()
            assert (delivery.message.attempt, delivery.message.headers) == (attempt, {"a": "b"})
            await dying.die()
    async with process(rabbitmq, suspect) as last:
        delivery = await last.take()
        assert (delivery.message.attempt, delivery.suspect) == (3, 2)
        assert (delivery.message.value, delivery.message.key) == (b"x", b"k")
        await last.receiver.settle([delivery], [])


async def test_who_is_lost_while_it_waits_is_counted_and_not_convicted(
    rabbitmq: RabbitMQServer, suspect: str
) -> None:
    async with process(rabbitmq, suspect) as dying:
        await dying.begin()
        await dying.die()
    for _ in range(4):
        async with process(rabbitmq, suspect) as dying:
            await dying.take()
            await dying.die()
    async with process(rabbitmq, suspect) as last:
        delivery = await last.take()
        assert (delivery.message.attempt, delivery.suspect) == (6, 0)
        await last.receiver.settle([delivery], [])


async def test_a_marked_message_is_there_once_and_settled_once(
    broker: Broker, rabbitmq: RabbitMQServer, suspect: str
) -> None:
    async with process(rabbitmq, suspect) as handling:
        delivery = await handling.begin()
        assert delivery.token.renewed
        await handling.mark(delivery)  # again, as after a failure
        await handling.receiver.settle([delivery], [])
    assert await broker.lag(suspect, "g") == 0


async def test_a_stop_gives_it_back_without_its_mark(rabbitmq: RabbitMQServer, suspect: str) -> None:
    for _ in range(3):
        async with process(rabbitmq, suspect) as stopping:
            delivery = await stopping.begin()
            await stopping.receiver.receiver.quiesce()
            await stopping.receiver.settle([], [Release(delivery, attempt=delivery.message.attempt)])
    async with process(rabbitmq, suspect) as last:
        delivery = await last.take()
        assert (delivery.message.attempt, delivery.suspect) == (1, 0)
        await last.receiver.settle([delivery], [])


class RefusingDriver(RabbitMQDriver):
    """Its broker takes no copies, as where a queue is full."""

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        return [PublishError("a queue of it is full")] * len(copies)


@pytest.mark.parametrize("leaving", [False, True], ids=["working", "leaving"])
@pytest.mark.parametrize("ordering", ["key", "none"])
async def test_a_copy_that_cannot_be_given_back_as_another_is_not_lost(
    rabbitmq: RabbitMQServer, suspect: str, leaving: bool, ordering: Ordering
) -> None:
    """Its own queue would hand it to its receiver again, which took it for settled."""
    driver = RefusingDriver.from_url(BrokerURL.parse(rabbitmq.url))
    await driver.open()
    receiver = await collect(driver, Subscription(topic=suspect, group="g", ordering=ordering))
    handling: Any = receiver.receiver
    delivery = (await receiver.receive(1, 20.0))[0]
    delivery.suspect = delivery.message.attempt
    await handling.mark(delivery, delivery.suspect)
    if leaving:
        await handling.quiesce()
    with contextlib.suppress(ConnectionLost):
        await receiver.settle([], [Release(delivery, attempt=delivery.message.attempt)])
    await handling.agree()
    await receiver.close()
    await driver.close()
    async with process(rabbitmq, suspect) as last:
        again = await last.take()
        assert again.message.id == "1"
        await last.receiver.settle([again], [])
