"""Names for publishes, for brokers that drop what they have had before."""

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeAlias, runtime_checkable

from things_kit.messaging.message import Message

MOST: Final = 20_000
"""Publishes of which nobody knows how they ended that are remembered: twice what one `send` has."""

_What: TypeAlias = tuple[object, ...]


class Named(Message, frozen=True, gc=False):
    """A message to be sent whose publish has a name already, which outlives this process; without one it gets an id."""

    publish: str | None = None


@runtime_checkable
class Identified(Protocol):
    """What a driver has as well whose broker can be told from all others, and whose offsets stay as they are."""

    async def source(self) -> str:
        """A random text that was stored with the topics when they were made."""


class PublishIds:
    """Gives every publish an id of its own, and the same one again when the engine sends it once more.

    A message's own id is no such name: it is the user's, so that two different messages may have it (a bridge, a handler
    that forwards, one id in several topics), and one message may be published twice on purpose (a replay). A broker that
    deduplicates by it would confirm the second and drop it.
    """

    def __init__(self) -> None:
        self._unconfirmed: OrderedDict[_What, list[str]] = OrderedDict()

    @contextmanager
    def of(self, messages: Sequence[Message]) -> Iterator[list[str]]:
        """The ids, by index, for one `send`. If it is left by an error, or cancelled, what is equal gets them again."""
        batch = secrets.token_hex(12)  # one draw of entropy for all
        ids = [f"{batch}-{index}" for index in range(len(messages))]
        if self._unconfirmed or isinstance(messages[0], Named):
            ids = [self._known(message) or new for message, new in zip(messages, ids, strict=True)]
        try:
            yield ids
        except BaseException:
            for message, identity in zip(messages, ids, strict=True):
                if identity != _name(message):
                    self._unconfirmed.setdefault(_what(message), []).append(identity)
            while len(self._unconfirmed) > MOST:
                self._unconfirmed.popitem(last=False)
            raise

    def _known(self, message: Message) -> str | None:
        if (name := _name(message)) is not None:
            return name
        what = _what(message)
        ids = self._unconfirmed.get(what)
        if ids is None:
            return None
        found = ids.pop(0)
        if not ids:
            del self._unconfirmed[what]
        return found


def _name(message: Message) -> str | None:
    return message.publish if isinstance(message, Named) else None


def _what(message: Message) -> _What:
    """What makes a message the same one: its value and headers as hashes, so that none is kept for this."""
    headers = hash(frozenset(message.headers.items()))
    return message.topic, message.id, message.key, message.timestamp, hash(message.value), headers
