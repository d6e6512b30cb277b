"""Receiving from sessions: each with its order, one beside the other."""

import asyncio
from typing import Any

import pytest

from things_kit import Broker, Message, Retry, RetryPolicy, connect
from things_kit.brokers.servicebus import sessions
from things_kit.brokers.servicebus.amqp.connection import AmqpError
from things_kit.brokers.servicebus.amqp.links import Link
from things_kit.brokers.servicebus.client import Client
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.servicebus import ServiceBusServer

from .common import keyed


async def test_sessions_whose_messages_wait_hold_back_no_others(
    servicebus: ServiceBusServer, topic: str
) -> None:
    async def act(message: Message) -> None:
        if message.value == b"bad":
            raise Retry(after=3600)

    async with connect(f"{servicebus.url}&sessions=true&session_receivers=2") as broker:
        recorder = Recorder(act)
        async with broker.consumer(topic, group="billing", handler=recorder, retry=RetryPolicy()):
            bad = [Message(topic, b"bad", key=b"bad-%d" % n) for n in range(6)]
            await broker.producer().publish_batch(bad)
            await eventually(lambda: len(recorder.began) == 6, 15, "all that fail have begun")
            await broker.producer().publish_batch(keyed(topic, 20, 10))
            await recorder.until_done(20, 15)


async def test_a_session_that_is_lost_costs_no_other_its_place(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in a handler comes again, to whoever has the session next; the others are handled once."""
    keep = Client.ask

    async def renew(self: Client, entity: str, operation: str, link: Link, body: dict[str, Any]) -> None:
        if body["session-id"] == "k0" and not again.is_set():
            again.set()
            raise AmqpError("com.microsoft:session-lock-lost", "the lock has expired")
        await keep(self, entity, operation, link, body)

    again, gate = asyncio.Event(), Gate()
    monkeypatch.setattr(Client, "ask", renew)
    async with connect(f"{servicebus.url}&sessions=true&lease=5") as broker:
        recorder = Recorder(gate)
        async with broker.consumer(topic, group="billing", handler=recorder, concurrency=4, dead_letter=None):
            messages = keyed(topic, 3, 3)
            await broker.producer().publish_batch(messages)
            await eventually(lambda: len(recorder.began) >= 3, 15, "all are in their handlers")
            await eventually(again.is_set, 15, "one is lost")
            gate.open()
            await recorder.until_done(4, 15)
        lost = messages[0].id
        handled = [message.id for message in recorder.done]
        assert handled.count(lost) == 2
        assert len(handled) == 4
        assert await broker.lag(topic, group="billing") == 0


async def test_one_session_may_have_all_that_there_is_room_for(
    servicebus: ServiceBusServer, topic: str
) -> None:
    async with connect(f"{servicebus.url}&sessions=true") as broker:
        recorder = Recorder()
        async with broker.consumer(
            topic, group="billing", handler=recorder, concurrency=8, ordering="none", dead_letter=None
        ):
            await broker.producer().publish_batch(keyed(topic, 400, 1))
            await recorder.until_done(400, 20)


async def test_a_busy_session_leaves_its_place_to_others_after_its_turn(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "TURN", 0.5)
    async with connect(f"{servicebus.url}&sessions=true&session_receivers=1") as broker:
        publishing = True
        recorder = Recorder()

        async def feed(broker: Broker) -> None:
            while publishing:
                await broker.producer().publish_batch(keyed(topic, 5, 1))

        async with broker.consumer(topic, group="billing", handler=recorder, concurrency=2, dead_letter=None):
            feeding = asyncio.create_task(feed(broker))
            await recorder.until_done(20, 15)
            await broker.producer().publish(Message(topic, b"other", key=b"other"))
            await eventually(lambda: b"other" in recorder.values, 20, "the other session has its turn")
            publishing = False
            await feeding


async def test_a_busy_session_is_kept_though_nothing_of_it_is_held_at_the_moment(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are asked for while something is held; between two quick messages nothing is."""
    kept: list[str] = []
    keep = Client.ask

    async def renew(self: Client, entity: str, operation: str, link: Link, body: dict[str, Any]) -> None:
        kept.append(body["session-id"])
        await keep(self, entity, operation, link, body)

    monkeypatch.setattr(Client, "ask", renew)
    async with connect(f"{servicebus.url}&sessions=true&lease=5") as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            producer = broker.producer()

            async def busy() -> bool:
                await producer.publish(Message(topic, b"x", key=b"k"))
                return kept.count("k") >= 2

            await eventually(busy, 30, "it is renewed, and renewed again")
