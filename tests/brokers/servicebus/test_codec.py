"""The types of AMQP: what is written is read, and what cannot be read costs nothing around it."""

import contextlib
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit.brokers.servicebus.amqp.codec import (
    Described,
    Encoded,
    MalformedError,
    Symbol,
    decode,
    encode,
    sections,
    skip,
    ubyte,
    uint,
)

moments = st.datetimes(timezones=st.just(UTC)).map(
    lambda when: when.replace(microsecond=when.microsecond // 1000 * 1000)
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.uuids()
    | moments
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner)
)

FOREIGN = {
    "char": b"\x73\x00\x00\x00\x41",
    "char that is none": b"\x73\x00\x00\xd8\x00",
    "decimal32": b"\x74\x22\x50\x00\x01",
    "decimal64": b"\x84" + bytes(8),
    "decimal128": b"\x94" + bytes(16),
    "timestamp outside of the calendar": b"\x83\x7f\xff\xff\xff\xff\xff\xff\xff",
    "type of a later version, fixed": b"\x6f\x00\x00",
    "type of a later version, variable": b"\xaf\x03abc",
    "type of a later version, long": b"\xbf\x00\x00\x00\x03abc",
    "described": b"\x00\xa3\x03foo\x74\x00\x00\x00\x00",
    "array of decimals": b"\xe0\x0a\x02\x74" + bytes(8),
    "array of nulls without end": b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40",
    "text that is not UTF-8": b"\xa1\x02\xff\xfe",
    "map with keys that Python has not": b"\xc1\x0b\x04\x45\x41\x74\x00\x00\x00\x00\xa1\x01a",
}  # fmt: skip


@given(values)
def test_what_is_written_is_read(value: Any) -> None:
    written = encode(value)
    assert decode(written) == (value, len(written))
    assert skip(written, 0) == len(written)


@pytest.mark.parametrize(
    ("value", "read"),
    [(ubyte(7), 7), (uint(70_000), 70_000), (Symbol("amqp:x"), "amqp:x")],
)
def test_numbers_and_words_of_the_protocol_are_read(value: Any, read: Any) -> None:
    assert decode(encode(value))[0] == read


def test_numbers_that_are_not_finite_are_read() -> None:
    assert math.isnan(decode(encode(math.nan))[0])
    assert decode(encode(-math.inf))[0] == -math.inf


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_what_python_has_no_type_for_is_read_past(foreign: bytes) -> None:
    raw = encode({"before": 1, "foreign": Encoded(foreign), "after": datetime(2026, 1, 1, tzinfo=UTC)})
    found, end = decode(raw)
    assert end == len(raw)
    assert (found["before"], found["after"]) == (1, datetime(2026, 1, 1, tzinfo=UTC))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_value_are_refused(raw: bytes) -> None:
    for read in (decode, skip, lambda raw, _: list(sections(raw))):
        with contextlib.suppress(MalformedError):
            read(raw, 0)


def test_a_value_that_is_nested_without_end_is_refused() -> None:
    raw = encode(1)
    for _ in range(5000):
        raw = encode([Encoded(raw)])
    with pytest.raises(MalformedError):
        decode(raw)


def test_a_section_that_cannot_be_read_leaves_the_others() -> None:
    broken = b"\x00\x53\x74\xc1\x03\x02\xa1\x09"  # a map whose first name is longer than itself
    payload = encode(Described(0x73, ["id"])) + broken + encode(Described(0x75, b"x"))
    assert list(sections(payload)) == [(0x73, ["id"]), (0x75, b"x")]
