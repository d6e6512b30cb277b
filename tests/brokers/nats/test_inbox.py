"""Replies come to an inbox that the server pushes: none is lost, none is acknowledged, nothing is left."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("nats")

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js import JetStreamContext

from things_kit import Message, connect
from things_kit.brokers.nats import connection, inbox
from things_kit.brokers.nats.driver import NATSDriver
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import ConnectionLost, Delivery, Subscription
from things_kit.engine.naming import REPLIES
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.relay import Relay

nats_server = shared(NATSServer, "nats")


@pytest.fixture
async def driver(nats_server: NATSServer) -> AsyncIterator[NATSDriver]:
    driver = NATSDriver.from_url(BrokerURL.parse(nats_server.url))
    await driver.open()
    yield driver
    await driver.close()


@pytest.fixture
async def replies(driver: NATSDriver) -> AsyncIterator[str]:
    """The name of an inbox."""
    name = f"{REPLIES}{int(time.time()) + 600:x}-{uuid4().hex[:16]}"
    await driver.declare(name, [])
    yield name
    await driver.remove(name)


async def reading(driver: NATSDriver, replies: str) -> Collecting:
    return await collect(driver, Subscription(topic=replies, group="replies", ephemeral=True))


async def send(driver: NATSDriver, replies: str, *values: bytes) -> None:
    messages = [Message(replies, value, id=uuid4().hex) for value in values]
    assert not any(await driver.send(messages))


async def take(receiver: Collecting, count: int) -> list[Delivery]:
    found: list[Delivery] = []

    async def all_came() -> bool:
        found.extend(await receiver.receive(count - len(found), 0.1))
        return len(found) >= count

    await eventually(all_came, 20, f"{count} come")
    return found


def values(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.message.value for delivery in deliveries]


async def test_replies_are_read_on_where_a_lost_connection_ended(
    nats_server: NATSServer, driver: NATSDriver, replies: str
) -> None:
    """What was handled does not come again, what was not does, and so does what came meanwhile."""
    async with Relay(nats_server.ports[0]) as relay:
        url = nats_server.url.replace(f":{nats_server.ports[0]}", f":{relay.port}")
        far = NATSDriver.from_url(BrokerURL.parse(url))
        await far.open()
        first = await reading(far, replies)
        await send(driver, replies, b"1", b"2", b"3")
        taken = await take(first, 3)
        await first.settle(taken[:2], [])
        waiting = asyncio.create_task(first.receive(1, 30.0))
        await asyncio.sleep(0)  # it has begun
        await relay.cut()
        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost):
            await first.close()
        await send(driver, replies, b"4")
        second = await reading(far, replies)
        assert values(await take(second, 2)) == [b"3", b"4"]
        await second.close()
        await far.close()


async def test_more_than_the_server_sends_unasked_arrives(driver: NATSDriver, replies: str) -> None:
    """It stops in between, and asks whether we have read it."""
    receiver = await reading(driver, replies)
    sent = [b"%d" % n + b"x" * 20_000 for n in range(400)]
    await send(driver, replies, *sent)
    assert values(await take(receiver, 400)) == sent
    await receiver.close()


async def test_nothing_is_left_of_a_reader(
    driver: NATSDriver, replies: str, stream: JetStreamContext
) -> None:
    receiver = await reading(driver, replies)
    assert len(await stream.consumers_info(replies)) == 1
    await receiver.close()
    assert await stream.consumers_info(replies) == []


async def test_an_inbox_that_was_deleted_is_noticed(
    driver: NATSDriver, replies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = await reading(driver, replies)
    await driver.remove(replies)
    monkeypatch.setattr(inbox, "SILENCE", 0.1)
    with pytest.raises(ConnectionLost, match="is gone"):
        await receiver.receive(1, 10.0)


@pytest.mark.parametrize("tail", [False, True], ids=["in between", "at the end"])
async def test_a_reply_that_was_lost_on_its_way_is_noticed(
    driver: NATSDriver, replies: str, stream: JetStreamContext, tail: bool
) -> None:
    receiver = await reading(driver, replies)
    await send(driver, replies, b"1")
    await take(receiver, 1)
    driven: Any = receiver.receiver
    if tail:
        said = {"Status": "100", inbox.LAST: "2"}
        await driven._accept(SimpleNamespace(reply="", data=b"", headers=said))
    else:
        reply = "$JS.ACK.stream.consumer.1.3.3.1700000000000000000.0"
        await driven._accept(SimpleNamespace(reply=reply, data=b"3", headers=None))
    with pytest.raises(ConnectionLost, match="lost on its way"):
        await receiver.receive(1, 10.0)
    await receiver.close()
    assert await stream.consumers_info(replies) == [], "the connection lives on, and so would what is left"


async def test_who_is_opened_anew_reads_on_where_it_was(driver: NATSDriver, replies: str) -> None:
    """The connection is well, as when the engine takes a receiver for stuck."""
    first = await reading(driver, replies)
    await send(driver, replies, b"1", b"2")
    await first.settle(await take(first, 2), [])
    await first.close()
    await send(driver, replies, b"3")
    second = await reading(driver, replies)
    assert values(await take(second, 1)) == [b"3"]
    await second.close()


async def test_a_thousand_requests_at_once_are_answered_each(nats_server: NATSServer) -> None:
    async def answer(message: Message) -> bytes:
        return message.value

    topic = f"asked-{uuid4().hex[:10]}"
    async with (
        connect(nats_server.url) as broker,
        broker.consumer(topic, group="servers", handler=answer, concurrency=8),
    ):
        asked = [broker.request(Message(topic, b"%d" % n), timeout=30) for n in range(1000)]
        replies = await asyncio.gather(*asked)
        assert [reply.value for reply in replies] == [b"%d" % n for n in range(1000)]
        await broker.remove(topic)


lines = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.builds(lambda name, value: name + b":" + value, st.binary(max_size=8), st.binary(max_size=8)),
        st.sampled_from([b"a: b", b"a:\tb ", b" a : b", b"a b: c", b"\x1c: x", b": x", b"\xc3\xbc: x", b"no colon", b""]),
    )
)  # fmt: skip


@given(lines=lines)
def test_headers_are_read_as_the_client_reads_them(lines: list[bytes]) -> None:
    block = b"\r\n".join(lines)
    for _ in range(2):  # the second time all names are known
        assert connection._Client._parse_header_lines(block) == Client._parse_header_lines(block)
