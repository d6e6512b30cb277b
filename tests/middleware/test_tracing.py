"""Spans, and the context that goes with a message wherever it goes."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.trace import SpanKind, StatusCode

from tests.engine.scenario import until, virtual
from tests.middleware.spans import Spans, identity, links, parent
from things_kit import (
    DISCARD,
    Batch,
    BatchError,
    Broker,
    Message,
    PublishError,
    Reject,
    RemoteError,
    Retry,
    RetryPolicy,
    Topic,
    connect,
)
from things_kit.engine.driver import Capabilities
from things_kit.messaging.instrument import Endpoint
from things_kit.middleware.tracing import Tracing
from things_kit.testing import MockHandler
from things_kit.testing.stub import StubDriver, broker_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
THEIRS = (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def broker(spans: Spans) -> AsyncIterator[Broker]:
    async with connect("memory://") as broker:
        broker.instrument(Tracing(spans.provider))
        yield broker


async def test_handling_is_a_child_of_the_sending(broker: Broker, spans: Spans) -> None:
    handler = MockHandler()
    async with broker.consumer("orders", group="billing", handler=handler):
        await broker.producer().publish(Message("orders", b"tea", key=b"k", id="o-1"))
        await handler.handled(1)
    send, process = spans.one("send orders"), spans.one("process orders")
    assert parent(process) == identity(send)
    assert links(process) == [identity(send)]
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert send.attributes == {
        "messaging.system": "memory",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.message.id": "o-1",
        "messaging.message.body.size": 3,
    }
    assert process.attributes == {
        "messaging.system": "memory",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "messaging.consumer.group.name": "billing",
        "messaging.message.id": "o-1",
        "messaging.message.body.size": 3,
        "things_kit.attempt": 1,
    }
    assert send.status.status_code is process.status.status_code is StatusCode.UNSET


async def test_kafka_has_its_own_attributes(spans: Spans) -> None:
    middleware = Tracing(spans.provider).handling(Endpoint("kafka", "a", 9092), "g")

    async def handle(_: Message) -> None: ...

    await middleware(handle)(Message("orders", b"", key=b"k\xff", partition=3, offset=17, id="x"))
    said = spans.one("process orders").attributes
    assert said is not None
    assert said["messaging.system"] == "kafka"
    assert said["messaging.kafka.offset"] == 17
    assert said["messaging.kafka.message.key"] == "k\\xff"
    assert said["messaging.destination.partition.id"] == "3"
    assert (said["server.address"], said["server.port"]) == ("a", 9092)


async def test_what_a_handler_sends_is_a_child_of_its_handling_in_a_thread_as_well(
    broker: Broker, spans: Spans
) -> None:
    tracer, shipped = spans.provider.get_tracer("shop"), MockHandler()
    producer = broker.producer()

    async def order(message: Message) -> None:
        await producer.publish(Message("shipped", b""))

    def bill(message: Message) -> None:
        with tracer.start_as_current_span("bill"):
            pass

    async with (
        broker.consumer("orders", group="a", handler=order),
        broker.consumer("orders", group="b", handler=bill),
        broker.consumer("shipped", group="c", handler=shipped),
    ):
        await producer.publish(Message("orders", b""))
        await shipped.handled(1)
        await until(lambda: len(spans.all("process orders")) == 2)
    handled = {identity(span): span.attributes for span in spans.all("process orders")}
    for name, group in (("send shipped", "a"), ("bill", "b")):
        said = handled[parent(spans.one(name)) or (0, 0)]
        assert said is not None
        assert said["messaging.consumer.group.name"] == group


async def test_a_trace_holds_every_attempt_the_dead_letter_and_the_replay(
    broker: Broker, spans: Spans
) -> None:
    handler = MockHandler(outcomes=[ValueError("no tea"), ValueError("still none"), None])
    retry = RetryPolicy(attempts=2, first=0)
    async with broker.consumer("orders", group="billing", handler=handler, retry=retry):
        await broker.producer().publish(Message("orders", b"tea", headers={"h": "1"}))
        await handler.handled(2)
        await until(lambda: bool(spans.all("send orders-dlq")))
        with spans.provider.get_tracer("shop").start_as_current_span("repair") as repair:
            assert await broker.replay("orders-dlq") == 1
        await handler.handled(3)
    first, again = spans.all("send orders")
    failed, failed_again, handled = spans.all("process orders")
    dead = spans.one("send orders-dlq")

    assert [parent(span) for span in (failed, failed_again, handled)] == [identity(first)] * 3
    assert [(span.attributes or {})["things_kit.attempt"] for span in (failed, failed_again)] == [1, 2]
    assert parent(dead) == identity(failed_again)
    assert links(dead) == [identity(first)]
    assert parent(again) == (repair.get_span_context().trace_id, repair.get_span_context().span_id)
    assert links(again) == links(handled) == [identity(first)]
    assert dead.kind is again.kind is SpanKind.CLIENT
    assert {name for name in handler.messages[-1].headers if name != "replay-group"} == {"h", "traceparent"}
    assert handler.messages[-1].headers["traceparent"] == handler.messages[0].headers["traceparent"]


@virtual
async def test_a_delayed_retry_by_a_topic_keeps_the_context() -> None:
    spans, driver = Spans(), StubDriver(Capabilities(partitions=True, retained=True))
    handler = MockHandler(outcomes=[Retry(after=5), None])
    async with broker_of(driver) as broker:
        broker.instrument(Tracing(spans.provider))
        retry = RetryPolicy(mode="delayed")
        async with broker.consumer("orders", group="g", handler=handler, retry=retry):
            await broker.producer().publish(Message("orders", b""))
            await until(lambda: len(handler.messages) == 2)
    first = spans.one("send orders")
    attempts = spans.all("process orders")
    assert [parent(span) for span in attempts] == [identity(first)] * 2
    assert parent(spans.one("send orders-g-retry-10s")) == identity(attempts[0])


async def test_a_failure_is_recorded_and_a_wished_retry_is_no_failure(broker: Broker, spans: Spans) -> None:
    handler = MockHandler(outcomes=[Retry(after=0), Reject("no tea")])
    async with broker.consumer("orders", group="g", handler=handler):
        await broker.producer().publish(Message("orders", b""))
        await until(lambda: bool(spans.all("send orders-dlq")))
    asked, rejected = spans.all("process orders")
    assert asked.status.status_code is StatusCode.UNSET
    assert not asked.events
    assert rejected.status.status_code is StatusCode.ERROR
    assert rejected.status.description == "Reject: no tea"
    assert rejected.attributes is not None
    assert rejected.attributes["error.type"] == "things_kit.messaging.outcomes.Reject"
    (event,) = rejected.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "no tea"


async def test_an_exception_that_cannot_be_printed_is_only_the_handlers_failure(
    broker: Broker, spans: Spans
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    handler = MockHandler(outcomes=[Mute()])
    async with broker.consumer("orders", group="g", handler=handler, retry=RetryPolicy(attempts=1)):
        await broker.producer().publish(Message("orders", b""))
        await until(lambda: bool(spans.all("send orders-dlq")))
    said = spans.one("process orders").attributes
    assert said is not None
    assert str(said["error.type"]).endswith("Mute")


async def test_a_handler_that_overran_is_a_failure_and_its_dead_letter_belongs_to_it(
    broker: Broker, spans: Spans
) -> None:
    async def never(_: Message) -> None:
        await asyncio.Event().wait()

    retry = RetryPolicy(attempts=1)
    async with broker.consumer("orders", group="g", handler=never, retry=retry, timeout=0.05):
        await broker.producer().publish(Message("orders", b""))
        await until(lambda: bool(spans.all("send orders-dlq")))
    process = spans.one("process orders")
    assert process.attributes is not None
    assert process.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert parent(spans.one("send orders-dlq")) == identity(process)


async def test_a_refused_message_is_a_failed_sending(broker: Broker, spans: Spans) -> None:
    with pytest.raises(PublishError):
        await broker.producer().publish(Message("orders", b"", headers={"tk-x": "ours"}))
    send = spans.one("send orders")
    assert send.status.status_code is StatusCode.ERROR
    assert send.attributes is not None
    assert send.attributes["error.type"] == "things_kit.messaging.errors.PublishError"


async def test_what_is_no_message_is_refused_as_ever(broker: Broker, spans: Spans) -> None:
    wrong: Any = "tea"
    with pytest.raises(PublishError, match="takes a Message"):
        await broker.producer().publish(wrong)
    assert spans.names() == []


@pytest.mark.parametrize("case", [str, str.title, str.upper])
async def test_a_context_of_the_users_own_is_respected(
    broker: Broker, spans: Spans, case: Callable[[str], str]
) -> None:
    headers = {case("traceparent"): TRACEPARENT, case("tracestate"): "shop=1"}
    handler = MockHandler()
    async with broker.consumer("orders", group="g", handler=handler):
        await broker.producer().publish(Message("orders", b"", headers=headers))
        await handler.handled(1)
    assert handler.messages[0].headers == headers
    send, process = spans.one("send orders"), spans.one("process orders")
    assert parent(process) == THEIRS
    assert links(send) == [THEIRS]
    state = process.get_span_context().trace_state  # type: ignore[union-attr]
    assert state.get("shop") == "1"


async def test_a_header_that_is_no_context_is_left_alone(broker: Broker, spans: Spans) -> None:
    handler = MockHandler()
    async with broker.consumer("orders", group="g", handler=handler):
        await broker.producer().publish(Message("orders", b"", headers={"traceparent": "tea"}))
        await handler.handled(1)
    assert handler.messages[0].headers == {"traceparent": "tea"}
    assert parent(spans.one("process orders")) is None


async def test_baggage_is_read_in_any_case(broker: Broker) -> None:
    seen: list[object] = []

    async def handle(_: Message) -> None:
        seen.append(baggage.get_baggage("tenant"))

    async with broker.consumer("orders", group="g", handler=handle):
        await broker.producer().publish(Message("orders", b"", headers={"Baggage": "tenant=acme"}))
        await until(lambda: bool(seen))
    assert seen == ["acme"]


async def test_baggage_reaches_the_handler(broker: Broker) -> None:
    seen: list[object] = []

    async def handle(_: Message) -> None:
        seen.append(baggage.get_baggage("tenant"))

    async with broker.consumer("orders", group="g", handler=handle):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        await broker.producer().publish(Message("orders", b""))
        context.detach(token)
        await until(lambda: bool(seen))
        await broker.producer().publish(Message("orders", b""))
        await until(lambda: len(seen) == 2)
    assert seen == ["acme", None]


async def test_each_message_of_a_batch_has_a_span_that_the_sending_links_to(
    broker: Broker, spans: Spans
) -> None:
    handler = MockHandler()
    async with broker.consumer("orders", group="g", handler=handler):
        theirs = Message("orders", b"3", headers={"traceparent": TRACEPARENT})
        await broker.producer().publish_batch([Message("orders", b"1"), Message("orders", b"2"), theirs])
        await handler.handled(3)
    created = [identity(span) for span in spans.all("create orders")]
    send = spans.one("send orders")
    assert links(send) == [*created, THEIRS]
    assert send.kind is SpanKind.CLIENT
    assert send.attributes is not None
    assert send.attributes["messaging.batch.message_count"] == 3
    assert sorted(parent(span) or (0, 0) for span in spans.all("process orders")) == sorted(
        [*created, THEIRS]
    )


async def test_a_batch_may_do_without_spans_of_its_messages(spans: Spans) -> None:
    handler = MockHandler()
    async with connect("memory://") as broker:
        broker.instrument(Tracing(spans.provider, create_spans=False))
        async with broker.consumer("orders", group="g", handler=handler):
            await broker.producer().publish_batch([Message("orders", b"1"), Message("orders", b"2")])
            await handler.handled(2)
    send = spans.one("send orders")
    assert send.kind is SpanKind.PRODUCER
    assert [parent(span) for span in spans.all("process orders")] == [identity(send)] * 2


async def test_a_batch_handler_has_one_span_linked_to_every_message(broker: Broker, spans: Spans) -> None:
    async def handle(messages: list[Message]) -> None:
        raise BatchError({1: ValueError("no tea")})

    producer, batch = broker.producer(), Batch(2, 5)
    await broker.declare("orders", ["g"])
    for number in (b"1", b"2"):
        await producer.publish(Message("orders", number))
    retry = RetryPolicy(attempts=1)
    async with broker.consumer("orders", group="g", handler=handle, batch=batch, retry=retry):
        await until(lambda: bool(spans.all("send orders-dlq")))
    process = spans.all("process orders")[0]
    assert links(process) == [identity(span) for span in spans.all("send orders")]
    assert process.parent is None
    assert process.attributes is not None
    assert process.attributes["messaging.batch.message_count"] == 2
    assert process.attributes["error.type"] == "ValueError"
    assert parent(spans.one("send orders-dlq")) == identity(process)


async def test_a_context_crosses_processes(tmp_path: Path, spans: Spans) -> None:
    code = """
