"""Protobuf: generated classes as payloads."""

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue

from things_kit import ConfigError, DecodeError, Message, Topic
from things_kit.codecs import Protobuf
from things_kit.codecs.contract import contract_decoder
from things_kit.codecs.payload import payload_decoder


def decode(topic: Topic[Any], wanted: Any, message: Message) -> Any:
    return contract_decoder(topic, wanted, "the handler h")(message)


def test_a_generated_message_comes_back_equal() -> None:
    topic = Topic("t", Timestamp, key="seconds", codec=Protobuf())
    sent = topic.message(Timestamp(seconds=5, nanos=7))
    assert sent.value == Timestamp(seconds=5, nanos=7).SerializeToString()
    assert (sent.key, sent.headers) == (b"5", {"content-type": "application/protobuf"})
    assert decode(topic, Timestamp, sent) == Timestamp(seconds=5, nanos=7)


def test_plain_values_have_the_names_of_fields() -> None:
    topic = Topic("t", Struct, codec=Protobuf())
    payload = Struct()
    payload.update({"a": 1})
    assert decode(topic, dict, topic.message(payload)) == {"a": 1.0}


def test_several_types_are_told_by_the_header() -> None:
    topic = Topic[Timestamp | StringValue](
        "t", {"time": Timestamp, "text": StringValue}, by="type", codec=Protobuf()
    )
    for payload in (Timestamp(seconds=1), StringValue(value="x")):
        assert decode(topic, Timestamp | StringValue, topic.message(payload)) == payload


def test_a_plain_name_is_decoded_to_a_generated_class() -> None:
    sent = Topic("t", Timestamp, codec=Protobuf()).message(Timestamp(seconds=5))
    assert payload_decoder(Timestamp)(sent) == Timestamp(seconds=5)


@pytest.mark.parametrize("value", [b"\xff", b"\x08", b"\x0a\xff"])
def test_truncated_bytes_are_a_decode_error(value: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(Topic("t", Timestamp, codec=Protobuf()), Timestamp, Message("t", value))


@pytest.mark.parametrize("kind", [dict, int, list[Timestamp]])
def test_what_is_not_generated_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="it is no class that protoc generates"):
        Topic("t", kind, codec=Protobuf())


def test_versions_are_protobuf_s_own() -> None:
    with pytest.raises(ConfigError, match="Protobuf resolves versions itself"):
        Topic("t", Timestamp, codec=Protobuf(), version=1)
