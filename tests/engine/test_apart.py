"""What a handler does to the headers of its message is seen by nobody else."""

from collections.abc import MutableMapping
from typing import Any, cast

import msgspec
import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Batch, Message, RetryPolicy, connect
from things_kit.messaging.handler import Handle, HandleBatch
from things_kit.testing.stub import StubDriver, broker_of

TWICE = RetryPolicy(attempts=2, first=0.01)


class Order(msgspec.Struct):
    id: int


def spoil(message: Message) -> None:
    """As code does that was not checked by a type checker."""
    headers = cast("MutableMapping[str, str]", message.headers)
    headers.clear()
    headers["spoilt"] = "yes"


class Spoiling:
    """Middleware that notes and spoils headers, one by one and in lists."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def __call__(self, handle: Handle) -> Handle:
        async def spoiling(message: Message) -> None:
            self.spoil(message)
            await handle(message)

        return spoiling

    def handle_batch(self, handle: HandleBatch) -> HandleBatch:
        async def spoiling(messages: list[Message]) -> None:
            for message in messages:
                self.spoil(message)
            await handle(messages)

        return spoiling

    def spoil(self, message: Message) -> None:
        self.seen.append(dict(message.headers))
        spoil(message)


def handlers(spoiling: Spoiling) -> dict[str, dict[str, Any]]:
    """Whatever is handed a message, each of which fails."""

    async def of_message(message: Message) -> None:
        spoiling.spoil(message)
        raise ValueError

    async def of_both(order: Order, message: Message) -> None:
        await of_message(message)

    async def of_list(messages: list[Message]) -> None:
        await of_message(messages[0])

    async def of_order(order: Order) -> None:
        raise ValueError

    async def of_orders(orders: list[Order]) -> None:
        raise ValueError

    batch = {"batch": Batch(size=1)}
    return {
        "a handler of messages": {"handler": of_message},
        "a handler of both": {"handler": of_both},
        "a handler of lists": {"handler": of_list, **batch},
        "middleware": {"handler": of_order, "middleware": [spoiling]},
        "middleware around lists": {"handler": of_orders, "middleware": [spoiling], **batch},
    }


@pytest.mark.parametrize("headers", [{"mine": "x"}, {}], ids=["with headers", "without headers"])
@pytest.mark.parametrize("which", handlers(Spoiling()))
@virtual
async def test_the_next_attempt_and_the_dead_letter_have_the_headers_as_they_came(
    which: str, headers: dict[str, str]
) -> None:
    driver, spoiling = StubDriver(), Spoiling()
    arguments = handlers(spoiling)[which]
    async with broker_of(driver) as broker, broker.consumer("t", group="g", retry=TWICE, **arguments):
        await broker.producer().publish(Message("t", b'{"id": 7}', headers=headers))
        await until(lambda: driver.topics.get("t-dlq"))
    assert spoiling.seen == [headers] * 2
    dead = driver.topics["t-dlq"][0].headers
    assert dead.items() >= headers.items()
    assert "spoilt" not in dead


@pytest.mark.parametrize("headers", [{"mine": "x"}, {}], ids=["with headers", "without headers"])
@virtual
async def test_another_group_has_the_headers_as_they_came(headers: dict[str, str]) -> None:
    spoiling, other = Spoiling(), Recorder()

    async def first(message: Message) -> None:
        spoiling.spoil(message)

    async with connect("memory://") as broker:
        async with broker.consumer("t", group="first", handler=first):
            await broker.producer().publish(Message("t", b"", headers=headers))
            await until(lambda: spoiling.seen)
        async with broker.consumer("t", group="second", handler=other):
            await until(lambda: other.seen)
    assert [message.headers for _, message in other.seen] == [headers]
    assert "spoilt" not in headers  # nor do they reach who published it


@pytest.mark.parametrize("headers", [{"mine": "x"}, {}], ids=["with headers", "without headers"])
@virtual
async def test_what_was_published_is_what_the_headers_were_then(headers: dict[str, str]) -> None:
    handler, published = Recorder(), dict(headers)
    async with connect("memory://") as broker:
        await broker.declare("t")
        await broker.producer().publish(Message("t", b"", headers=headers))
        headers["next"] = "y"
        async with broker.consumer("t", group="g", handler=handler):
            await until(lambda: handler.seen)
    del headers["next"]
    assert [message.headers for _, message in handler.seen] == [published]


@virtual
async def test_a_request_is_answered_whatever_its_handler_does_to_the_headers() -> None:
    async def echo(message: Message) -> bytes:
        spoil(message)
        return message.value

    async with connect("memory://") as broker, broker.consumer("t", group="g", handler=echo):
        reply = await broker.request(Message("t", b"5"), timeout=5)
    assert reply.value == b"5"
