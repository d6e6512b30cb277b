"""What is published at once, and what comes back for each."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, TypeAlias

import msgspec
from nats.aio.msg import Msg

from things_kit.brokers.nats.connection import Answers, Connection, Outgoing
from things_kit.brokers.nats.errors import ERRORS, NoResponders, Refused, confirmation
from things_kit.brokers.nats.options import check_topic
from things_kit.engine.driver import UnknownTopic
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError

AT_ONCE: Final = 500
"""Messages whose confirmations are waited for together."""

BYTES_AT_ONCE: Final = 1_000_000

PAGES: Final = 8
"""So many of these are on their way at once: a server that is far off is never idle, and a stream has room for them."""


Row: TypeAlias = tuple[int, Outgoing, int]
"""The index of a message, how it is sent, and the bytes of that."""


def pages(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """What is sent at once."""
    page: list[Row] = []
    size = 0
    for row in rows:
        page.append(row)
        size += row[2]
        if len(page) >= AT_ONCE or size >= BYTES_AT_ONCE:
            yield page
            page, size = [], 0
    if page:
        yield page


async def exchanged(
    connection: Connection, paged: Iterable[list[Row]]
) -> AsyncIterator[tuple[list[Row], list[Msg | Exception]]]:
    """Send these in order, and each with what came back for it. Raises ConnectionLost."""
    underway: deque[tuple[list[Row], Answers]] = deque()
    try:
        for page in paged:
            underway.append((page, await connection.begin([outgoing for _, outgoing, _ in page])))
            if len(underway) == PAGES:
                yield underway[0][0], await connection.answered(underway[0][1])
                underway.popleft()
        while underway:
            yield underway[0][0], await connection.answered(underway[0][1])
            underway.popleft()
    finally:
        for _, answers in underway:
            connection.forget(answers)


def too_large(topic: str, size: int, most: int) -> MessageTooLarge:
    """Why a message of so many bytes cannot be sent."""
    return MessageTooLarge(
        f"a message for {topic!r} has {size} bytes with its headers; this server takes {most}"
    )


def impossible(topics: Iterable[str]) -> dict[str, PublishError]:
    """Why these topics cannot be, for those that cannot."""
    refused: dict[str, PublishError] = {}
    for topic in topics:
        try:
            check_topic(topic)
        except ConfigError as error:
            refused[topic] = PublishError(str(error))
    return refused


def judged(topic: str, came: Msg | Exception) -> Exception | None:
    """The result for one message, by what came back for it. UnknownTopic: nobody answered."""
    if isinstance(came, NoResponders):
        return UnknownTopic(topic)
    if isinstance(came, Exception):
        return came
    try:
        confirmed = confirmation(came.data)
    except msgspec.MsgspecError as error:
        refused = PublishError(f"publishing to {topic!r}: somebody answered who is no stream")
        refused.__cause__ = error
        return refused
    return None if confirmed.error is None else ERRORS.refusal(Refused(confirmed.error), topic)


def refusal_of(came: Msg | Exception) -> int:
    """The code of the error with which a stream has refused a message; 0 for all else."""
    if isinstance(came, Exception):
        return 0
    try:
        refusal = confirmation(came.data).error
    except msgspec.MsgspecError:
        return 0
    return refusal.err_code if refusal is not None else 0
