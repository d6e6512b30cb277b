"""Which attempt a redelivery is, where the server's count of deliveries does not say.

The server counts how often it handed a message out. That is the attempt, but for what was given back without having
been handled, as by a consumer that stops, and for retries within the process. For these a note is kept: the last
message of a subject of its own, in the stream `things-kit-attempts`. It says of one delivery which attempt comes next;
deliveries after that count again, as those of a process that dies. The mark of a suspect is in its note, too.
"""

import logging
from base64 import b64decode
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from nats.aio.msg import Msg

from things_kit.brokers.nats.connection import Connection, Outgoing, encoded
from things_kit.brokers.nats.errors import NoResponders, Refused, answer
from things_kit.brokers.nats.options import Settings
from things_kit.brokers.nats.wire import Coordinates
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.nats")

STREAM: Final = "things-kit-attempts"
SUBJECT: Final = "tk-attempts"

KEPT: Final = 14 * 86_400
"""Seconds for which notes are kept."""

AT_ONCE: Final = 500


class Note(msgspec.Struct, frozen=True):
    """After so many deliveries of the message that was stored at that time, this is the next attempt, and this its mark."""

    stored: int
    delivered: int
    attempt: int
    suspect: int = 0


class Recalled(NamedTuple):
    """Which attempt a delivery is, and with which it was marked as a suspect; 0 for never."""

    attempt: int
    suspect: int


_note: Final = msgspec.json.Decoder(Note).decode


class Attempts:
    """Notes and recalls attempts, through one connection. Without the right to do so it says so, and goes on without."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._complained = False

    async def note(self, released: Sequence[tuple[Coordinates, int]], suspect: int = 0) -> bool:
        """Keep the next attempts of these, before they are given back; whether that could be. Raises ConnectionLost.

        None is needed where the next attempt is the one after this delivery's, and there is no mark.
        """
        due = [
            (_subject(at), msgspec.json.encode(Note(at.stored, at.delivered, attempt, suspect)), None)
            for at, attempt in released
        ]
        for start in range(0, len(due), AT_ONCE):
            page = due[start : start + AT_ONCE]
            came = await self._connection.exchange(page)
            if any(isinstance(each, NoResponders) for each in came) and await self._create():
                came = await self._connection.exchange(page)
            if refused := next((each for each in came if isinstance(each, Exception)), None):
                self._complain(refused)
                return False
        return True

    def _complain(self, why: Exception) -> None:
        if not self._complained:
            log.warning("what is given back unhandled counts as an attempt, as no notes can be kept: %s", why)
        self._complained = True

    async def _create(self) -> bool:
        options = self._settings.options
        if not self._settings.url.engine.declare:
            self._complain(ConfigError(f"there is no stream {STREAM}, and the URL says declare=false"))
            return False
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
                description="Attempts of messages that were given back to their group",
            )
        except (Refused, NoResponders, ConfigError) as error:
            self._complain(error)
            return False
        return True

    async def recall(self, deliveries: Sequence[Coordinates]) -> dict[int, Recalled]:
        """What is noted of these, by their sequence; none for those that the server's count is right for."""
        found: dict[int, Recalled] = {}
        where = f"{self._settings.api}.STREAM.MSG.GET.{STREAM}"
        for start in range(0, len(deliveries), AT_ONCE):
            page = deliveries[start : start + AT_ONCE]
            asked: list[Outgoing] = [(where, encoded({"last_by_subj": _subject(at)}), None) for at in page]
            for at, came in zip(page, await self._connection.exchange(asked), strict=True):
                note = _read(came)
                if note is not None and note.stored == at.stored and note.delivered < at.delivered:
                    attempt = note.attempt + at.delivered - note.delivered - 1
                    found[at.seq] = Recalled(attempt, note.suspect)
        return found

    async def forget(self, gone: str) -> None:
        """A stream, or `STREAM.CONSUMER`, is gone. Raises ConnectionLost."""
        await self._connection.exchange(
            [
                (
                    f"{self._settings.api}.STREAM.PURGE.{STREAM}",
                    encoded({"filter": f"{SUBJECT}.{gone}.>"}),
                    None,
                )
            ]
        )


def _subject(at: Coordinates) -> str:
    return f"{SUBJECT}.{at.stream}.{at.consumer}.{at.seq}"


def _read(came: Msg | Exception) -> Note | None:
    if isinstance(came, Exception):
        return None
    try:
        return _note(b64decode(answer(came.data)["message"].get("data", "")))
    except (Refused, KeyError, ValueError, msgspec.MsgspecError):
        return None
