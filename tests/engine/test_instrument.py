"""What an instrument is asked to wrap, and when."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Batch, Message, RetryPolicy
from things_kit.engine.url import BrokerURL
from things_kit.messaging.handler import Handle, HandleBatch, Middleware
from things_kit.messaging.instrument import Endpoint, Send
from things_kit.testing.stub import StubDriver, broker_of


class Notes:
    """Notes under a name what it has wrapped and what went through."""

    def __init__(self, name: str, seen: list[tuple[str, str]]) -> None:
        self.name = name
        self.seen = seen
        self.wrapped: list[tuple[str, str | None]] = []

    def sending(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        def wrap(send: Send) -> Send:
            def noted(messages: Sequence[Message]) -> Awaitable[dict[int, Exception]]:
                self.seen += [(self.name, f"send {message.topic}") for message in messages]
                return send(messages)

            return noted

        return wrap

    def handling(self, endpoint: Endpoint, group: str | None) -> Middleware:
        self.wrapped.append((endpoint.scheme, group))

        def wrap(handle: Handle) -> Handle:
            def noted(message: Message) -> Awaitable[None]:
                self.seen.append((self.name, f"handle {message.topic}"))
                return handle(message)

            return noted

        return wrap

    def handling_batches(self, endpoint: Endpoint, group: str | None) -> Callable[[HandleBatch], HandleBatch]:
        def wrap(handle: HandleBatch) -> HandleBatch:
            def noted(messages: list[Message]) -> Awaitable[None]:
                self.seen.append((self.name, f"handle {len(messages)}"))
                return handle(messages)

            return noted

        return wrap


@virtual
async def test_instruments_see_what_is_published_handled_and_given_up_the_first_outermost() -> None:
    driver, seen = StubDriver(), list[tuple[str, str]]()
    outer, inner = Notes("outer", seen), Notes("inner", seen)
    refuse = Recorder(lambda _: (_ for _ in ()).throw(ValueError))

    def own(handle: Handle) -> Handle:
        async def noted(message: Message) -> None:
            seen.append(("own", f"handle {message.topic}"))
            await handle(message)

        return noted

    async with broker_of(driver) as broker:
        broker.instrument(outer, inner)
        retry = RetryPolicy(attempts=1)
        async with broker.consumer("t", group="g", handler=refuse, retry=retry, middleware=[own]):
            await broker.producer().publish(Message("t", b""))
            await until(lambda: ("inner", "send t-dlq") in seen)
    assert seen == [
        ("outer", "send t"), ("inner", "send t"),
        ("outer", "handle t"), ("inner", "handle t"), ("own", "handle t"),
        ("outer", "send t-dlq"), ("inner", "send t-dlq"),
    ]  # fmt: skip
    assert outer.wrapped == inner.wrapped == [("stub", "g")]


@virtual
async def test_an_instrument_sees_batches_as_the_handler_does() -> None:
    driver, seen, got = StubDriver(), list[tuple[str, str]](), list[Message]()

    async def handle(messages: list[Message]) -> None:
        got.extend(messages)

    async with broker_of(driver) as broker:
        broker.instrument(Notes("only", seen))
        await broker.producer().publish_batch([Message("t", b"1"), Message("t", b"2")])
        async with broker.consumer("t", group="g", handler=handle, batch=Batch(2, 1)):
            await until(lambda: len(got) == 2)
    assert seen == [("only", "send t"), ("only", "send t"), ("only", "handle 2")]


@virtual
async def test_what_was_made_before_is_not_instrumented_and_an_ephemeral_group_has_no_name() -> None:
    notes = Notes("only", [])
    async with broker_of(StubDriver()) as broker:
        before = broker.producer()
        broker.instrument(notes)
        await before.publish(Message("t", b""))
        assert notes.seen == []
        broker.consumer("t", group=None, handler=Recorder())
        assert notes.wrapped == [("stub", None)]


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("kafka://a:9092", Endpoint("kafka", "a", 9092)),
        ("kafka://a:9092,b:9092", Endpoint("kafka")),
        ("amqp://u:pw@[::1]:5672/v", Endpoint("amqp", "::1", 5672)),
        ("redis://[::1]", Endpoint("redis", "::1")),
        ("sqs://eu-west-1", Endpoint("sqs", "eu-west-1")),
        ("sqlite:///x.db", Endpoint("sqlite")),
    ],
)
def test_telemetry_knows_a_broker_by_its_only_host(url: str, endpoint: Endpoint) -> None:
    assert BrokerURL.parse(url).endpoint == endpoint
