"""How a message is written, and what is read out of one."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit import Message, MessageTooLarge
from things_kit.brokers.servicebus import wire
from things_kit.brokers.servicebus.amqp.codec import Described, Encoded, encode, sections
from things_kit.engine.driver import Later, Scheduled

NOW = datetime(2026, 5, 6, 7, 8, 9, 123_000, tzinfo=UTC)


def message(**changes: Any) -> Message:
    return Message("orders", b"value", key=b"k", headers={"a": "ü"}, id="m-1", timestamp=NOW).replace(
        **changes
    )


def payload(*sections: tuple[int, Any]) -> bytes:
    return b"".join(encode(Described(code, value)) for code, value in sections)


def delivered(raw: bytes, count: int = 0) -> wire.Unpacked:
    """As the service hands it out."""
    return wire.unpack("orders", payload((wire.HEADER, [True, None, None, None, count])) + raw)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"key": None},
        {"key": b"\xff\x00"},
        {"key": b""},
        {"value": b""},
        {"id": "x" * 500},
        {"headers": {"content-type": "text/plain", "näme": "1", "a b": "2", "": "3", "x" * 200: "4"}},
    ],
)
@pytest.mark.parametrize("sessions", [False, True])
def test_what_is_written_is_read(changes: dict[str, Any], sessions: bool) -> None:
    sent = message(**changes)
    assert delivered(wire.pack(sent, sessions=sessions)) == (sent, 0, None)


def test_the_services_count_of_deliveries_makes_the_attempt() -> None:
    assert delivered(wire.pack(message(), sessions=False), count=2).message.attempt == 3


def test_a_copy_is_for_one_group_and_carries_attempt_mark_and_time() -> None:
    due = NOW.replace(year=2126)
    later = Later(message(), "billing", due, attempt=3, suspect=2)
    raw = wire.copy(later, sessions=False)
    assert dict(sections(raw))[wire.ANNOTATIONS] == {"x-opt-scheduled-enqueue-time": due}
    assert delivered(raw) == (message(attempt=3), 2, "billing")


def test_a_scheduled_message_is_for_all_groups_and_carries_its_time() -> None:
    due = NOW.replace(year=2126)
    raw = wire.at(Scheduled(message(), due), sessions=False)
    assert dict(sections(raw))[wire.ANNOTATIONS] == {"x-opt-scheduled-enqueue-time": due}
    assert delivered(raw) == (message(), 0, None)


def test_what_was_due_in_the_past_carries_no_time() -> None:
    raw = wire.at(Scheduled(message(), NOW.replace(year=2020)), sessions=False)
    assert raw == wire.pack(message(), sessions=False)


def test_copies_and_messages_differ_in_their_native_id() -> None:
    later = Later(message(), "billing", NOW)
    ids = {dict(sections(wire.copy(later, sessions=False)))[wire.PROPERTIES][0] for _ in range(2)}
    assert len(ids | {"m-1"}) == 3


def test_more_headers_than_the_service_takes_are_too_large() -> None:
    with pytest.raises(MessageTooLarge, match="Service Bus takes 60000"):
        wire.pack(message(headers={f"h{n}": "x" * 1000 for n in range(70)}), sessions=False)


# --- of others

CHAR, DECIMAL = Encoded(b"\x73\x00\x00\x00\x41"), Encoded(b"\x84" + bytes(8))


def test_properties_of_any_type_are_headers_or_left_out() -> None:
    fields = {
        "char": CHAR,
        "decimal": DECIMAL,
        "n": 7,
        "yes": True,
        "uuid": UUID(int=1),
        "time": NOW,
        "bytes": b"\xff",
        "nothing": None,
        "tk-time": "rubbish",
    }
    raw = payload((wire.FIELDS, fields), (wire.DATA, b"x"))
    found = delivered(raw).message
    assert found.value == b"x"
    assert found.headers == {
        "char": "A",
        "n": "7",
        "yes": "true",
        "uuid": str(UUID(int=1)),
        "time": NOW.isoformat(),
        "bytes": "\\xff",
        "nothing": "",
    }


def test_what_the_protocol_knows_of_a_message_becomes_key_id_and_headers() -> None:
    properties = ["id", None, None, "created", "back", 7, "text/plain", None, None, None, "session"]
    annotations = {
        "x-opt-enqueued-time": NOW,
        "x-opt-enqueue-sequence-number": 12,
        "x-opt-partition-key": "p",
    }
    raw = payload((wire.ANNOTATIONS, annotations), (wire.PROPERTIES, properties), (wire.DATA, b"x"))
    found = delivered(raw).message
    assert (found.id, found.key, found.timestamp, found.attempt) == ("id", b"session", NOW, 1)
    assert found.headers == {
        "content-type": "text/plain",
        "subject": "created",
        "correlation-id": "7",
        "reply-to": "back",
    }
    bare = delivered(payload((wire.ANNOTATIONS, annotations), (wire.DATA, b"x"))).message
    assert (bare.id, bare.key) == ("orders-12", b"p")


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ([(wire.DATA, b"a"), (wire.DATA, b"b")], b"ab"),
        ([(wire.VALUE, "text")], b"text"),
        ([(wire.VALUE, None)], b""),
        ([(wire.VALUE, CHAR)], b"A"),
        ([(wire.VALUE, DECIMAL)], b""),
        ([(wire.VALUE, {"a": [1, DECIMAL, True], "b": DECIMAL})], b'{"a": [1, null, true]}'),
        ([(wire.SEQUENCE, [1, "x"])], b'[1, "x"]'),
        ([], b""),
    ],
)
def test_a_body_of_any_kind_is_a_value(body: list[tuple[int, Any]], value: bytes) -> None:
    found = delivered(payload(*body)).message
    assert found.value == value


def test_a_section_that_cannot_be_read_costs_only_itself() -> None:
    broken = b"\x00\x53\x74\xc1\x03\x02\xa1\x09"
    raw = payload((wire.PROPERTIES, ["id"])) + broken + payload((wire.DATA, b"x"))
    found = delivered(raw).message
    assert (found.id, found.value, found.headers) == ("id", b"x", {})


@pytest.mark.parametrize("raw", [b"\x01 this is no AMQP", b"\x00\x53\x74\xa1\x01x", b"\x00" * 5000], ids=repr)
def test_bytes_that_are_no_message_are_the_value(raw: bytes) -> None:
    found = wire.unpack("orders", raw).message
    assert (found.value, found.headers, found.attempt) == (raw, {}, 1)
    assert found.id == wire.unpack("orders", raw).message.id


@given(
    st.binary(max_size=80),
    st.sampled_from([wire.HEADER, wire.ANNOTATIONS, wire.PROPERTIES, wire.FIELDS, wire.VALUE]),
)
def test_whatever_is_in_a_section_there_is_a_message(raw: bytes, section: int) -> None:
    found = wire.unpack("orders", bytes((0, 0x53, section)) + raw).message
    assert found.id
    assert isinstance(found.value, bytes)
