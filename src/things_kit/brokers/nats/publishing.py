"""What is published at once, and what comes back for each."""

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import msgspec
from nats.aio.msg import Msg

from things_kit.brokers.nats.connection import Outgoing
from things_kit.brokers.nats.errors import ERRORS, NoResponders, Refused, confirmation
from things_kit.brokers.nats.options import check_topic
from things_kit.engine.driver import UnknownTopic
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError

AT_ONCE: Final = 500
"""Messages whose confirmations are waited for together: a stream has room for so many that are on their way."""

BYTES_AT_ONCE: Final = 1_000_000


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
