"""What a handler returns, published before its message is acknowledged."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, get_origin

from things_kit.engine.backoff import Backoff
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.unrun import refuse_unrun
from things_kit.messaging.errors import BrokerUnavailable, ConfigError, PublishError
from things_kit.messaging.handler import Handle
from things_kit.messaging.kinds import unwrapped
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import Reject
from things_kit.messaging.topic import Topic

_collected: Final[ContextVar[list[Message]]] = ContextVar("things_kit_results")


class Results(Exception):
    """How a handler that returned something leaves the worker: with the messages to publish. Never seen by users."""

    def __init__(self, messages: Sequence[Message]) -> None:
        super().__init__("the results of a handler")
        self.messages = messages


def collecting(call: Callable[[Message], Awaitable[Any]], name: str, topic: Topic[Any], group: str) -> Handle:
    """The handler as the innermost step: what it returns is kept for `raising`, whatever middleware returns."""
    several = not carries_lists(topic)

    async def collected(message: Message) -> None:
        result = await call(message)
        if result is None:
            return
        refuse_unrun(result, name)
        payloads = result if several and isinstance(result, list) else [result]
        try:
            messages = [
                _result(topic, payload, message, group, index) for index, payload in enumerate(payloads)
            ]
        except (TypeError, ConfigError) as error:
            raise Reject(f"{name} returned what the topic {topic.name!r} cannot carry: {error}") from error
        _collected.get()[:] = messages

    return collected


def raising(handle: Handle) -> Handle:
    """The whole pipeline, as the outermost step: raises Results where the handler returned something."""

    async def publishing(message: Message) -> None:
        messages: list[Message] = []
        token = _collected.set(messages)
        try:
            await handle(message)
        finally:
            _collected.reset(token)
        if messages:
            raise Results(messages)

    return publishing


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
