"""What a handler returns, published before its message is acknowledged."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, get_origin

import msgspec

from things_kit.engine.answers import Expired, answer_to, misses_deadline
from things_kit.engine.backoff import Backoff
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.unrun import refuse_unrun
from things_kit.messaging.errors import (
    BrokerUnavailable,
    ConfigError,
    MessageTooLarge,
    NobodyListens,
    PublishError,
)
from things_kit.messaging.handler import Handle
from things_kit.messaging.kinds import unwrapped
from things_kit.messaging.message import Message
from things_kit.messaging.names import DEADLINE, REPLY_TO, is_request
from things_kit.messaging.outcomes import Reject
from things_kit.messaging.topic import Topic


class Publishing(msgspec.Struct, frozen=True):
    """Where what a handler returns is published, and for which group it handles."""

    topic: Topic[Any]
    group: str


class Collected(msgspec.Struct):
    """What a handler returned, as messages: those to publish, and the reply to a request.

    They are sent in the context in which it returned: that has the span of its attempt.
    """

    messages: Sequence[Message] = ()
    answer: Message | None = None
    context: Context | None = None


LINGER: Final = 5.0
"""Seconds for which a reply is kept for an inbox that is not there."""

_collected: Final[ContextVar[Collected]] = ContextVar("things_kit_results")


def take_results() -> Sequence[Message]:
    """What the handler that has just returned leaves to be published: whoever takes it publishes it."""
    kept = _collected.get(None)
    if kept is None:
        return ()
    messages, kept.messages = kept.messages, ()
    return messages


class Results(Exception):
    """How a handler that returned something leaves the worker: with the messages to publish. Never seen by users."""

    def __init__(self, collected: Collected) -> None:
        super().__init__("the results of a handler")
        self.messages = collected.messages
        self.answer = collected.answer
        self.context = collected.context


def collecting(call: Callable[[Message], Awaitable[Any]], name: str, publish: Publishing | None) -> Handle:
    """The handler as the innermost step: what it returns is kept for `raising`, whatever middleware returns."""

    async def collected(message: Message) -> None:
        result: Any = await call(message)
        refuse_unrun(result, name)
        kept = _collected.get(None)
        if kept is None:
            return  # middleware has made a request of what was none
        kept.context = copy_context()
        if publish is not None and result is not None:
            kept.messages = _results(publish, result, message, name)
        if is_request(message.headers):
            kept.answer = _answer(result, message, name)

    return collected


def raising(handle: Handle) -> Handle:
    """The whole pipeline, as the outermost step: raises Results where the handler returned something.

    It raises Expired for requests whose deadline has passed. One that middleware left out, as it was handled before such
    as, has no answer: what it was is not known any more.
    """

    async def publishing(message: Message) -> None:
        if is_request(message.headers) and misses_deadline(message):
            raise Expired
        kept = Collected()
        token = _collected.set(kept)
        try:
            await handle(message)
        finally:
            _collected.reset(token)
        if kept.messages or kept.answer is not None:
            raise Results(kept)

    return publishing


def by_kind(plain: Handle, request: Handle) -> Handle:
    """One step for requests, another for all else; no frame of its own, as every message pays for it."""

    def chosen(message: Message) -> Awaitable[None]:
        return request(message) if REPLY_TO in message.headers else plain(message)

    return chosen


def _results(publish: Publishing, result: Any, message: Message, name: str) -> list[Message]:
    several = isinstance(result, list) and not carries_lists(publish.topic)
    try:
        return [
            _result(publish.topic, payload, message, publish.group, index)
            for index, payload in enumerate(result if several else [result])
        ]
    except (TypeError, ConfigError) as error:
        raise Reject(
            f"{name} returned what the topic {publish.topic.name!r} cannot carry: {error}"
        ) from error


def _answer(result: Any, request: Message, name: str) -> Message:
    try:
        return answer_to(request, result)
    except (TypeError, ValueError, RecursionError) as error:  # such as text that UTF-8 cannot carry
        raise Reject(f"{name} returned what no reply can carry: {error}") from error


async def publish_results(producer: BrokerProducer, messages: Sequence[Message]) -> None:
    """Publish until all are confirmed, however long the broker is away. Raises Reject for what is refused for good."""
    backoff = Backoff()
    while messages:
        try:
            await producer.publish_batch(messages)
        except BrokerUnavailable:
            pass
        except PublishError as error:
            refused = [each for each in error.failures.values() if not isinstance(each, BrokerUnavailable)]
            if refused or not error.failures:
                raise Reject(f"its result was refused: {refused[0] if refused else error}") from error
            messages = [messages[index] for index in sorted(error.failures)]
        else:
            return
        await backoff.wait()


async def send_answer(
    producer: BrokerProducer, answer: Message, request: Message, lingers: Callable[[], bool]
) -> None:
    """Send a reply, as long as somebody may wait for it.

    An inbox that is not there may be about to come back after a lost connection: that is waited for while it `lingers`.

    Raises:
        NobodyListens: It is not there, did not come back, or cannot be: who asks says where, and may say anything.
        Reject: The reply is too large.
    """
    loop, backoff = asyncio.get_running_loop(), Backoff()
    ends = loop.time() + LINGER
    while not misses_deadline(request):
        try:
            await producer.publish(answer)
        except NobodyListens:
            if loop.time() >= ends or not lingers():
                raise
        except BrokerUnavailable:
            if DEADLINE not in request.headers:
                return
        except MessageTooLarge as error:
            raise Reject(f"its reply was refused: {error}") from error
        except PublishError as error:
            raise NobodyListens(str(error)) from error
        else:
            return
        await backoff.wait()


def _result(topic: Topic[Any], payload: Any, source: Message, group: str, index: int) -> Message:
    """Its id tells a duplicate: it is the same whenever this group handles this message."""
    text = f"{source.id}\0{group}\0{index}"
    identity = hashlib.sha256(text.encode()).hexdigest()[:32]
    message = topic.message(payload, id=identity)
    return message if topic.key is not None else message.replace(key=source.key)


def carries_lists(topic: Topic[Any]) -> bool:
    """Whether a payload of the topic is a list itself."""
    kinds = (unwrapped(kind) for kind in topic.kinds.values())
    return any((get_origin(kind) or kind) is list for kind in kinds)
