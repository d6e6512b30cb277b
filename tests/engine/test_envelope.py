import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from things_kit import Message
from things_kit.engine.envelope import ID, KEY, PACKED, TIME, Envelope, Packed, is_own, note, size_of, text_of

NOW = datetime(2026, 11, 29, 22, 5, 28, 123456, UTC)

texts = st.text(st.characters(codec="utf-8"))
names = texts.filter(lambda name: not name.startswith("tk-"))
messages = st.builds(
    Message,
    st.just("orders"),
    st.binary(),
    st.none() | st.binary() | texts.map(str.encode),
    st.dictionaries(names, texts),
    timestamp=st.datetimes(timezones=st.just(UTC)),
    id=texts,
)

CARRIES: dict[str, Callable[[str, str], bool]] = {
    "all": lambda _name, _text: True,
    "nothing": lambda _name, _text: False,
    "printable ASCII": lambda name, text: (
        bool(name) and (name + text).isascii() and (name + text).isprintable()
    ),
    "no null": lambda name, text: "\0" not in name + text,
    "short": lambda name, text: len(name) < 5 and 0 < len(text) < 5,
}


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("carries", CARRIES)
@given(message=messages, binary=st.booleans())
def test_what_is_written_is_read_exactly(
    carries: str, most: int | None, message: Message, binary: bool
) -> None:
    envelope = Envelope(CARRIES[carries], most=most, binary=binary)
    fields = envelope.fields(message)
    sent: list[tuple[str, Any]] = [(name, text.encode() if binary else text) for name, text in fields.items()]
    assert envelope.message("orders", message.value, sent)[0] == message


pairs = st.lists(
    st.tuples(
        st.sampled_from([ID, TIME, KEY, PACKED, "a", "b", "ce_specversion", "ce_type", "ä"]),
        st.sampled_from([b"", b"one", b"\xff", None, b"2026-11-29T22:05:28.123456+00:00"]),
    ),
    max_size=5,
)


@given(pairs=pairs, seen=pairs, value=st.none() | st.binary(), key=st.none() | st.binary())
@example([(ID, b"i"), (TIME, b"2026-11-29T22:05:28+00:00"), ("a", b"b")], [("a", b"c")], b"v", b"k")
def test_the_short_way_to_read_what_is_usual_reads_the_same(
    pairs: list[tuple[str, Any]], seen: list[tuple[str, Any]], value: bytes | None, key: bytes | None
) -> None:
    envelope = Envelope(CARRIES["no null"], binary=True, events=("ce_",))
    envelope.message("orders", b"", seen)
    usual = envelope.usual("orders", value, pairs, key, 1, 2)
    read, told = envelope.message("orders", value, pairs, key, 1, 2)  # type: ignore[arg-type] # as drivers do
    assert usual is None or (usual == read and told is None)


def test_the_short_way_reads_what_our_producers_send_once_its_names_are_known() -> None:
    envelope = Envelope(CARRIES["no null"], binary=True)
    sent = Message("orders", b"v", b"k", {"a": "b"}, 1, 2, NOW, "one")
    fields = [(name, text.encode()) for name, text in envelope.fields(sent, key=False).items()]
    assert envelope.usual("orders", b"v", fields, b"k", 1, 2) is None
    envelope.message("orders", b"v", fields)
    assert envelope.usual("orders", b"v", fields, b"k", 1, 2) == sent


@given(message=messages)
def test_an_id_and_a_key_that_the_broker_has_a_place_for_are_in_no_field(message: Message) -> None:
    envelope = Envelope(CARRIES["printable ASCII"])
    fields = envelope.fields(message, identity=False, key=False)
    assert {ID, KEY}.isdisjoint(fields)
    assert "id" not in fields.get(PACKED, "") or "headers" in fields[PACKED]
    read, _ = envelope.message(
        "orders", message.value, list(fields.items()), message.key, identity=message.id, attempt=3
    )
    assert read == message.replace(attempt=3)


@pytest.mark.parametrize("carries", CARRIES)
@given(message=messages)
def test_every_field_is_one_that_the_broker_carries(carries: str, message: Message) -> None:
    fields = Envelope(CARRIES[carries], most=3).fields(message)
    assert all(CARRIES[carries](name, text) for name, text in fields.items() if name not in {TIME, PACKED})
    assert len(fields.keys() - {ID, KEY, TIME, PACKED}) <= 3


