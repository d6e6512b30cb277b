"""Marks of messages that may kill the processes that handle them, kept in a stream of their own.

A mark is the last message of a subject that names the delivery's consumer and its place in the stream.
"""

from base64 import b64decode
from collections.abc import Sequence
from typing import Final

import msgspec
from nats.aio.msg import Msg

from things_kit.brokers.nats.connection import Connection, Outgoing, encoded
from things_kit.brokers.nats.errors import ERRORS, NoResponders, Refused, answer
from things_kit.brokers.nats.options import Settings
from things_kit.brokers.nats.wire import Coordinates
from things_kit.messaging.errors import ConfigError

STREAM: Final = "things-kit-suspects"
SUBJECT: Final = "tk-suspects"

KEPT: Final = 14 * 86_400
"""Seconds for which marks are kept."""


class Mark(msgspec.Struct, frozen=True):
    """With which attempt the message that was stored at that time was marked; 0: not any more."""

    stored: int
    suspect: int = 0


_mark: Final = msgspec.json.Decoder(Mark).decode


class Marks:
    """Keeps and finds marks, through one connection."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings

    async def put(self, deliveries: Sequence[Coordinates], suspect: int) -> None:
        """Mark these. Raises ConnectionLost, and ConfigError without the right to do so."""
        due: list[Outgoing] = [
            (_subject(at), msgspec.json.encode(Mark(at.stored, suspect)), None) for at in deliveries
        ]
        came = await self._connection.exchange(due)
        if any(isinstance(each, NoResponders) for each in came):
            await self._create()
            came = await self._connection.exchange(due)
        for each in came:
            if isinstance(each, Exception):
                raise ERRORS.translate(each, "marking a message")

    async def _create(self) -> None:
        if not self._settings.url.engine.declare:
            raise ConfigError(f"there is no stream {STREAM}, and the URL says declare=false")
        options = self._settings.options
        try:
            await self._connection.ask(
                f"STREAM.CREATE.{STREAM}",
                name=STREAM,
                subjects=[f"{SUBJECT}.>"],
                retention="limits",
                storage=options.storage,
                num_replicas=options.replicas,
                max_msgs_per_subject=1,
                max_age=KEPT * 1_000_000_000,
                duplicate_window=1_000_000_000,
                description="Marks of messages that may kill the processes that handle them",
            )
        except (Refused, NoResponders) as error:
            raise ERRORS.translate(error, f"creating the stream {STREAM}") from error

    async def of(self, deliveries: Sequence[Coordinates]) -> dict[int, int]:
        """The marks of these, by their sequence. Raises ConnectionLost."""
        where = f"{self._settings.api}.STREAM.MSG.GET.{STREAM}"
        asked: list[Outgoing] = [(where, encoded({"last_by_subj": _subject(at)}), None) for at in deliveries]
        came = zip(deliveries, await self._connection.exchange(asked), strict=True)
        marks = {at.seq: (at, _read(each)) for at, each in came}
        return {seq: mark.suspect for seq, (at, mark) in marks.items() if mark and mark.stored == at.stored}

    async def forget(self, gone: str) -> None:
        """A stream, or `STREAM.CONSUMER`, is gone. Raises ConnectionLost."""
        where = f"{self._settings.api}.STREAM.PURGE.{STREAM}"
        await self._connection.exchange([(where, encoded({"filter": f"{SUBJECT}.{gone}.>"}), None)])


def _subject(at: Coordinates) -> str:
    return f"{SUBJECT}.{at.stream}.{at.consumer}.{at.seq}"


def _read(came: Msg | Exception) -> Mark | None:
    if isinstance(came, Exception):
        return None
    try:
        return _mark(b64decode(answer(came.data)["message"].get("data", "")))
    except (Refused, KeyError, ValueError, msgspec.MsgspecError):
        return None
