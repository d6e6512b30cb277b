"""Messages for later, which the server keeps: its message schedules, from 2.12 on.

A scheduled message is one of the topic's own stream, on a subject of its own. When it is due the server publishes it to the
topic and deletes it, in one step: `tk-later.STREAM.TOPIC.=nNAME`, or `=p` and the publish's id for one without a name.

The server takes what is due, and only then stores it in the topic. A message that is taken back or replaced in between comes
all the same; worse, its end takes away the one that replaced it. So we stay clear of that moment, by the server's own
clock: what is due within `MARGIN` is as good as due. Where a change was under way for longer than that, nothing is
sure: then it is made again, or the message is sent, and may come twice.
"""

import asyncio
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import msgspec
from nats.aio.msg import Msg

from things_kit.brokers.nats.admin import Streams
from things_kit.brokers.nats.connection import Connection, encoded
from things_kit.brokers.nats.errors import NoResponders, Refused, answer
from things_kit.brokers.nats.options import Settings, check_topic, escaped, later_subjects
from things_kit.brokers.nats.publishing import AT_ONCE, Row, impossible, judged, pages, refusal_of, too_large
from things_kit.brokers.nats.shelves import Shelf, Shelves
from things_kit.brokers.nats.wire import envelope, later_headers, read_headers, read_later, size_of
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Scheduled, UnknownTopic
from things_kit.engine.publishes import PublishIds
from things_kit.messaging.errors import ConfigError, UnsupportedError
from things_kit.messaging.message import Message

MARGIN: Final = 0.25
"""Seconds before its time from which on a message is left alone."""

PAUSE: Final = 0.1
"""Seconds until a message that is as good as due is looked for again."""

LATEST: Final = datetime(2262, 1, 1, tzinfo=UTC)
"""The server counts nanoseconds since 1970 in 64 bits."""

EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"

WRONG_SEQUENCE: Final = 10071
DISABLED: Final = 10188

Result: TypeAlias = Exception | None

Clock: TypeAlias = Callable[[], float]
"""Seconds since 1970 that the clock of a stream's server shows now, at the most."""


class Kept(msgspec.Struct, frozen=True):
    """What a stream keeps on a subject."""

    seq: int
    message: Message
    due: datetime
    schedule_id: str | None

    @property
    def at(self) -> float:
        """When it is due, in seconds since 1970."""
        return self.due.timestamp()


class Scheduler:
    """What a driver has whose server keeps messages for later."""

    def __init__(
        self,
        settings: Settings,
        connected: Callable[[], Awaitable[Connection]],
        streams: Callable[[Connection], Streams],
        send: Callable[[Sequence[Message]], Awaitable[Sequence[Result]]],
        publishes: PublishIds,
    ) -> None:
        self._settings = settings
        self._connected = connected
        self._streams = streams
        self._send = send
        self._publishes = publishes
        self._shelves: dict[str, Shelf] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def _schedules(self) -> "Schedules":
        connection = await self._connected()
        return Schedules(connection, self._settings, self._streams(connection), self._shelves, self._turns)

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Result]:
        """Have the server keep them; what has no name, and is due, is sent."""
        now, results = steady(), list[Result]([None] * len(entries))
        due: list[int] = []
        later: list[int] = []
        for index, entry in enumerate(entries):
            sent = entry.schedule_id is None and entry.due.timestamp() <= now
            (due if sent else later).append(index)
        if later:
            kept = [entries[index] for index in later]
            with self._publishes.of([entry.message for entry in kept]) as ids:
                found = await (await self._schedules()).keep(kept, ids, now)
            for index, result in zip(later, found, strict=True):
                results[index] = result
        if due:
            found = await self._send([entries[index].message for index in due])
            for index, result in zip(due, found, strict=True):
                results[index] = result
        return results

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Take a scheduled message back, if that is sure to be in time."""
        check_topic(topic)
        cancelled = await (await self._schedules()).cancel(topic, schedule_id)
        if isinstance(cancelled, bool):
            return cancelled
        await self._send([cancelled])
        return False

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What the topic's stream keeps for later."""
        check_topic(topic)
        return await (await self._schedules()).upcoming(topic, limit)


