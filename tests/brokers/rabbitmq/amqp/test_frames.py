"""However the frames of messages lie in what is read from the socket, each message arrives whole, once and in order."""

import asyncio
import struct
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pika")

from pika import frame, spec

from things_kit.brokers.rabbitmq.amqp.channel import Channel
from things_kit.brokers.rabbitmq.amqp.connection import Connection
from things_kit.brokers.rabbitmq.amqp.frames import content_frames, method_frame

MOST = 64
"""Bytes of a body's frame: longer bodies have several."""

Came = tuple[int, str | None, bytes]


def frames(channel: int, tag: int, body: bytes) -> list[bytes]:
    """A message as the broker sends it."""
    method = spec.Basic.Deliver("consumer", tag, False, "orders", "key")
    properties = spec.BasicProperties(message_id=f"m-{tag}")
    parts = [body[start : start + MOST] for start in range(0, len(body), MOST)]
    return [
        frame.Method(channel, method).marshal(),
        frame.Header(channel, len(body), properties).marshal(),
        *(frame.Body(channel, part).marshal() for part in parts),
    ]


def note(come: list[Came], method: Any, properties: Any, body: bytes) -> None:
    come.append((method.delivery_tag, properties.message_id, body))


async def read(stream: bytes, choice: Random) -> dict[int, list[Came]]:
    """What two channels get of a stream that is read in pieces of any size."""
    connection, delivered = Connection(), {1: list[Came](), 2: list[Came]()}
    for number, come in delivered.items():
        channel = connection._channels[number] = Channel(connection, number)
        channel.on_delivery = partial(note, come)
    while stream:
        size = choice.randint(1, len(stream))
        connection.data_received(stream[:size])
        stream = stream[size:]
    assert connection.error is None
    return delivered


@given(lengths=st.lists(st.integers(0, 3 * MOST), max_size=12), seed=st.integers(0))
def test_messages_arrive_whole_however_they_are_cut(lengths: list[int], seed: int) -> None:
    """Two channels take turns at any frame, heartbeats come between, and the stream is read in pieces of any size."""
    waiting: dict[int, list[bytes]] = {1: [], 2: []}
    expected: dict[int, list[Came]] = {1: [], 2: []}
    choice = Random(seed)
    for tag, length in enumerate(lengths):
        channel, body = choice.choice([1, 2]), choice.randbytes(length)
        waiting[channel] += frames(channel, tag, body)
        expected[channel].append((tag, f"m-{tag}", body))
    stream = b""
    while any(waiting.values()):
        turn = choice.choice([0, *(channel for channel in waiting if waiting[channel])])
        stream += waiting[turn].pop(0) if turn else frame.Heartbeat().marshal()
    assert asyncio.run(read(stream, choice)) == expected


@pytest.mark.parametrize("size", [0, 1, MOST - 8, MOST - 7, 3 * MOST])
def test_a_message_is_written_as_pika_writes_it_in_frames_that_are_no_larger_than_they_may_be(
    size: int,
) -> None:
    publish = spec.Basic.Publish(exchange="orders", routing_key="k", mandatory=True)
    properties, body, room = spec.BasicProperties(message_id="1", headers={"a": "b"}), b"x" * size, MOST - 8
    assert method_frame(3, publish) == frame.Method(3, publish).marshal()
    header, *parts = content_frames(3, properties, body, MOST)
    assert header == frame.Header(3, size, properties).marshal()
    assert parts == [frame.Body(3, body[n : n + room]).marshal() for n in range(0, size, room)]
    assert all(len(part) <= MOST for part in parts)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"AMQP\x00\x00\x09\x01",
        struct.pack(">BHI", 8, 0, 0) + b"\x00",
        struct.pack(">BHI", 3, 1, 2**31) + b"\xce",
        struct.pack(">BHII", 1, 1, 4, 2**32 - 1) + b"\xce",
    ],
    ids=["another version", "a frame without its end", "a frame of two gigabytes", "an unknown method"],
)
def test_what_cannot_be_read_ends_the_connection(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Any:
        connection = Connection()
        connection._channels[1] = Channel(connection, 1)
        connection.data_received(nonsense)
        return connection.error

    assert asyncio.run(scenario()) is not None
    assert "cannot be read" in caplog.text