import asyncio, sys
from opentelemetry.sdk.trace import TracerProvider
from things_kit import Message, connect
from things_kit.middleware.tracing import Tracing

async def main():
    provider = TracerProvider()
    async with connect(sys.argv[1]) as broker:
        broker.instrument(Tracing(provider))
        with provider.get_tracer("shop").start_as_current_span("order") as span:
            await broker.producer().publish(Message("orders", b"tea"))
            print(span.get_span_context().trace_id)

asyncio.run(main())
"""
    url = f"sqlite:///{tmp_path}/events.db"
    handler = MockHandler()
    async with connect(url) as broker:
        broker.instrument(Tracing(spans.provider))
        async with broker.consumer("orders", group="g", handler=handler):
            run = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", code, url], capture_output=True, text=True, check=False
            )
            assert run.returncode == 0, run.stderr
            await handler.handled(1)
    process = spans.one("process orders")
    assert process.parent is not None
    assert process.parent.is_remote
    assert process.parent.trace_id == int(run.stdout)


async def test_without_a_provider_of_its_own_spans_go_to_the_global_one(broker: Broker) -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)  # there is none in these tests
    async with connect("memory://") as other:
        other.instrument(Tracing())
        await other.producer().publish(Message("orders", b""))


def test_nothing_is_imported_where_nothing_is_traced() -> None:
    code = """
