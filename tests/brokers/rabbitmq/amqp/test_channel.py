"""Questions and answers on channels, as a broker gives them that says what a test has it say."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("pika")

from pika import spec

from things_kit.brokers.rabbitmq.amqp import channel as channel_module
from things_kit.brokers.rabbitmq.amqp.channel import Channel, Closed
from things_kit.brokers.rabbitmq.amqp.connection import HELLO, Connection
from things_kit.brokers.rabbitmq.amqp.frames import content_frames, method_frame
from things_kit.engine.driver import ConnectionLost


class Wire(asyncio.Transport):
    """Keeps what is written, as methods."""

    def __init__(self) -> None:
        super().__init__()
        self.methods: list[tuple[int, Any]] = []
        self.closed: list[str] = []

    def write(self, data: Any) -> None:
        if data != HELLO:
            number = int.from_bytes(data[1:3], "big")
            kind: Any = spec.methods[int.from_bytes(data[7:11], "big")]
            self.methods.append((number, kind().decode(data, 11)))

    def close(self) -> None:
        self.closed.append("close")

    def abort(self) -> None:
        self.closed.append("abort")


class Broker:
    """A connection with its broker's side."""

    def __init__(self) -> None:
        self.connection, self.wire = Connection(), Wire()
        self.connection.connection_made(self.wire)

    def say(self, number: int, *methods: Any) -> None:
        self.connection.data_received(b"".join(method_frame(number, method) for method in methods))

    @property
    def heard(self) -> list[tuple[int, type]]:
        return [(number, type(method)) for number, method in self.wire.methods]

    async def channel(self) -> Channel:
        opening = asyncio.create_task(self.connection.channel())
        await asyncio.sleep(0)
        number, _ = self.wire.methods[-1]
        self.say(number, spec.Channel.OpenOk())
        return await opening


def declared(queue: str) -> Any:
    return spec.Queue.DeclareOk(queue, 0, 0)


async def test_answers_are_those_to_the_questions_in_their_order_though_one_who_asked_has_left() -> None:
    broker = Broker()
    channel = await broker.channel()
    asking = [asyncio.create_task(channel.ask(spec.Queue.Declare(queue=each))) for each in "abc"]
    await asyncio.sleep(0)
    asking[1].cancel()
    broker.say(1, *map(declared, "abc"))
    first, second, third = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(second, asyncio.CancelledError)
    assert [each.queue for each in (first, third) if not isinstance(each, BaseException)] == ["a", "c"]


async def test_a_refusal_is_the_answer_to_all_that_was_asked_and_the_number_is_free() -> None:
    broker = Broker()
    channel = await broker.channel()
    reasons: list[Exception] = []
    channel.on_lost(reasons.append)
    asking = [asyncio.create_task(channel.ask(spec.Queue.Declare(queue=each))) for each in "ab"]
    await asyncio.sleep(0)
    broker.say(1, spec.Channel.Close(404, "NOT_FOUND - no queue 'a'", 50, 10))
    refused = await asyncio.gather(*asking, return_exceptions=True)
    assert {(type(each), getattr(each, "code", 0)) for each in refused} == {(Closed, 404)}
    assert reasons == [channel.error]
    assert broker.heard[-1] == (1, spec.Channel.CloseOk)
    with pytest.raises(Closed):
        await channel.ask(spec.Queue.Declare(queue="a"))
    assert (await broker.channel()).number == 1


async def test_a_channel_without_an_answer_is_given_up_and_its_number_taken_until_the_broker_agrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "ANSWER", 0.01)
    broker = Broker()
    channel = await broker.channel()
    with pytest.raises(ConnectionLost, match=r"no answer to Queue.Declare"):
        await channel.ask(spec.Queue.Declare(queue="a"))
    assert broker.heard[-1] == (1, spec.Channel.Close)
    assert (await broker.channel()).number == 2
    broker.say(1, declared("a"), spec.Channel.CloseOk())
    assert (await broker.channel()).number == 1


async def test_what_comes_for_a_channel_that_we_have_left_is_nobodys() -> None:
    broker, come = Broker(), list[bytes]()
    channel = await broker.channel()
    channel.on_delivery = lambda _, __, body: come.append(body)
    message = [method_frame(1, spec.Basic.Deliver("c", 1, False, "", "q"))]
    message += content_frames(1, spec.BasicProperties(), b"x", 4096)
    broker.connection.data_received(b"".join(message))
    leaving = asyncio.create_task(channel.close())
    await asyncio.sleep(0)
    broker.connection.data_received(b"".join(message))
    broker.say(1, spec.Channel.CloseOk())
    await leaving
    assert come == [b"x"]


async def test_a_connection_that_the_broker_closes_says_why_to_all() -> None:
    broker = Broker()
    channels = [await broker.channel(), await broker.channel()]
    broker.say(0, spec.Connection.Close(320, "CONNECTION_FORCED - node is going down", 0, 0))
    assert broker.heard[-1] == (0, spec.Connection.CloseOk)
    assert broker.wire.closed == ["close"]
    assert {str(channel.error) for channel in channels} == {"CONNECTION_FORCED - node is going down"}
    with pytest.raises(Closed):
        await broker.connection.channel()


async def test_a_broker_that_blocks_publishers_says_why_and_when_it_is_over() -> None:
    broker = Broker()
    broker.say(0, spec.Connection.Blocked("low on memory"))
    assert (broker.connection.blocked, broker.connection.unblocked.is_set()) == ("low on memory", False)
    broker.say(0, spec.Connection.Unblocked())
    assert (broker.connection.blocked, broker.connection.unblocked.is_set()) == (None, True)
