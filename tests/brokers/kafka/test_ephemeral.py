"""Who reads without a group, and loses its receiver: Kafka keeps no place for it."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from things_kit import Broker, Message, connect
from things_kit.engine.driver import ConnectionLost, Pushed, Subscription
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer

PATIENCE = 30.0

kafka = shared(KafkaServer, "kafka")


class Losing:
    """Ends receivers of a broker as a lost connection does, and holds up those that are to take their place."""

    def __init__(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.receivers: list[tuple[Subscription, Pushed]] = []
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.waits = asyncio.Event()
        self._subscribe = broker.transmission.driver.subscribe
        monkeypatch.setattr(broker.transmission.driver, "subscribe", self._held)

    async def _held(self, subscription: Subscription) -> Pushed:
        self.waits.set()
        await self.may_begin.wait()
        receiver = await self._subscribe(subscription)
        assert isinstance(receiver, Pushed)
        self.receivers.append((subscription, receiver))
        return receiver

    async def lose(self) -> None:
        """The one that was made last, until `may_begin` is set."""
        self.may_begin.clear()
        self.waits.clear()
        subscription, _ = self.receivers[-1]
        subscription.inbox.fail(ConnectionLost("cut"))
        await asyncio.wait_for(self.waits.wait(), PATIENCE)


async def publish(broker: Broker, topic: str, values: Sequence[bytes]) -> None:
    await broker.producer().publish_batch([Message(topic, value) for value in values])


async def test_what_came_while_the_connection_was_lost_is_read_and_nothing_before(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if that is lost again before anything has come."""
    topic, seen = f"orders-{uuid4().hex[:10]}", list[bytes]()

    async def handle(message: Message) -> None:
        seen.append(message.value)

    async with connect(f"{kafka.url}?partitions=2") as broker:
        losing = Losing(broker, monkeypatch)
        await publish(broker, topic, [b"before"] * 10)
        async with broker.consumer(topic, group=None, handler=handle):
            await publish(broker, topic, [b"first"] * 10)
            await eventually(lambda: len(seen) == 10, PATIENCE)
            for _ in range(2):
                await losing.lose()
                await publish(broker, topic, [b"meanwhile"] * 10)
                losing.may_begin.set()
                await eventually(lambda: len(losing.receivers) > 1, PATIENCE)
            await eventually(lambda: seen.count(b"meanwhile") >= 20, PATIENCE)
            await publish(broker, topic, [b"last"])
            await eventually(lambda: b"last" in seen, PATIENCE)
        await broker.remove(topic)

    assert set(seen) == {b"first", b"meanwhile", b"last"}


async def test_a_topic_that_was_made_anew_meanwhile_is_read_from_its_first_message(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, seen = f"orders-{uuid4().hex[:10]}", list[bytes]()

    async def handle(message: Message) -> None:
        seen.append(message.value)

    async with connect(f"{kafka.url}?partitions=1") as broker:
        losing = Losing(broker, monkeypatch)
        async with broker.consumer(topic, group=None, handler=handle):
            await publish(broker, topic, [b"old"] * 5)
            await eventually(lambda: len(seen) == 5, PATIENCE)
            await losing.lose()
            await broker.remove(topic)
            await publish(broker, topic, [b"new"] * 2)
            losing.may_begin.set()
            await eventually(lambda: seen.count(b"new") == 2, PATIENCE)
        await broker.remove(topic)


async def test_a_reply_that_came_while_the_inbox_was_lost_is_read(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, asked, may_answer = f"asked-{uuid4().hex[:10]}", asyncio.Event(), asyncio.Event()

    async def answer(message: Message) -> bytes:
        if message.value == b"slowly":
            asked.set()
            await may_answer.wait()
        return message.value

    async with connect(kafka.url) as server, connect(kafka.url) as broker:
        losing = Losing(broker, monkeypatch)
        async with server.consumer(topic, group="billing", handler=answer):
            await broker.request(Message(topic, b"at once"), timeout=PATIENCE)
            asking = asyncio.create_task(broker.request(Message(topic, b"slowly"), timeout=PATIENCE))
            await asyncio.wait_for(asked.wait(), PATIENCE)
            await losing.lose()
            may_answer.set()
            await eventually_acknowledged(server, topic)
            losing.may_begin.set()
            assert (await asking).value == b"slowly"
        await broker.remove(topic)


async def eventually_acknowledged(broker: Broker, topic: str) -> None:
    """A request is acknowledged when its reply is confirmed."""

    async def done() -> bool:
        return await broker.lag(topic, "billing") == 0

    await eventually(done, PATIENCE)
