"""However the frames of messages lie in what is read from the socket, each message arrives whole, once and in order."""

from collections import defaultdict
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pika")

from pika import frame, spec
from pika.channel import ContentFrameAssembler

from things_kit.brokers.rabbitmq.connection import Connection

MOST = 64
"""Bytes of a body's frame: longer bodies have several."""


class Channel:
    """Notes what was delivered."""

    def __init__(self) -> None:
        self.delivered: list[tuple[int, str | None, bytes]] = []
        self.assembler = ContentFrameAssembler()

    def _on_deliver(self, method: Any, header: Any, body: bytes) -> None:
        self.delivered.append((method.method.delivery_tag, header.properties.message_id, body))


class Reading(Connection):
    """A connection that has no socket, and to which other frames than those of messages come too."""

    def __init__(self) -> None:
        self._frame_buffer = b""
        self._channels = defaultdict(Channel)
        self._channels[1], self._channels[2] = Channel(), Channel()
        self.others: list[Any] = []

    bytes_received = 0
    frames_received = 0

    def _process_frame(self, frame_value: Any) -> None:
        self.frames_received += 1
        if type(frame_value) is frame.Heartbeat:
            self.others.append(frame_value)
            return
        channel = self._channels[frame_value.channel_number]
        if content := channel.assembler.process(frame_value):
            channel._on_deliver(*content)


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


@given(lengths=st.lists(st.integers(0, 3 * MOST), max_size=12), seed=st.integers(0))
def test_messages_arrive_whole_however_they_are_cut(lengths: list[int], seed: int) -> None:
    """Two channels take turns at any frame, heartbeats come between, and the stream is read in pieces of any size."""
    waiting: dict[int, list[bytes]] = {1: [], 2: []}
    expected: dict[int, list[tuple[int, str, bytes]]] = {1: [], 2: []}
    choice = Random(seed)
    for tag, length in enumerate(lengths):
        channel, body = choice.choice([1, 2]), choice.randbytes(length)
        waiting[channel] += frames(channel, tag, body)
        expected[channel].append((tag, f"m-{tag}", body))
    stream, beats, count = b"", 0, 0
    while any(waiting.values()):
        turn = choice.choice([0, *(channel for channel in waiting if waiting[channel])])
        beats += turn == 0
        stream += waiting[turn].pop(0) if turn else frame.Heartbeat().marshal()
        count += 1
    connection, read = Reading(), len(stream)
    while stream:
        size = choice.randint(1, len(stream))
        connection._on_data_available(stream[:size])
        stream = stream[size:]
    for channel, messages in expected.items():
        assert connection._channels[channel].delivered == messages
    assert len(connection.others) == beats
    assert (connection.frames_received, connection.bytes_received) == (count, read)
