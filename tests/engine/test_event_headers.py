"""The attributes of CloudEvents: spelled as a protocol's binding does on the wire, `ce-` for handlers."""

from typing import Any

import pytest
from cloudevents.core.bindings import amqp, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from things_kit import Message
from things_kit.engine.envelope import Envelope

ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
EVENT = Message("t", b'{"id": "a"}', headers={"content-type": "application/json", **{f"ce-{n}": v for n, v in ATTRIBUTES.items()}})  # fmt: skip


def envelope(*events: str) -> Envelope:
    return Envelope(lambda name, text: True, events=events)


@pytest.mark.parametrize("prefix", ["ce_", "cloudEvents_"])
def test_an_event_is_spelled_as_its_binding_does_and_comes_back(prefix: str) -> None:
    wire = envelope(prefix)
    fields = wire.fields(EVENT)
    assert {name: fields[prefix + name] for name in ATTRIBUTES} == ATTRIBUTES
    assert not [name for name in fields if name.startswith("ce-")]
    for _ in range(2):
        back, _ = wire.message("t", EVENT.value, fields.items())
        assert back.headers == EVENT.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"ce_x": "1"},
        {"ce-x": "1"},
        {"ce-specversion": "1.0", "ce_x": "mine"},
        {"ce-specversion": "1.0", "ce_specversion": "mine"},
        {"cloudEvents_x": "1", "ce-x": "2"},
    ],
    ids=str,
)
def test_other_headers_arrive_as_they_are(headers: dict[str, str]) -> None:
    wire = envelope("ce_")
    fields = wire.fields(Message("t", b"", headers=headers))
    back, _ = wire.message("t", b"", fields.items())
    assert back.headers == headers


def test_both_spellings_of_amqp_are_read() -> None:
    for prefix in ("cloudEvents_", "cloudEvents:"):
        pairs = {
            "content-type": "application/json",
            **{prefix + name: text for name, text in ATTRIBUTES.items()},
        }
        back, _ = envelope("cloudEvents_", "cloudEvents:").message("t", EVENT.value, pairs.items())
        assert back.headers == EVENT.headers


def native(fields: Any) -> dict[str, Any]:
    return {name: text for name, text in fields.items() if not name.startswith("tk-")}


def test_the_sdk_s_binding_of_kafka_reads_what_we_write_and_we_what_it_writes() -> None:
    fields = native(envelope("ce_").fields(EVENT))
    sent = kafka.KafkaMessage(headers={n: t.encode() for n, t in fields.items()}, key=None, value=EVENT.value)
    event = kafka.from_kafka_event(sent, JSONFormat())
    assert (event.get_id(), event.get_source(), event.get_type()) == ("1", "/s", "t")
    theirs = kafka.to_binary_event(
        CloudEvent({**ATTRIBUTES, "datacontenttype": "application/json"}, {"id": "a"}), JSONFormat()
    )
    back, _ = envelope("ce_").message("t", b"", [(n, t.decode()) for n, t in theirs.headers.items()])
    assert {name: back.headers[name] for name in EVENT.headers} == EVENT.headers


def test_the_sdk_s_binding_of_amqp_reads_what_we_write_and_we_what_it_writes() -> None:
    fields = native(envelope("cloudEvents_").fields(EVENT))
    content_type = {"content-type": fields.pop("content-type")}
    sent = amqp.AMQPMessage(
        properties=content_type, application_properties=fields, application_data=EVENT.value
    )
    event = amqp.from_amqp_event(sent, JSONFormat())
    assert (event.get_id(), event.get_source(), event.get_type()) == ("1", "/s", "t")
    theirs = amqp.to_binary_event(
        CloudEvent({**ATTRIBUTES, "datacontenttype": "application/json"}, {"id": "a"}), JSONFormat()
    )
    pairs = {**theirs.properties, **{n: str(t) for n, t in theirs.application_properties.items()}}
    back, _ = envelope("cloudEvents_", "cloudEvents:").message("t", b"", pairs.items())
    assert {name: back.headers[name] for name in EVENT.headers} == EVENT.headers
