"""What comes later: kept at the server beside its stream, to which it is added when it is due (see `scripts`).

Whoever sends or receives adds what is due. That it is done in time, and not with the next look, is the work of every process that has
heard of it: one that scheduled it, or one that receives and has looked, which it does every second. A call that blocks at the
server is not the means: on a quiet server it ends up to 0.1 seconds late (`hz`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.errors import ERRORS, result_of
from things_kit.brokers.redis.keys import topic_keys
from things_kit.engine.cancelling import ended
from things_kit.engine.driver import ConnectionLost, Scheduled
from things_kit.engine.envelope import EPOCH
from things_kit.messaging.errors import ConfigError, PublishError

if TYPE_CHECKING:
    from things_kit.brokers.redis.driver import RedisDriver

log = logging.getLogger("things_kit.redis")

CHUNK: Final = 8 * 2**20
"""Bytes after which a batch goes on in another round trip, so that each stays within the time for an answer."""

PAGE: Final = 1000
"""Messages that one script is asked to keep: a server does nothing else meanwhile."""

HORIZON: Final = 1.5
"""Seconds ahead for which a process waits to add what is due: a little more than what lies between two looks."""

PAUSE: Final = 0.005
"""Seconds between two times at which that is done: what is due in between goes together."""

MOST_WORDS: Final = 7000
"""Names and values that a script can add to a stream: Lua has a bound of 8000."""

Row: TypeAlias = tuple[int, str, bytes]
"""When it is due, its name, and what it is packed."""


class Timetable:
    """Schedules, and adds to their streams what is known to be due soon."""

    def __init__(self, home: "RedisDriver", client: Any) -> None:
        self._home = home
        self._client = client
        self._soon: dict[str, float] = {}  # topics, and when something of theirs is due
        self._sooner = asyncio.Event()
        self._carrying: asyncio.Task[None] | None = None

    async def schedule(self, entries: Sequence[Scheduled]) -> list[Exception | None]:
        """Keep them, in as few round trips as their size allows. Raises ConnectionLost."""
        results: list[Exception | None] = [None] * len(entries)
        for batch in _batches(self._packed(entries, results)):
            commands = [
                scripts.SCHEDULE.command(topic_keys(topic), *(word for _, row in rows for word in row))
                for topic, rows in batch.items()
            ]
            answers = await self._home.run(commands, "scheduling")
            for (topic, rows), answer in zip(batch.items(), answers, strict=True):
                result = result_of(answer, topic)
                for index, _ in rows:
                    results[index] = result
                if result is None:
                    self.expect(topic, answer)
        return results

    def _packed(
        self, entries: Sequence[Scheduled], results: list[Exception | None]
    ) -> Iterator[tuple[int, str, Row]]:
        """Of each its place, its topic and what a script gets; what cannot be has its result."""
        for index, entry in enumerate(entries):
            words = self._home.words(entry.message)
            if len(words) > MOST_WORDS:
                results[index] = PublishError(
                    f"a message for {entry.message.topic!r} has too many headers to be scheduled on Redis: "
                    f"{len(entry.message.headers)}, of about {MOST_WORDS // 2}"
                )
                continue
            due, name = (entry.due - EPOCH) // timedelta(microseconds=1), entry.schedule_id or ""
            yield index, entry.message.topic, (due, name, _joined([name, due, *words]))

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Whether it was there and not due. Raises ConnectionLost."""
        with ERRORS.during("cancelling"):
            return bool(await scripts.CANCEL(self._client, topic_keys(topic), schedule_id))

    async def upcoming(self, topic: str, limit: int) -> list[Scheduled]:
        """What waits, soonest first. Raises ConnectionLost."""
        with ERRORS.during("listing what is scheduled"):
            found = await scripts.UPCOMING(self._client, topic_keys(topic), limit)
        return [self._unpacked(topic, packed) for packed in found]

    def _unpacked(self, topic: str, packed: bytes) -> Scheduled:
        name, due, *words = _split(packed)
        [delivery] = self._home.layout.unpack(topic, [(b"0-0", words[words.index(b"*") + 1 :])])
        return Scheduled(delivery.message, EPOCH + timedelta(microseconds=int(due)), name.decode() or None)

    # --- carrying

    def expect(self, topic: str, wait: int) -> None:
        """Something is due in so many milliseconds, as the server said; -1 for nothing."""
        if not 0 <= wait <= 1000 * HORIZON:
            return
        due = asyncio.get_running_loop().time() + max(PAUSE, wait / 1000)
        if due < self._soon.get(topic, float("inf")):
            self._soon[topic] = due
            self._sooner.set()
        if self._carrying is None or self._carrying.done():
            self._carrying = asyncio.create_task(self._carry(), name="things_kit redis timetable")

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        while self._soon:
            topic = min(self._soon, key=self._soon.__getitem__)
            if (wait := self._soon[topic] - loop.time()) > 0:
                self._sooner.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._sooner.wait()
                continue
            del self._soon[topic]
            try:
                with ERRORS.during(f"carrying what is due in {topic!r}"):
                    wait = await scripts.CARRY(self._client, topic_keys(topic))
            except (ConnectionLost, ConfigError) as error:  # receivers do it as well
                log.debug("%s", error)
            else:
                self.expect(topic, wait)

    async def close(self) -> None:
        """Leave the rest to the receivers."""
        if self._carrying is not None:
            await ended(self._carrying)


def _batches(rows: Iterator[tuple[int, str, Row]]) -> Iterator[dict[str, list[tuple[int, Row]]]]:
    """By topic what goes in one round trip."""
    batch: dict[str, list[tuple[int, Row]]] = {}
    count = size = 0
    for index, topic, row in rows:
        batch.setdefault(topic, []).append((index, row))
        count, size = count + 1, size + len(row[2])
        if count == PAGE or size > CHUNK:
            yield batch
            batch, count, size = {}, 0, 0
    if batch:
        yield batch


def _joined(words: Sequence[Any]) -> bytes:
    """Words, each behind its length in four bytes: which a script takes apart."""
    parts: list[bytes] = []
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts += (len(raw).to_bytes(4), raw)
    return b"".join(parts)


def _split(packed: bytes) -> list[bytes]:
    words, start = [], 0
    while start < len(packed):
        end = start + 4 + int.from_bytes(packed[start : start + 4])
        words.append(packed[start + 4 : end])
        start = end
    return words
