"""Messages as Pub/Sub has them, and back."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")


from tests.brokers.pubsub.given import NOW
from things_kit import Message, MessageTooLarge
from things_kit.brokers.pubsub.wire import PUBSUB_MESSAGE, Order, pack, unpack


def through(message: Message, order: Order = "key") -> tuple[Any, Message]:
    """What the service gets, and what comes back."""
    packed = pack(message, order)
    return packed, unpack(message.topic, packed, 0)


def sample(**fields: Any) -> Message:
    return Message(**{"topic": "orders", "value": b"x", "timestamp": NOW, "id": "1", **fields})


def test_a_plain_message_is_native() -> None:
    packed, back = through(sample(key=b"k", headers={"type": "order"}))
    assert (packed.data, packed.ordering_key) == (b"x", "k")
    assert dict(packed.attributes) == {"type": "order", "tk-id": "1", "tk-time": NOW.isoformat()}
    assert back == sample(key=b"k", headers={"type": "order"})


ODD: list[dict[str, Any]] = [
    {"key": b""},
    {"key": b"\xff\x00"},
    {"key": b"k" * 1025},
    {"key": b"tk~topic"},
    {"key": b"tk~x"},
    {"headers": {"": "empty name"}},
    {"headers": {"goog-x": "1", "GOOGLE": "2", "g": "3"}},
    {"headers": {"n" * 300: "long name", "long text": "€" * 2000}},
    {"headers": {f"header-{n}": str(n) for n in range(200)}},
    {"headers": {"n" * 100: "t" * 300}},
    {"id": "ü" * 2000, "key": b"\xff", "headers": {"": "x"}},
    {"id": ""},
    {"value": b""},
]


@pytest.mark.parametrize("order", ["key", "topic", "none"])
@pytest.mark.parametrize("fields", ODD, ids=range(len(ODD)))
def test_what_does_not_fit_is_packed_within_the_services_limits(fields: dict[str, Any], order: Order) -> None:
    packed, back = through(sample(**fields), order)
    assert back == sample(**fields)
    assert packed.data == sample(**fields).value
    assert len(packed.attributes) <= 100
    assert len(packed.ordering_key.encode()) <= 1024
    for name, text in packed.attributes.items():
        assert 0 < len(name.encode()) <= 256
        assert len(text.encode()) <= 1024
        assert not name.lower().startswith("goog")


def test_keys_that_are_packed_still_order() -> None:
    keys = [pack(sample(key=key), "key").ordering_key for key in (b"\xff", b"\xff", b"\xfe", b"")]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert all(keys)


def test_one_order_for_a_topic_is_one_ordering_key() -> None:
    packed = [pack(sample(key=key), "topic") for key in (b"a", b"b", None)]
    assert {each.ordering_key for each in packed} == {"tk~topic"}
    assert {each.attributes.get("tk-key") for each in packed} == {"a", "b", None}


def test_no_order_is_no_ordering_key() -> None:
    packed, back = through(sample(key=b"k"), "none")
    assert (packed.ordering_key, back.key) == ("", b"k")


def test_headers_beyond_what_all_attributes_hold_are_too_large() -> None:
    with pytest.raises(MessageTooLarge, match="headers of a message for 'orders'"):
        pack(sample(headers={"x": "y" * 100_000}), "key")


def test_a_foreign_message_is_a_normal_one() -> None:
    foreign = PUBSUB_MESSAGE(
        data=b"v",
        ordering_key="k",
        message_id="77",
        attributes={"type": "order", "tk-x": "y", "tk-time": "?"},
    )
    foreign.publish_time.FromDatetime(NOW)
    message = unpack("orders", foreign, 3)
    assert message == Message("orders", b"v", b"k", {"type": "order"}, None, None, NOW, "orders-77", 3)


@pytest.mark.parametrize("rubbish", ["{", '{"key": 5}', "null", "[]"])
def test_attributes_of_our_names_that_are_not_ours_are_left_out(rubbish: str) -> None:
    foreign = PUBSUB_MESSAGE(data=b"v", message_id="7", attributes={"tk-packed-0": rubbish, "a": "b"})
    message = unpack("orders", foreign, 0)
    assert (message.headers, message.key, message.id, message.attempt) == ({"a": "b"}, None, "orders-7", 1)


def test_times_of_other_zones_are_in_utc() -> None:
    foreign = PUBSUB_MESSAGE(data=b"v", attributes={"tk-id": "1", "tk-time": "2026-11-23T19:40:07+01:00"})
    when = unpack("orders", foreign, 0).timestamp
    assert when == datetime(2026, 11, 23, 18, 40, 7, tzinfo=UTC)
    assert when is not None
    assert when.utcoffset() == timedelta(0)