@given(message=messages)
@example(message=Message("orders", b"", b"\x7f", {"=?": "ä=?\x7f"}, timestamp=NOW, id="=?\x7f"))
def test_what_is_packed_is_printable_ascii_that_no_client_decodes(message: Message) -> None:
    packed = Envelope(CARRIES["nothing"]).fields(message)[PACKED]
    assert packed.isascii()
    assert packed.isprintable()
    assert "=?" not in packed
    assert json.loads(packed).keys() <= {"id", "key64", "headers"}


def test_a_plain_message_has_plain_fields() -> None:
    message = Message("orders", b"v", b"k", {"a": "b"}, timestamp=NOW, id="one")
    assert Envelope(CARRIES["all"]).fields(message) == {
        "a": "b",
        "tk-id": "one",
        "tk-key": "k",
        "tk-time": "2026-11-29T22:05:28.123456+00:00",
    }


def test_a_quick_look_spares_the_look_at_each_header() -> None:
    looked: list[str] = []

    def carries(name: str, _text: str) -> bool:
        looked.append(name)
        return True

    envelope = Envelope(carries, fits=lambda headers, identity: len(headers) < 3 and identity != "x")
    few, many = {"a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3"}
    assert envelope.fields(Message("orders", b"", headers=few, timestamp=NOW, id="i"))["b"] == "2"
    assert looked == []
    envelope.fields(Message("orders", b"", headers=many, timestamp=NOW, id="i"))
    assert looked == ["a", "b", "c", ID]


@given(
    message=messages,
    attempt=st.integers(1, 10**6),
    due=st.none() | st.floats(0, 1e11),
    group=st.none() | texts,
    suspect=st.integers(0, 10**6),
)
def test_what_is_told_of_a_copy_is_read_with_it(
    message: Message, attempt: int, due: float | None, group: str | None, suspect: int
) -> None:
    envelope = Envelope(CARRIES["no null"])
    fields = envelope.fields(message)
    note(fields, attempt=attempt, due=due, group=group, suspect=suspect)
    read, told = envelope.message("orders", message.value, list(fields.items()), attempt=2)
    assert read == message.replace(attempt=attempt + 1)
    told = told or Packed()
    assert (told.attempt, told.group, told.suspect) == (attempt, group, suspect)
    assert told.due == pytest.approx(due, abs=0.001)


def test_a_first_copy_for_all_has_no_notes() -> None:
    fields: dict[str, str] = {}
    note(fields)
    assert fields == {}


@given(
    message=messages, packed=st.builds(Packed, due=st.none() | st.floats(0, 1e11), suspect=st.integers(0, 9))
)
def test_all_may_be_told_in_one_field(message: Message, packed: Packed) -> None:
    """As for a broker that has room for a few attributes."""
    packed.id, packed.time, packed.headers, packed.key64 = (
        message.id, message.timestamp, dict(message.headers), message.key
    )  # fmt: skip
    bare = Message("orders", message.value)
    read, told = Envelope(CARRIES["all"]).message("orders", message.value, [(PACKED, packed.text())])
    assert read == packed.onto(bare) == message
    assert told == packed


# --- of others

raw = st.none() | st.binary() | texts | st.integers() | st.lists(st.integers()) | st.booleans()
own = st.sampled_from(
    [ID, KEY, TIME, PACKED]
    + [f"tk-{name}" for name in ("attempt", "due", "group", "suspect", "headers", "new", "dead-letter", "")]
)


@given(pairs=st.lists(st.tuples(own | texts | st.binary(), raw)))
def test_whatever_others_wrote_becomes_a_message(pairs: list[tuple[Any, Any]]) -> None:
    read, _ = Envelope(CARRIES["all"], binary=True).message("orders", b"v", pairs, b"k", 1, 2)
    assert (read.topic, read.value, read.partition, read.offset) == ("orders", b"v", 1, 2)
    assert not any(is_own(name) for name in read.headers)
    assert all(isinstance(part, str) for pair in read.headers.items() for part in pair)
    assert read.attempt >= 1
    assert isinstance(read.key, bytes)
    assert read.timestamp is None or read.timestamp.tzinfo is UTC