class Schedules:
    """Keeps, takes back and lists messages for later, through one connection."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        streams: Streams,
        shelves: dict[str, Shelf],
        turns: WeakValueDictionary[str, asyncio.Lock],
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._streams = streams
        self._at = Shelves(streams)
        self._shelves = shelves
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._envelope = envelope()

    # --- keeping

    async def keep(self, entries: Sequence[Scheduled], ids: Sequence[str], now: float) -> Sequence[Result]:
        """Publish each to a subject of its own. Raises ConnectionLost."""
        results: list[Result] = [None] * len(entries)
        shelves = {topic: await self._shelf(topic) for topic in {entry.message.topic for entry in entries}}
        named: dict[tuple[str, str], Row] = {}
        plain: list[Row] = []
        for row in self._rows(entries, ids, shelves, results, now):
            entry = entries[row[0]]
            if entry.schedule_id is None:
                plain.append(row)
            else:  # of two with one name the later one stays
                named[entry.message.topic, entry.schedule_id] = row
        for page in pages(plain):
            for (index, _, _), came in zip(page, await self._publish(page), strict=True):
                results[index] = judged(entries[index].message.topic, came)
        for topic, shelf in shelves.items():
            if isinstance(shelf, Shelf) and (own := [row for key, row in named.items() if key[0] == topic]):
                async with self._turns.setdefault(
                    topic, asyncio.Lock()
                ):  # or each would undo all the others' work
                    await self._replace(topic, shelf, own, results)
        for result in results:
            if isinstance(result, ConnectionLost):
                raise result
        return results

    async def _shelf(self, topic: str) -> Shelf | Exception:
        """Where a topic's messages are kept, or why they are not. Raises ConnectionLost."""
        if topic in self._shelves:
            return self._shelves[topic]
        if refused := impossible([topic]):
            return refused[topic]
        try:
            shelf = await self._at.of(topic, change=self._settings.url.engine.declare)
        except (ConfigError, UnsupportedError) as error:
            return error
        if shelf is None:
            return UnknownTopic(topic)
        self._shelves[topic] = shelf
        return shelf

    def _rows(
        self,
        entries: Sequence[Scheduled],
        ids: Sequence[str],
        shelves: Mapping[str, Shelf | Exception],
        results: list[Result],
        now: float,
    ) -> Iterator[Row]:
        """What is published; what cannot be has its result at once."""
        most = self._connection.max_payload
        for index, entry in enumerate(entries):
            message, topic = entry.message, entry.message.topic
            shelf = shelves[topic]
            if isinstance(shelf, Exception):
                results[index] = shelf
                continue
            headers = later_headers(message, self._envelope, entry.due, entry.schedule_id, ids[index])
            subject = _subject(shelf.stream, topic, entry.schedule_id, ids[index])
            size = size_of(headers, message.value)
            if size > most:
                results[index] = too_large(topic, size, most)
            elif entry.due >= LATEST or 0 < shelf.max_age <= entry.due.timestamp() - now:
                results[index] = _too_far(entry, shelf)
            else:
                yield index, (subject, message.value, headers), size

    async def _publish(self, page: Sequence[Row]) -> Sequence[Msg | Exception]:
        """What came back for each. Raises ConnectionLost, too, where the stream is no longer what it was."""
        came = await self._connection.exchange([outgoing for _, outgoing, _ in page])
        if any(isinstance(each, NoResponders) or refusal_of(each) == DISABLED for each in came):
            raise self._gone()
        return came

    def _gone(self) -> ConnectionLost:
        """A stream is not what it was; the engine tries again, and looks for it anew."""
        self._shelves.clear()
        return ConnectionLost("a stream that kept messages for later is gone, or has no leader")

    async def _replace(self, topic: str, shelf: Shelf, rows: Sequence[Row], results: list[Result]) -> None:
        """Publish what has a name in the place of what has the same, once that is not about to come."""
        left = list(rows)
        while left:
            clock = await self._clock(shelf.stream)
            there = await self._read(shelf.stream, [subject for _, (subject, _, _), _ in left])
            again: list[Row] = []
            free: list[Row] = []
            olds: dict[int, Kept | None] = {}
            for row, old in zip(left, there, strict=True):
                if old is not None and old.at - clock() < MARGIN:
                    again.append(row)
                else:
                    olds[row[0]] = old
                    free.append(_expecting(row, old))
            for page in pages(free):
                for row, came in zip(page, await self._publish(page), strict=True):
                    old = olds[row[0]]
                    if refusal_of(came) == WRONG_SEQUENCE or (old is not None and clock() >= old.at):
                        again.append(row)
                    else:
                        results[row[0]] = judged(topic, came)
            left = again
            if left and not free:
                await asyncio.sleep(PAUSE)

    # --- taking back

    async def cancel(self, topic: str, schedule_id: str) -> bool | Message:
        """Whether it was taken back for sure; the message, if it was not known to be in time. Raises ConnectionLost."""
        stream, failed = await self._streams.find(topic), 0
        while stream is not None:
            clock = await self._clock(stream)
            [there] = await self._read(stream, [_subject(stream, topic, schedule_id)])
            if there is None or there.at - clock() < MARGIN:
                return False
            if there.seq == failed:
                raise ConfigError(f"the stream {stream!r} of {topic!r} lets nobody delete its messages")
            if await self._at.delete(stream, there.seq):
                return there.message if clock() >= there.at else True
            failed = there.seq  # somebody else has replaced it
        return False

    # --- looking

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What is kept for a topic, soonest first. Raises ConnectionLost."""
        stream = await self._streams.find(topic)
        if stream is None:
            return ()
        subjects = await self._at.subjects(stream, later_subjects(stream, topic))
        found = [each for each in await self._read(stream, subjects) if each is not None]
        found.sort(key=lambda each: (each.due, each.seq))
        return [Scheduled(each.message, each.due, each.schedule_id) for each in found[:limit]]

    async def _read(self, stream: str, subjects: Sequence[str]) -> list[Kept | None]:
        where = f"{self._settings.api}.STREAM.MSG.GET.{stream}"
        found: list[Kept | None] = []
        for start in range(0, len(subjects), AT_ONCE):
            some = subjects[start : start + AT_ONCE]
            asked = [(where, encoded({"last_by_subj": subject}), None) for subject in some]
            found += map(self._kept, await self._connection.exchange(asked))
        return found

    def _kept(self, came: Msg | Exception) -> Kept | None:
        if isinstance(came, Exception):
            raise self._gone() from came
        try:
            told: Mapping[str, Any] = answer(came.data)["message"]
            raw = read_headers(b64decode(told.get("hdrs", "")))
            return Kept(told["seq"], *read_later(raw, b64decode(told.get("data", "")), self._envelope))
        except (Refused, KeyError, ValueError):  # it is no more, or is somebody else's
            return None

    async def _clock(self, stream: str) -> Clock:
        """The clock of whoever leads a stream. Raises ConnectionLost."""
        asked = self._loop.time()
        info = await self._streams.stream(stream)
        if info is None:
            raise self._gone()
        then = datetime.fromisoformat(info["ts"]).timestamp()
        return lambda: then + self._loop.time() - asked


def _subject(stream: str, topic: str, schedule_id: str | None, publish: str = "") -> str:
    own = f"=p{escaped(publish)}" if schedule_id is None else f"=n{escaped(schedule_id)}"
    return later_subjects(stream, topic).removesuffix(">") + own


def _expecting(row: Row, old: Kept | None) -> Row:
    """The same, to be taken only if nobody has replaced what was there."""
    index, (subject, value, headers), size = row
    expected = {**(headers or {}), EXPECTED: str(0 if old is None else old.seq)}
    return index, (subject, value, expected), size


def _too_far(entry: Scheduled, shelf: Shelf) -> UnsupportedError:
    if entry.due >= LATEST:
        return UnsupportedError(f"NATS keeps no message until {entry.due}: its clock ends in 2262")
    return UnsupportedError(
        f"the stream {shelf.stream!r} keeps messages for {shelf.max_age:g} s (max_age), and not until {entry.due}"
    )
