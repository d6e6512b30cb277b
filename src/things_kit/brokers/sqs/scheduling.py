"""What comes later: copies in the queues of all groups that there are, which SQS delays for up to fifteen minutes.

They are visible by the whole second before they are due, or after fifteen minutes, and say themselves when they are due: the
engine of who receives them has them wait on, hidden for as long as that is a second or more.
"""

from collections.abc import Sequence
from typing import Final

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.admin import Admin
from things_kit.brokers.sqs.publisher import Destination, Item
from things_kit.brokers.sqs.queue import MOST_DELAYED
from things_kit.brokers.sqs.wire import Entry, pack
from things_kit.engine.clock import steady
from things_kit.engine.driver import Scheduled, UnknownTopic
from things_kit.engine.listeners import nobody_listens
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError, UnsupportedError
from things_kit.messaging.names import REPLAY_GROUP

LONGEST: Final = 14 * 86_400
"""Seconds for which a queue keeps a message at the most."""


async def destined(
    entries: Sequence[Scheduled], admin: Admin, limit: int, results: list[Exception | None]
) -> list[Destination]:
    """The copies by where they go; those that cannot be sent have their result. Raises ConnectionLost."""
    known: dict[tuple[str, str | None], list[Destination] | Exception] = {}
    for index, entry in enumerate(entries):
        message = entry.message
        where = message.topic, message.headers.get(REPLAY_GROUP)
        if where not in known:
            known[where] = await _destinations(admin, *where)
        destinations = known[where]
        if isinstance(destinations, Exception):
            results[index] = destinations
            continue
        try:
            item = _item(index, entry, limit)
        except (MessageTooLarge, UnsupportedError) as error:
            results[index] = error
            continue
        for destination in destinations:
            destination.items.append(item)
    return [each for found in known.values() if isinstance(found, list) for each in found]


async def _destinations(admin: Admin, topic: str, group: str | None) -> list[Destination] | Exception:
    if names.is_fifo(topic):
        return UnsupportedError(
            f"{topic!r} cannot keep a message until later: in a FIFO queue SQS delays none by itself"
        )
    try:
        if group is None:
            urls = await admin.queues(topic)
        else:
            url = await admin.queue_url(topic, group)
            urls = [] if url is None else [url]
    except ConfigError as error:
        return PublishError(str(error))
    if urls is None:
        return UnknownTopic(topic)
    return [Destination(topic, None, url, []) for url in urls] or nobody_listens(topic)


def _item(index: int, entry: Scheduled, limit: int) -> Item:
    """Raises UnsupportedError, MessageTooLarge."""
    message, due = entry.message, entry.due.timestamp()
    wait = due - steady()
    if wait > LONGEST:
        raise UnsupportedError(
            f"SQS keeps a message for up to {LONGEST // 86_400} days: {entry.due:%Y-%m-%d %H:%M} is too far ahead"
        )
    parcel = pack(message, limit, due=due if wait > 0 else None)
    packed: Entry = {"MessageBody": parcel.body, "MessageAttributes": parcel.attributes}
    if delayed := min(MOST_DELAYED, int(max(0.0, wait))):
        packed["DelaySeconds"] = delayed
    return Item(index, packed, parcel.size, message.key)
