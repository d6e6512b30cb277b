import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from things_kit import Message, MessageTooLarge, PublishError
from things_kit.engine.outbound import FEW, SMALL, chunks, prepare
from things_kit.messaging.schedule import due_at

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def refused(message: Any, max_bytes: int | None = None) -> Exception:
    ready, errors = prepare([message], max_bytes)
    assert ready == []
    return errors[0]


def prepared(message: Message) -> Message:
    (ready,), errors = prepare([message], None)
    assert errors == {}
    return ready


def test_a_message_gets_an_id_and_a_time() -> None:
    message = prepared(Message("t", b"v", b"k", {"a": "b"}))
    assert message.id
    assert message.timestamp is not None
    assert abs(datetime.now(UTC) - message.timestamp) < timedelta(minutes=1)
    assert (message.topic, message.value, message.key, message.headers) == ("t", b"v", b"k", {"a": "b"})


def test_ids_differ_within_a_batch_and_between_batches() -> None:
    batches = [prepare([Message("t", b"")] * 100, None)[0] for _ in range(10)]
    assert len({message.id for batch in batches for message in batch}) == 1000


def test_what_is_given_is_kept() -> None:
    message = Message("t", b"", id="mine", timestamp=WHEN)
    assert prepared(message) == message
    assert prepared(message.replace(id="")).id == ""


def test_a_time_of_another_zone_becomes_the_same_in_utc() -> None:
    there = datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    time = prepared(Message("t", b"", timestamp=there)).timestamp
    assert time == there
    assert time is not None
    assert time.tzinfo is UTC


@pytest.mark.parametrize("time", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_times_far_in_the_past_and_future_are_kept(time: datetime) -> None:
    assert prepared(Message("t", b"", timestamp=time)).timestamp == time


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Message("t", b"", timestamp=datetime(2024, 1, 1)), "must be aware"),
        (
            Message("t", b"", timestamp=datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
            "is no time in UTC",
        ),
        (
            Message("t", b"", timestamp=datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))),
            "is no time in UTC",
        ),
        (Message("t", b"", timestamp=1700000000.0), "timestamp"),  # type: ignore[arg-type]
        (Message("t", b"", timestamp="2024-01-01"), "timestamp"),  # type: ignore[arg-type]
        (Message("t", "text"), "the value of a message must be bytes; it is str"),  # type: ignore[arg-type]
        (Message("t", bytearray()), "the value of a message must be bytes; it is bytearray"),  # type: ignore[arg-type]
        (Message("t", None), "the value of a message must be bytes; it is NoneType"),  # type: ignore[arg-type]
        (Message("t", b"", "key"), "the key of a message must be bytes or None; it is str"),  # type: ignore[arg-type]
        (Message("", b""), "the topic of a message must be a name; it is ''"),
        (Message(None, b""), "the topic of a message must be a name; it is None"),  # type: ignore[arg-type]
        (Message("\ud800", b""), "not text that UTF-8 can carry"),
        (Message("t", b"", id=5), "the id of a message must be a string; it is int"),  # type: ignore[arg-type]
        (Message("t", b"", id="\ud800"), "the id of a message is not text that UTF-8 can carry"),
        (Message("t", b"", headers={"a": 5}), "the header 'a' must be a string; it is int"),  # type: ignore[dict-item]
        (Message("t", b"", headers={5: "a"}), "the name of a header must be a string; it is int"),  # type: ignore[dict-item]
        (Message("t", b"", headers={"a": "\udfff"}), "the header 'a' is not text that UTF-8 can carry"),
        (Message("t", b"", headers={"\udfff": "a"}), "the name of a header is not text that UTF-8 can carry"),
        (Message("t", b"", headers={"tk-id": "a"}), "begins with 'tk-', which belongs to the drivers"),
        (Message("t", b"", headers=[("a", "b")]), "headers"),  # type: ignore[arg-type]
        (Message("t", b"", headers=None), "headers"),  # type: ignore[arg-type]
        ({"topic": "t"}, "publish takes a Message, not dict"),
        (None, "publish takes a Message, not NoneType"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", repr(value))[:60],
)
def test_what_must_not_be_sent_is_refused_with_a_sentence(message: Any, sentence: str) -> None:
    error = refused(message)
    assert isinstance(error, PublishError)
    assert sentence in str(error)


def test_one_that_is_refused_does_not_keep_the_others() -> None:
    good, bad = Message("t", b"", id="good", timestamp=WHEN), Message("t", b"", headers={"tk-x": ""})
    ready, errors = prepare([bad, good, bad, good], None)
    assert ready == [good, good]
    assert sorted(errors) == [0, 2]


