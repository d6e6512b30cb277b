"""Between a message and a handler that takes its payload."""

from collections.abc import Awaitable, Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from things_kit.codecs.contract import contract_decoder
from things_kit.codecs.payload import payload_decoder, usual
from things_kit.engine.transforming import partly
from things_kit.messaging.codec import Unprepared
from things_kit.messaging.errors import DecodeError
from things_kit.messaging.handler import HandleBatch
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE
from things_kit.messaging.topic import Topic

_AS_THEY_ARE: Final = {Message, bytes, str}
"""What is not decoded, whatever stands for it."""


def as_meant(kind: Any) -> Any:
    """Message, bytes or str where that is what an `Annotated`, a NewType, an alias or an optional stands for."""
    inner = kind
    while (meant := _meant_by(inner)) is not None:
        inner = meant
    if get_origin(inner) in {Union, UnionType} and set(get_args(inner)) == {Message, NoneType}:
        return Message
    return inner if any(inner is each for each in _AS_THEY_ARE) else kind


def _meant_by(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return kind.__origin__
    return getattr(kind, "__supertype__", None) or getattr(kind, "__value__", None)


def decoder(kind: Any, topics: Sequence[str | Topic[Any]], whose: str) -> Callable[[Message], Any]:
    """By the contract of a message's topic where it has one, else by what the handler takes."""
    if kind is Message:
        return lambda message: message
    contracts = {
        topic.name: contract_decoder(topic, kind, whose) for topic in topics if isinstance(topic, Topic)
    }
    if not contracts:
        return payload_decoder(kind)
    if len(topics) == 1:
        return next(iter(contracts.values()))
    plain = None if len(contracts) == len(topics) else payload_decoder(kind)

    def decode(message: Message) -> Any:
        of_topic = contracts.get(message.topic, plain)
        if of_topic is None:
            raise DecodeError(f"nothing says what a message of {message.topic!r} carries")
        return of_topic(message)

    return decode


def decoded(
    call: Callable[..., Awaitable[Any]], decode: Callable[[Message], Any], *, wants_message: bool
) -> Callable[[Message], Awaitable[Any]]:
    """Calls with the payload. No coroutine of its own, and the usual case has no other call: every message pays for it."""
    if wants_message:
        return lambda message: call(decode(message), message)
    if (known := usual(decode)) is None:
        return lambda message: call(decode(message))
    content_type, read = known

    def decoded_once(message: Message) -> Awaitable[Any]:
        if message.headers.get(CONTENT_TYPE) == content_type:
            try:
                payload = read(message.value)
            except Exception:  # noqa: BLE001, S110 - `decode` says what is wrong
                pass
            else:
                return call(payload)
        return call(decode(message))

    return decoded_once


def decoded_batch(call: Callable[..., Awaitable[Any]], decode: Callable[[Message], Any]) -> HandleBatch:
    """Decodes each message first; those that cannot be decoded fail alone, and the handler gets the rest."""

    async def each_decoded(messages: list[Message]) -> None:
        payloads: list[Any] = []
        indices: list[int] = []
        errors: dict[int, BaseException] = {}
        for index, message in enumerate(messages):
            try:
                payloads.append(decode(message))
                indices.append(index)
            except Unprepared:
                raise  # of all: those behind it must not overtake it
            except Exception as error:  # noqa: BLE001 - that message's own failure
                errors[index] = error
        await partly(call, payloads, indices, errors)

    return each_decoded
