"""Transforms at work: applied before a message is sent, undone before it is decoded."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from things_kit.engine.backoff import Backoff
from things_kit.messaging.errors import BrokerUnavailable, DecodeError, ThingsKitError
from things_kit.messaging.handler import HandleBatch
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_ENCODING, in_any_case
from things_kit.messaging.outcomes import BatchError
from things_kit.messaging.transform import Transform, encoded, encoding, with_id

Undo: TypeAlias = Callable[[Message], Awaitable[Message]]

OURS: Final = frozenset({"zstd", "gzip", "aes-gcm", "claim-check"})
"""Tokens that the kit's own transforms write."""

NOTHING: Final = "identity"
"""The token that says that nothing was done."""


async def apply(transforms: Sequence[Transform], message: Message, timeout: float) -> Message:
    """Change a message from left to right, once its id is set.

    Raises BrokerUnavailable if a store is away for longer than `timeout` seconds.
    """
    message = with_id(message)
    deadline = asyncio.get_running_loop().time() + timeout
    for transform in transforms:
        message = encoded(message, await _patiently(transform, message, deadline, timeout))
    return message


async def _patiently(transform: Transform, message: Message, deadline: float, timeout: float) -> Any:
    backoff = Backoff()
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                applied = transform.apply(message)
                return await applied if inspect.isawaitable(applied) else applied
        except ThingsKitError:
            raise
        except Exception as error:
            if asyncio.get_running_loop().time() >= deadline:
                what = type(transform).__name__
                why = str(error) or type(error).__name__
                raise BrokerUnavailable(f"{what} failed for {timeout:g} s: {why}") from error
        await backoff.wait(deadline)


def undoing(transforms: Sequence[Transform], of_topics: Mapping[str, Sequence[Transform]]) -> Undo | None:
    """A function that undoes what was done to a message: by its topic's transforms where that has some.

    None where there is nothing to undo.
    """
    if not transforms and not any(of_topics.values()):
        return None
    plain = _by_token(transforms)
    topics = {topic: _by_token(each) for topic, each in of_topics.items() if each}

    async def undo(message: Message) -> Message:
        return await _undone(message, topics.get(message.topic, plain))

    return undo


def _by_token(transforms: Sequence[Transform]) -> dict[str, Transform]:
    return {token: transform for transform in transforms for token in transform.tokens}


async def _undone(message: Message, by_token: Mapping[str, Transform]) -> Message:
    """A user's own encoding, which stood in front, is left; one that nobody undoes is a DecodeError."""
    header = in_any_case(message.headers, CONTENT_ENCODING) or ""
    tokens = [token for part in header.split(",") if (token := part.strip()) and token.lower() != NOTHING]
    seen: set[int] = set()
    while tokens and (transform := by_token.get(tokens[-1].lower())) is not None:
        undone = transform.undo(message, tokens.pop().lower())
        message = encoding(await undone if inspect.isawaitable(undone) else undone, ", ".join(tokens))
        seen.add(id(transform))
    if tokens and (not seen or tokens[-1].lower() in OURS):
        raise DecodeError(f"nothing here undoes the content-encoding {tokens[-1]!r}")
    for transform in by_token.values():
        if transform.required and id(transform) not in seen:
            raise DecodeError(f"the message was not made by {type(transform).__name__}, which is required")
    return message


def undone_first(
    handle: Callable[[Message], Awaitable[Any]], undo: Undo
) -> Callable[[Message], Awaitable[Any]]:
    """The step, for messages as they were before any transform."""

    async def undone(message: Message) -> Any:
        return await handle(await undo(message))

    return undone


def batch_undone_first(handle: HandleBatch, undo: Undo) -> HandleBatch:
    """The same for a list; a message that cannot be undone fails alone."""

    async def undone(messages: list[Message]) -> None:
        good: list[Message] = []
        indices: list[int] = []
        errors: dict[int, BaseException] = {}
        for index, message in enumerate(messages):
            try:
                good.append(await undo(message))
            except DecodeError as error:
                errors[index] = error
            else:
                indices.append(index)
        await partly(handle, good, indices, errors)

    return undone


async def partly(
    call: Callable[..., Awaitable[Any]],
    items: list[Any],
    indices: list[int],
    errors: dict[int, BaseException],
) -> None:
    """Call with what is left of a batch, of which `errors` names the rest; raises BatchError for all that failed."""
    if items:
        try:
            await call(items)
        except BatchError as failed:
            moved = failed.moved(indices)
            errors |= dict.fromkeys(indices, failed) if moved is None else moved.errors
        except Exception as error:
            if not errors:
                raise
            errors |= dict.fromkeys(indices, error)
    if errors:
        raise BatchError(errors)
