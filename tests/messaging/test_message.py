import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from things_kit import Message

WHOLE = Message(
    "t",
    b"v",
    b"k",
    {"a": "b"},
    partition=1,
    offset=2,
    timestamp=datetime(2020, 1, 1, tzinfo=UTC),
    id="i",
    attempt=3,
)


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        WHOLE.value = b"other"  # type: ignore[misc]


def test_replace_gives_a_changed_copy() -> None:
    changed = WHOLE.replace(value=b"other", attempt=9)
    assert (changed.value, changed.attempt) == (b"other", 9)
    assert changed.replace(value=b"v", attempt=3) == WHOLE
    assert WHOLE.value == b"v"


def test_replace_refuses_a_field_that_a_message_has_not() -> None:
    with pytest.raises(TypeError, match="body"):
        WHOLE.replace(body=b"")


def test_messages_with_the_same_fields_are_equal() -> None:
    assert WHOLE.replace() == WHOLE
    others: dict[str, Any] = {
        "topic": "u",
        "value": b"",
        "key": None,
        "headers": {},
        "id": None,
        "attempt": 1,
    }
    for field, other in others.items():
        assert WHOLE.replace(**{field: other}) != WHOLE


def test_headers_are_every_messages_own() -> None:
    first, second = Message("t", b""), Message("t", b"")
    first.headers["x"] = "1"  # type: ignore[index]  # typed as read-only; this is what a careless handler does
    assert second.headers == {}


def test_only_topic_and_value_must_be_given() -> None:
    message = Message("t", b"")
    assert (message.key, dict(message.headers), message.partition, message.offset) == (None, {}, None, None)
    assert (message.timestamp, message.id, message.attempt) == (None, None, 1)


def test_a_message_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(WHOLE)) == WHOLE
