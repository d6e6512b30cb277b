"""Whatever another program has written into the properties and headers of a message, its group gets it and goes on."""

import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pika")

import pika
from pika.spec import BasicProperties

from things_kit import Broker, Message
from things_kit.brokers.rabbitmq.amqp.properties import DEEPEST, read_properties
from things_kit.brokers.rabbitmq.wire import Unpacker
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.servers.rabbitmq import RabbitMQServer

YEAR_50000 = 1_600_000_000_000
"""Milliseconds, where AMQP has seconds."""


def sized(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


def table(**fields: bytes) -> bytes:
    return b"".join(bytes([len(name)]) + name.encode() + field for name, field in fields.items())


def timestamp(seconds: int) -> bytes:
    return b"T" + struct.pack(">Q", seconds)


def nested(depth: int) -> bytes:
    field = b"V"
    for _ in range(depth):
        field = sized(b"A", field)
    return field


class Raw(BasicProperties):
    """Properties with headers that pika would not write."""

    def __init__(self, headers: bytes, **others: Any) -> None:
        super().__init__(headers={}, **others)
        self._raw = headers

    def encode(self) -> list[bytes]:
        flags, size, *rest = super().encode()
        assert size == struct.pack(">I", 0), "the properties before the headers are left out here"
        return [flags, struct.pack(">I", len(self._raw)), self._raw, *rest]


def read(headers: bytes, **others: Any) -> BasicProperties:
    return read_properties(b"".join(Raw(headers, **others).encode()))


# --- reading


FIELDS = {
    "a time outside the calendar": (timestamp(YEAR_50000), YEAR_50000),
    "the last of all times": (timestamp(2**64 - 1), 2**64 - 1),
    "a time": (timestamp(0), datetime(1970, 1, 1, tzinfo=UTC)),
    "an infinite number": (b"d" + struct.pack(">d", math.inf), math.inf),
    "a fraction": (b"d" + struct.pack(">d", 2.5), 2.5),
    "a short fraction": (b"f" + struct.pack(">f", -0.5), -0.5),
    "a decimal": (b"D" + struct.pack(">Bi", 2, -150), Decimal("-1.50")),
    "a decimal of a great scale": (b"D" + struct.pack(">Bi", 255, 1), Decimal("1E-255")),
    "text that is no UTF-8": (sized(b"S", b"\xff"), b"\xff"),
    "bytes": (sized(b"x", b"\x00"), b"\x00"),
    "nothing": (b"V", None),
    "yes": (b"t\x01", True),
    "a byte": (b"b\xff", -1),
    "a byte without sign": (b"B\xff", 255),
    "a short number": (b"s\xff\xff", -1),
    "another short number": (b"U\xff\xff", -1),
    "a short number without sign": (b"u\xff\xff", 65535),
    "a number": (b"I\xff\xff\xff\xff", -1),
    "a number without sign": (b"i\xff\xff\xff\xff", 2**32 - 1),
    "a long number": (b"l" + b"\xff" * 8, -1),
    "another long number": (b"L" + b"\xff" * 8, -1),
    "an array": (sized(b"A", timestamp(YEAR_50000) + b"V"), [YEAR_50000, None]),
    "a table": (sized(b"F", table(at=timestamp(YEAR_50000))), {"at": YEAR_50000}),
}


@pytest.mark.parametrize("what", FIELDS)
def test_a_field_is_read_and_so_is_all_behind_it(what: str) -> None:
    field, expected = FIELDS[what]
    properties = read(table(odd=field, next=sized(b"S", b"fine")), message_id="m-1", timestamp=YEAR_50000)
    assert properties.headers == {"odd": expected, "next": "fine"}
    assert (properties.message_id, properties.timestamp) == ("m-1", YEAR_50000)


def test_a_number_that_is_none_is_read() -> None:
    [value] = (read(table(odd=b"d" + struct.pack(">d", math.nan))).headers or {}).values()
    assert isinstance(value, float)
    assert math.isnan(value)


def test_a_field_of_an_unknown_kind_has_the_rest_of_its_table_as_bytes() -> None:
    inner = table(fine=b"V", odd=b"?123")
    properties = read(table(inner=sized(b"F", inner), next=b"V"), message_id="m-1")
    assert properties.headers == {"inner": {"fine": None, "odd": b"?123"}, "next": None}
    assert properties.message_id == "m-1"


def test_what_lies_too_deep_is_handed_over_as_bytes() -> None:
    properties = read(table(deep=nested(10_000)), message_id="m-1")
    found, depth = (properties.headers or {})["deep"], 0
    while isinstance(found, list):
        [found], depth = found, depth + 1
    assert (depth, type(found)) == (DEEPEST, bytes)
    assert properties.message_id == "m-1"


@given(st.binary(max_size=60), st.integers(0, 2**16 - 1))
def test_nothing_that_could_be_written_raises(content: bytes, flags: int) -> None:
    read_properties(struct.pack(">H", flags) + content)
    properties = read(content, message_id="m-1")
    method = pika.spec.Basic.Deliver("c", 1, False, "orders", "k")
    unpacker = Unpacker("orders", "g.orders", "orders", ((), "/", "g.orders"), "returns")
    delivery = unpacker.unpack(method, properties, b"x")
    assert all(isinstance(text, str) for text in delivery.message.headers.values())


# --- what the handler sees


@pytest.fixture
async def topic(broker: Broker, topic: str) -> str:
    await broker.declare(topic, groups=["g"])
    return topic


@pytest.fixture
def raw(rabbitmq: RabbitMQServer) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()


async def test_a_foreign_table_with_a_time_outside_the_calendar_stops_nobody(
    broker: Broker, topic: str, raw: Any
) -> None:
    headers = table(
        at=timestamp(YEAR_50000),
        inner=sized(b"F", table(at=timestamp(YEAR_50000), list=sized(b"A", timestamp(2**63)))),
        price=b"D" + struct.pack(">Bi", 2, 150),
        rate=b"d" + struct.pack(">d", 0.5),
        deep=nested(DEEPEST + 1),
        next=sized(b"S", b"fine"),
    )
    raw.basic_publish(topic, "k", b"foreign", Raw(headers, message_id="id-1", timestamp=YEAR_50000))
    recorder = Recorder()
    async with broker.consumer(topic, group="g", handler=recorder):
        await broker.producer().publish(Message(topic, b"ours"))
        foreign, ours = await recorder.until_done(2)
    assert (foreign.value, foreign.id, ours.value, ours.attempt) == (b"foreign", "id-1", b"ours", 1)
    assert foreign.timestamp == datetime.fromtimestamp(YEAR_50000 / 1000, UTC)
    assert {name: foreign.headers[name] for name in ("at", "inner", "price", "rate", "next")} == {
        "at": str(YEAR_50000),
        "inner": f'{{"at": {YEAR_50000}, "list": [{2**63}]}}',
        "price": "1.50",
        "rate": "0.5",
        "next": "fine",
    }
