"""What a stream knows each publish by: the same id when it is sent again after a lost connection, else never the same.

A stream keeps one message of each `Nats-Msg-Id` within its duplicate window, and confirms the others without keeping
them. So that id must belong to a publish: two topics of one stream, a bridge or a handler that forwards publish
different messages of one id.
"""

import asyncio
import secrets
from collections.abc import Sequence

import msgspec

from things_kit.messaging.message import Message


class _Doubtful(msgspec.Struct, frozen=True):
    message: Message  # held, so that nobody else has its identity meanwhile
    publication: str
    until: float


class Publications:
    """Ids of publishes. One that is sent again is known by its `Message`, the very same object.

    Args:
        span: Seconds for which a publish may be sent again.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._doubtful: dict[int, _Doubtful] = {}

    def of(self, messages: Sequence[Message]) -> list[str]:
        """An id for each of these."""
        fresh = secrets.token_hex(8)
        ids = [f"{fresh}-{index}" for index in range(len(messages))]
        if self._doubtful:
            self._forget_late()
            for index, message in enumerate(messages):
                if (known := self._doubtful.get(id(message))) is not None:
                    ids[index] = known.publication
        return ids

    def doubt(self, messages: Sequence[Message], ids: Sequence[str]) -> None:
        """Nobody knows whether these were stored; they may be sent again."""
        until = asyncio.get_running_loop().time() + self._span
        for message, publication in zip(messages, ids, strict=True):
            self._doubtful[id(message)] = _Doubtful(message, publication, until)

    def settled(self, messages: Sequence[Message]) -> None:
        """These are stored, or refused."""
        if self._doubtful:
            for message in messages:
                self._doubtful.pop(id(message), None)

    def _forget_late(self) -> None:
        now = asyncio.get_running_loop().time()
        for key in [key for key, doubtful in self._doubtful.items() if doubtful.until < now]:
            del self._doubtful[key]