@given(pairs=st.lists(st.tuples(own | texts, texts)))
def test_whatever_text_others_wrote_becomes_a_message(pairs: list[tuple[str, str]]) -> None:
    read, _ = Envelope(CARRIES["all"]).message("orders", b"v", pairs, b"k")
    headers = {name: text for name, text in pairs if not is_own(name)}
    assert headers.items() <= read.headers.items()
    assert not any(is_own(name) for name in read.headers)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("carries", ["all", "nothing"])
@pytest.mark.parametrize("time", [[], [("tk-time", "yesterday")]], ids=["ours", "of another program"])
def test_of_names_that_are_ours_only_the_mark_of_a_dead_letter_is_shown(
    time: list[tuple[str, str]], carries: str, binary: bool
) -> None:
    envelope = Envelope(CARRIES[carries], binary=binary)
    message = Message("orders", b"v", None, {"a": "b", "tk-dead-letter": ""}, timestamp=NOW, id="i")
    fields = {**envelope.fields(message), "tk-other": "x", **dict(time)}
    pairs = [(name, text.encode() if binary else text) for name, text in fields.items()]
    assert envelope.message("orders", b"v", pairs)[0].headers == {"a": "b", "tk-dead-letter": ""}


def test_without_fields_of_ours_there_is_neither_id_nor_time() -> None:
    read, told = Envelope(CARRIES["all"], binary=True).message(
        "orders", b"v", [("a", b"1"), ("a", b"2")], b"k"
    )
    assert read == Message("orders", b"v", b"k", {"a": "2"})
    assert (read.id, read.timestamp, told) == (None, None, None)


def test_what_says_nothing_that_we_understand_is_left_out_and_the_rest_is_kept() -> None:
    pairs = [
        (ID, b"\xff"), (TIME, b"never"), (PACKED, b"{"), ("tk-attempt", b"-3"), ("tk-due", b"soon"), ("tk-suspect", b"2"),
        ("a", b"\xff"), ("b", None), ("tk-of-tomorrow", b"x"),
    ]  # fmt: skip
    read, told = Envelope(CARRIES["all"], binary=True).message("orders", b"v", pairs)
    assert read == Message("orders", b"v", headers={"a": "\\xff", "b": ""})
    assert told == Packed(suspect=2)


@pytest.mark.parametrize("stamp", ["2026-11-29T22:05:28.123456", "2026-11-29", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_is_none_in_utc_is_left_to_the_broker(stamp: str) -> None:
    assert Envelope(CARRIES["all"]).message("orders", b"v", [(TIME, stamp)])[0].timestamp is None


def test_a_time_of_another_zone_is_the_same_time() -> None:
    stamp = NOW.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
    read, _ = Envelope(CARRIES["all"]).message("orders", b"v", [(TIME, stamp), (ID, "i")])
    assert read.timestamp == NOW
    assert read.timestamp.tzinfo is UTC


def test_an_id_and_a_time_may_come_from_places_of_their_own() -> None:
    read, _ = Envelope(CARRIES["all"]).message(
        "orders", b"v", [("a", "b")], identity="i", moment=NOW.isoformat().encode()
    )
    assert read == Message("orders", b"v", headers={"a": "b"}, timestamp=NOW, id="i")


def test_names_and_times_that_are_kept_are_bounded() -> None:
    envelope = Envelope(CARRIES["all"])
    for number in range(3000):
        stamp = (NOW + timedelta(seconds=number)).isoformat()
        pairs = [(f"name-{number}", "x"), (TIME, stamp)]
        assert envelope.message("orders", b"", pairs)[0].headers == {f"name-{number}": "x"}
    assert len(envelope._known) <= 1000
    assert len(envelope._times) <= 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ä", "ä"), (b"a\xff", "a\\xff"), (None, ""), (True, "true"), (7, "7"), (1.5, "1.5"), (Decimal("1.50"), "1.50"),
        (NOW, "2026-11-29T22:05:28.123456+00:00"), ({"a": [1, None, b"x", {2: NOW}]}, None), ([Decimal(1)], '["1"]'),
    ],
)  # fmt: skip
def test_a_value_of_any_type_is_shown_as_text(value: object, text: str | None) -> None:
    assert text_of(value) == (
        '{"a": [1, null, "x", {"2": "2026-11-29T22:05:28.123456+00:00"}]}' if text is None else text
    )


@given(texts)
def test_the_size_of_a_text_is_that_of_its_bytes(text: str) -> None:
    assert size_of(text) == len(text.encode())