import asyncio, sys
from things_kit import Message, connect
from things_kit.modules import config, logging, memory

async def main():
    async with connect("memory://") as broker:
        await broker.producer().publish(Message("orders", b""))

asyncio.run(main())
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "prometheus", "uvicorn", "starlette"))]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- requests


async def test_one_trace_spans_both_sides_of_a_request(broker: Broker, spans: Spans) -> None:
    """From the request down to the reply, each under the one before it; both sides name the conversation."""

    async def answer(message: Message) -> bytes:
        return message.value

    async with broker.consumer("orders", group="billing", handler=answer):
        reply = await broker.request(Message("orders", b"tea", id="o-1"), timeout=20)
        await until(lambda: "reply (temporary)" in spans.names())
    request, send = spans.one("request orders"), spans.one("send orders")
    process, answered = spans.one("process orders"), spans.one("reply (temporary)")
    assert [parent(each) for each in (request, send, process, answered)] == [
        None, identity(request), identity(send), identity(process)
    ]  # fmt: skip
    kinds = [each.kind for each in (request, send, process, answered)]
    assert kinds == [SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.PRODUCER]
    conversation = reply.headers["correlation-id"]
    for each in (send, process, answered):
        assert each.attributes is not None
        assert each.attributes["messaging.message.conversation_id"] == conversation
    assert request.attributes == {
        "messaging.system": "memory",
        "messaging.operation.name": "request",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.message.id": "o-1",
        "messaging.message.body.size": 3,
    }
    assert answered.attributes is not None
    assert answered.attributes["messaging.destination.temporary"] is True
    traceparent = reply.headers["traceparent"].split("-")
    assert (int(traceparent[1], 16), int(traceparent[2], 16)) == identity(answered)
    assert not [name for name in spans.names() if "things-kit-replies" in name]


