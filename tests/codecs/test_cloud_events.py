"""CloudEvents in both modes, as other programs write and read them."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from tests.engine.scenario import until, virtual
from things_kit import ConfigError, DecodeError, Message, MessageRouter, Topic
from things_kit.codecs import JSON, CloudEvents, MessagePack
from things_kit.codecs.contract import contract_decoder
from things_kit.codecs.payload import payload_decoder
from things_kit.testing.stub import BARE, StubDriver, broker_of


class Created(msgspec.Struct):
    id: str


class Cancelled(msgspec.Struct):
    id: str


TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
binary = Topic("shop", Created, codec=CloudEvents(source="/shop"))
structured = Topic("shop", Created, codec=CloudEvents(source="/shop", mode="structured"))
TOPICS = pytest.mark.parametrize("topic", [binary, structured], ids=["binary", "structured"])


def decode(topic: Topic[Any], wanted: Any, message: Message) -> Any:
    return contract_decoder(topic, wanted, "the handler h")(message)


def test_a_binary_event_has_its_attributes_in_headers() -> None:
    message = binary.message(Created("a"), id="e-1", timestamp=TIME)
    assert message == Message(
        "shop",
        b'{"id":"a"}',
        headers={
            "content-type": "application/json",
            "ce-specversion": "1.0",
            "ce-id": "e-1",
            "ce-source": "/shop",
            "ce-type": "Created",
            "ce-time": "2026-01-02T03:04:05Z",
        },
        timestamp=TIME,
        id="e-1",
    )


def test_a_structured_event_has_all_in_its_value() -> None:
    message = structured.message(Created("a"), id="e-1", timestamp=TIME)
    assert message.headers == {"content-type": "application/cloudevents+json"}
    assert json.loads(message.value) == {
        "specversion": "1.0", "id": "e-1", "source": "/shop", "type": "Created", "time": "2026-01-02T03:04:05Z",
        "datacontenttype": "application/json", "data": {"id": "a"},
    }  # fmt: skip


@TOPICS
def test_id_and_time_are_the_message_s(topic: Topic[Created]) -> None:
    first, second = topic.messages([Created("a"), Created("b")])
    assert first.id is not None
    assert first.id != second.id
    assert first.timestamp is not None
    event = json.loads(first.value) if topic is structured else {n[3:]: v for n, v in first.headers.items()}
    assert event["id"] == first.id
    assert datetime.fromisoformat(event["time"]) == first.timestamp


@TOPICS
def test_both_modes_are_read_by_both(topic: Topic[Created]) -> None:
    for sent in (binary.message(Created("a")), structured.message(Created("a"))):
        assert decode(topic, Created, sent) == Created("a")
        assert decode(topic, dict, sent) == {"id": "a"}
        assert payload_decoder(Created)(sent) == Created("a")


def test_data_that_is_no_json_is_base64() -> None:
    topic = Topic("shop", Created, codec=CloudEvents(source="/s", mode="structured", codec=MessagePack()))
    event = json.loads((sent := topic.message(Created("a"))).value)
    assert base64.b64decode(event["data_base64"]) == msgspec.msgpack.encode(Created("a"))
    assert decode(topic, Created, sent) == Created("a")
    assert decode(structured, Created, sent) == Created("a")


def test_the_type_of_an_event_is_the_header_s_value_where_there_are_several() -> None:
    for mode in ("binary", "structured"):
        codec: Any = CloudEvents(source="/s", mode=mode)
        topic = Topic[Created | Cancelled]("t", {"c": Created, "x": Cancelled}, by="kind", codec=codec)
        sent = topic.message(Cancelled("a"))
        assert sent.headers["kind"] == "x"
        opened = codec.opened(Message("t", sent.value, headers={**sent.headers, "kind": "x"}), topic)
        assert opened.headers["ce-type"] == "x"
    fixed = Topic("t", Created, codec=CloudEvents(source="/s", type="com.shop.created"))
    assert fixed.message(Created("a")).headers["ce-type"] == "com.shop.created"


@TOPICS
@virtual
async def test_handlers_see_the_attributes_as_headers_in_both_modes(topic: Topic[Created]) -> None:
    driver, seen = StubDriver(BARE), list[Message]()

    async def handle(created: Created, message: Message) -> None:
        seen.append(message)

    async def whole(message: Message) -> None:
        seen.append(message)

    driver.put(topic.message(Created("a"), id="e-1", timestamp=TIME))
    async with broker_of(driver) as broker:
        for count, handler in enumerate((handle, whole), 1):
            async with broker.consumer(topic, group=f"g{count}", handler=handler):  # type: ignore[call-overload] # either
                await until(lambda count=count: len(seen) == count)  # type: ignore[misc] # of a loop
    for message in seen:
        assert message.headers["ce-id"] == "e-1"
        assert message.headers["ce-type"] == "Created"
        assert message.value == topic.message(Created("a"), id="e-1", timestamp=TIME).value


@virtual
async def test_a_foreign_event_is_routed_by_its_own_type() -> None:
    codec = CloudEvents(source="/s")
    topic = Topic[Created | Cancelled]("shop", {"c": Created, "x": Cancelled}, by="kind", codec=codec)
    driver, seen = StubDriver(BARE), list[Any]()
    router = MessageRouter.of(topic)

    @router.on(Created)
    async def created(event: Created) -> None:
        seen.append(event)

    @router.on(Cancelled)
    async def cancelled(event: Cancelled) -> None:
        seen.append(event)

    event = CloudEvent({"id": "1", "source": "/other", "type": "c"}, {"id": "a"})
    for write in (to_binary_event, to_structured_event):
        foreign = write(event, JSONFormat())
        driver.put(Message("shop", foreign.body, headers=dict(foreign.headers), id=write.__name__))
    async with broker_of(driver) as broker, broker.consumer(topic, group="g", handler=router):
        await until(lambda: len(driver.acknowledged) == 2)
    assert seen == [Created("a"), Created("a")]


@TOPICS
def test_the_sdk_reads_what_we_write(topic: Topic[Created]) -> None:
    sent = topic.message(Created("a"), id="e-1", timestamp=TIME)
    event = from_http_event(HTTPMessage(headers=dict(sent.headers), body=sent.value), JSONFormat())
    assert (event.get_id(), event.get_source(), event.get_type()) == ("e-1", "/shop", "Created")
    assert event.get_time() == TIME
    assert event.get_data() == {"id": "a"}


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
@TOPICS
def test_we_read_what_the_sdk_writes(topic: Topic[Created], write: Any) -> None:
    event = CloudEvent(
        {"id": "1", "source": "/other", "type": "t", "datacontenttype": "application/json"}, {"id": "a"}
    )
    foreign = write(event, JSONFormat())
    message = Message("shop", foreign.body, headers=dict(foreign.headers))
    assert decode(topic, Created, message) == Created("a")
    codec: Any = topic.codec
    assert codec.opened(message, topic).headers["ce-source"] == "/other"


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"{}", b'{"data": 5}', b'{"data_base64": "?"}', b'{"data": {"id": "a"}', b"\xff"]
)
def test_what_is_no_event_is_a_decode_error(value: bytes) -> None:
    message = Message("shop", value, headers={"content-type": "application/cloudevents+json"})
    codec: Any = structured.codec
    assert codec.opened(message, structured).value == value
    with pytest.raises(DecodeError):
        decode(structured, Created, message)


@pytest.mark.parametrize(
    "fields",
    [
        {"source": ""},
        {"source": "s", "mode": "both"},
        {"source": "s", "codec": "json"},
        {"source": "s", "codec": JSON},
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CloudEvents(**fields)
