"""Messages as SNS and SQS have them, and back."""

import json
from datetime import UTC, datetime

import pytest

pytest.importorskip("aiobotocore")

from hypothesis import given
from hypothesis import strategies as st

from tests.brokers.sqs.given import NOW
from things_kit import Message, MessageTooLarge
from things_kit.brokers.sqs import wire
from things_kit.brokers.sqs.options import SQS_BYTES


def there_and_back(message: Message) -> tuple[Message, wire.Parcel]:
    packed = wire.pack(message, SQS_BYTES)
    entry = {
        "MessageId": "sqs-1",
        "Body": packed.body,
        "MessageAttributes": packed.attributes,
        "Attributes": {"SentTimestamp": "1", "MessageGroupId": "somebody"},
    }
    return wire.unpack(message.topic, entry).message, packed


class TestPacking:
    @given(
        st.builds(
            Message,
            topic=st.just("orders"),
            value=st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
            key=st.none() | st.binary(max_size=20),
            headers=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=14),
            timestamp=st.datetimes(timezones=st.just(UTC)),
            id=st.text(min_size=1, max_size=10),
        )
    )
    def test_every_message_comes_back_as_it_was(self, message: Message) -> None:
        back, packed = there_and_back(message)
        assert back == message
        assert len(packed.attributes) <= wire.MOST_ATTRIBUTES
        said = json.dumps(packed.attributes, ensure_ascii=False) + packed.body
        assert not wire._FORBIDDEN.search(said)

    def test_text_and_plain_headers_are_where_others_look_for_them(self) -> None:
        message = Message("orders", b'{"n": 1}', b"k", {"type": "order"}, timestamp=NOW, id="1")
        packed = wire.pack(message, SQS_BYTES)
        assert packed.body == '{"n": 1}'
        assert packed.attributes["type"] == {"DataType": "String", "StringValue": "order"}
        assert json.loads(packed.attributes["tk-message"]["StringValue"])["key"] == "k"

    @pytest.mark.parametrize("name", ["AWS.x", "amazon.y", ".a", "a.", "a..b", "a b", "ü", "x" * 257, ""])
    def test_a_header_that_can_be_no_attribute_is_packed(self, name: str) -> None:
        back, packed = there_and_back(Message("orders", b"x", None, {name: "1"}, timestamp=NOW, id="1"))
        assert list(packed.attributes) == ["tk-message"]
        assert back.headers == {name: "1"}

    def test_what_is_too_large_as_it_is_packed_is_refused(self) -> None:
        message = Message("orders", b"\xff" * 900, timestamp=NOW, id="1")
        with pytest.raises(MessageTooLarge, match="AWS takes 1000"):
            wire.pack(message, 1000)

    def test_a_foreign_message_is_a_normal_one(self) -> None:
        entry = {
            "MessageId": "sqs-1",
            "Body": "hello",
            "MessageAttributes": {
                "type": {"DataType": "String", "StringValue": "greeting"},
                "size": {"DataType": "Number", "StringValue": "5"},
                "raw": {"DataType": "Binary", "BinaryValue": b"\x00\x01"},
            },
            "Attributes": {"SentTimestamp": "1700000000123", "MessageGroupId": "k"},
        }
        message = wire.unpack("orders", entry).message
        assert (message.value, message.key, message.id) == (b"hello", b"k", "sqs-1")
        assert message.headers == {"type": "greeting", "size": "5", "raw": "AAE="}
        assert message.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)

    def test_halves_of_characters_are_no_reason_to_stop(self) -> None:
        entry = {
            "MessageId": "sqs-1",
            "Body": "a\ud800",
            "MessageAttributes": {"type\udc00": {"DataType": "String", "StringValue": "\ud800b"}},
        }
        message = wire.unpack("orders", entry).message
        assert (message.value, message.headers) == (b"a?", {"type?": "?b"})

    @pytest.mark.parametrize(
        "said",
        [
            "",
            "no JSON",
            "[]",
            '{"id": 5}',
            '{"body": "base64"}',
            '{"key64": "%"}',
            '{"time": "0001-01-01T00:00:00+14:00"}',
        ],
    )
    def test_an_attribute_of_our_name_that_says_nothing_is_ignored(self, said: str) -> None:
        entry = {
            "MessageId": "sqs-1",
            "Body": "hel-lo",
            "MessageAttributes": {"tk-message": {"DataType": "String", "StringValue": said}},
        }
        message = wire.unpack("orders", entry).message
        assert (message.value, message.id, message.headers) == (b"hel-lo", "sqs-1", {})