@pytest.mark.parametrize("kept", [True, False], ids=["dead letter", "discarded"])
async def test_the_reply_to_what_failed_belongs_to_the_last_attempt(
    broker: Broker, spans: Spans, kept: bool
) -> None:
    async def fail(message: Message) -> None:
        raise Reject("no such order")

    dead_letter = "{topic}-dlq" if kept else DISCARD
    async with broker.consumer("orders", group="billing", handler=fail, dead_letter=dead_letter):
        with pytest.raises(RemoteError):
            await broker.request(Message("orders", b"tea"), timeout=20)
        await until(lambda: "reply (temporary)" in spans.names())
    assert parent(spans.one("reply (temporary)")) == identity(spans.one("process orders"))
    request = spans.one("request orders")
    assert request.status.status_code is StatusCode.ERROR
    assert request.attributes is not None
    assert request.attributes["error.type"] == "things_kit.messaging.errors.RemoteError"


async def test_a_request_without_a_reply_has_failed(broker: Broker, spans: Spans) -> None:
    await broker.declare("orders", groups=["billing"])
    with pytest.raises(TimeoutError):
        await broker.request(Message("orders", b"tea"), timeout=0.01)
    attributes = spans.one("request orders").attributes
    assert attributes is not None
    assert attributes["error.type"] == "TimeoutError"


async def test_what_a_handler_returns_is_published_as_part_of_its_attempt(
    broker: Broker, spans: Spans
) -> None:
    async def bill(message: Message) -> bytes:
        return message.value

    handler = MockHandler()
    invoices = Topic("invoices", bytes)
    async with (
        broker.consumer("orders", group="billing", handler=bill, publish=invoices),
        broker.consumer(invoices, group="books", handler=handler),
    ):
        await broker.producer().publish(Message("orders", b"tea"))
        await handler.handled(1)
        await until(lambda: "send invoices" in spans.names())
    assert parent(spans.one("send invoices")) == identity(spans.one("process orders"))