def test_a_name_of_a_header_that_is_fine_says_nothing_of_its_text_in_another_message() -> None:
    texts: list[Any] = ["b", "ü", "\udfff", 5, "b"]
    messages = [Message("t", b"", headers={"a": text}) for text in texts]
    _, errors = prepare(messages, 2)
    assert {index: type(error) for index, error in errors.items()} == {
        1: MessageTooLarge,
        2: PublishError,
        3: PublishError,
    }


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (Message("t", b"12345"), 5),
        (Message("t", b"123", b"45"), 5),
        (Message("t", b"1", b"2", {"a": "ü"}), 5),
        (Message("t", b"", headers={"ü": "ü", "": "x"}), 5),
    ],
)
def test_value_key_and_headers_count_by_their_bytes(message: Message, size: int) -> None:
    assert prepare([message], size)[1] == {}
    error = refused(message, size - 1)
    assert isinstance(error, MessageTooLarge)
    assert str(error) == f"a message for 't' has {size} bytes; this broker takes {size - 1}"


class OtherTime(datetime):
    """As libraries for times have their own, which stays one in every zone, and whose text is another."""

    def isoformat(self, sep: str = " ", timespec: str = "auto") -> str:
        return "about noon"


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2))], ids=str)
def test_a_time_of_a_derived_class_is_the_moment_that_it_means(zone: tzinfo) -> None:
    time = OtherTime.fromtimestamp(WHEN.timestamp(), zone)
    for plain in (prepared(Message("t", b"", timestamp=time)).timestamp, due_at(0.0, None, time)):
        assert type(plain) is datetime
        assert plain.isoformat() == WHEN.isoformat()


class Nowhere(tzinfo):
    """Says of no time what it is elsewhere."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


class Broken(tzinfo):
    """Fails at all that it is asked."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        raise LookupError("no such zone")

    dst = utcoffset

    def tzname(self, _: datetime | None) -> str:
        return "broken"


class Text(str):
    """Text of a derived class."""


class Torn(Mapping[str, str]):
    """Headers that cannot be read."""

    def __getitem__(self, name: str) -> str:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            Message("t", b"", timestamp=datetime(2024, 1, 1, tzinfo=Nowhere())),
            "the timestamp of a message must be aware",
        ),
        (
            Message("t", b"", timestamp=datetime(2024, 1, 1, tzinfo=Broken())),
            "a message could not be read: LookupError: no such",
        ),
        (Message("t", b"", headers=Torn()), "a message could not be read: KeyError: 'a'"),
        (Message(Text("t"), b"", headers=Torn()), "a message could not be read: KeyError: 'a'"),
        (Message(Text("t"), b"", headers={"a": 1}), "the header 'a' must be a string; it is int"),  # type: ignore[dict-item]
    ],
    ids=["no zone", "a broken zone", "torn headers", "and a topic of another class", "a number"],
)
def test_what_cannot_be_read_fails_alone(message: Message, said: str) -> None:
    """Calls that come together are sent together: one of them must not be the end of all."""
    ready, errors = prepare([message, Message("t", b"other")], None)
    assert [each.value for each in ready] == [b"other"]
    assert isinstance(errors[0], PublishError)
    assert str(errors[0]).startswith(said)


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([1] * 25, 10, [10, 10, 5]),
        ([1] * (2 * FEW + 1), 2 * FEW, [2 * FEW, 1]),
        ([SMALL // FEW * 2] * (2 * FEW), 2 * FEW, [FEW, FEW]),
        ([400] * (3 * FEW), 3 * FEW, [SMALL // 400, 3 * FEW - SMALL // 400]),
        ([SMALL] * (FEW + 1), FEW, [FEW, 1]),
    ],
    ids=["few at once", "many small ones", "many larger ones", "as many as are small", "few, however large"],
)
def test_what_is_sent_at_once_is_many_only_where_it_is_small(
    sizes: list[int], most: int, expected: list[int]
) -> None:
    value = bytes(sizes[0])
    parts = list(chunks([Message("t", value)] * len(sizes), most))
    assert [end - start for start, end in parts] == expected
    assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]


def test_many_are_not_small_for_their_headers() -> None:
    message = Message("t", b"", headers={"h": "x" * 1000})
    parts = list(chunks([message] * (3 * FEW), 3 * FEW))
    assert [end - start for start, end in parts] == [FEW] * 3
