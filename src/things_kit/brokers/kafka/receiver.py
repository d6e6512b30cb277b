"""The thread that receives from Kafka: a member of a group, or a reader of its own."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)  # fmt: skip

from things_kit.brokers.kafka.inbox import Inbox
from things_kit.brokers.kafka.options import (
    MAX_POLL_EXCEEDED,
    Settings,
    away,
    error_of,
    translated,
    unknown,
)  # fmt: skip
from things_kit.brokers.kafka.records import unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.offsets import LIMIT, Mark, Offsets

log = logging.getLogger("things_kit.kafka")

POLL: Final = 0.1
"""Seconds that the thread waits in one go; so late it may notice that it is to close or commit."""

COMMIT: Final = 0.02
"""Seconds between two commits, unless `max_in_flight` were acknowledged before: if this process is killed, what was
acknowledged since comes again. At full speed it makes no difference, as then those are soon acknowledged."""

UNASSIGNED: Final = 10.0
"""Seconds without a partition after which it is looked into, and again after as many."""

LIVELY: Final = 1.0
"""Seconds since something came or was acknowledged during which the thread waits no longer than to the next commit."""

PATIENCE: Final = 1.0
"""Seconds for which a full buffer is waited out before fetching is paused, which throws away what was prefetched."""

BATCH: Final = 250
"""The most records fetched in one go: more would only make the event loop wait for their unpacking."""

ANSWER: Final = 10.0
"""Seconds that the broker may take to answer a question of the receiver."""

GOODBYE: Final = 5.0
"""Seconds that the last commit may take."""


class KafkaReceiver:
    """One subscription: a thread that owns the consumer, a bounded buffer, and the offsets of its partitions.

    The thread hands whole batches to the event loop and stops fetching while the buffer is full; it goes on polling,
    so the group is kept however long the handlers take. What was acknowledged is committed a moment later.
    """

    def __init__(self, settings: Settings, subscription: Subscription) -> None:
        self._subscription = subscription
        self._topic = subscription.topic
        self._batch = min(BATCH, subscription.max_in_flight)
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(subscription.topic)
        self._joined: asyncio.Future[None] = self._loop.create_future()
        # Shared with the thread: each is written by one side only
        self._taken = 0
        self._handed = 0
        self._acknowledged = 0
        self._room = threading.Event()
        self._closing = False
        self._letting_go: Future[None] | None = None
        # Of the thread
        self._partitions: dict[int, Offsets] = {}
        self._committed: dict[int, Mark] = {}
        self._committing = False
        self._next_commit = 0.0
        self._lively_until = 0.0
        self._seen = 0
        self._full_since: float | None = None
        self._paused = False
        self._metadata_limit = LIMIT
        self._ailment: str | None = None
        self._next_look = time.monotonic() + UNASSIGNED
        self._consumer: Consumer = settings.created(
            Consumer, settings.consumer(subscription.group), on_commit=self._on_commit
        )
        self.thread = threading.Thread(
            target=self._run,
            name=f"things_kit kafka {subscription.topic} as {subscription.group}",
            daemon=True,
        )

    # --- on the loop

    async def join(self, within: float) -> None:
        """Start, and return once the partitions are known; none, where other members have them all.

        Raises:
            ConnectionLost: That took too long.
            ConfigError: The broker does not let us.
        """
        self.thread.start()
        try:
            async with asyncio.timeout(within):
                await self._joined
        except TimeoutError as error:
            self.abandon()
            raise ConnectionLost(
                f"the group {self._subscription.group!r} was not joined within {within:g} s"
            ) from error
        except BaseException:
            self.abandon()
            raise

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Take from the inbox; wait for the thread to fill it."""
        taken = await self._inbox.take(limit, wait)
        self._taken += len(taken)
        self._room.set()
        return taken

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Note what is finished; the thread commits it. What is released is not, so it comes again after us."""
        if self._inbox.failure is not None:
            raise self._inbox.failure
        for delivery in acknowledged:
            offsets, offset = delivery.token
            offsets.finish(offset)
        self._acknowledged += len(acknowledged)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def close(self) -> None:
        """Commit, and leave the group. If the broker is away, that is left to its session timeout."""
        self.abandon()
        await self._inbox.ended()

    def abandon(self) -> None:
        """Have the thread close by itself."""
        self._closing = True
        self._room.set()
        if self._letting_go is not None:
            self._letting_go.cancel()

    def _has_joined(self) -> None:
        if not self._joined.done():
            self._joined.set_result(None)

    def _has_ended(self, failure: Exception | None) -> None:
        failure = self._inbox.end(failure)
        if not self._joined.done():
            self._joined.set_exception(failure)
            self._joined.exception()  # the one who waited may be gone

    async def _let_go(self, gone: frozenset[Offsets]) -> None:
        self._drop(gone)
        await self._subscription.let_go(lambda delivery: delivery.token[0] in gone)

    def _forget(self, gone: frozenset[Offsets]) -> None:
        self._drop(gone)
        self._subscription.forget(lambda delivery: delivery.token[0] in gone)

    def _drop(self, gone: frozenset[Offsets]) -> None:
        self._taken += self._inbox.drop(lambda delivery: delivery.token[0] in gone)
        self._room.set()

    # --- in the thread

    def _run(self) -> None:
        failure: Exception | None = None
        consumer = self._consumer
        try:
            self._begin(consumer)
            while not self._closing:
                self._turn(consumer)
        except KafkaException as error:
            failure = translated(error_of(error), f"receiving from {self._topic!r}")
        except Exception as error:  # a fault of ours must reach somebody
            failure = error
            log.exception("%s: the receiving thread broke", self._topic)
        finally:
            self._closing = True
            self._finish(consumer)
            self._tell(self._has_ended, failure)

    def _begin(self, consumer: Consumer) -> None:
        consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _turn(self, consumer: Consumer) -> None:
        """One round: commit if it is time, then fetch, or wait for room."""
        now = time.monotonic()
        self._watch(consumer, now)
        if now >= self._next_commit or self._acknowledged - self._seen >= self._subscription.max_in_flight:
            self._next_commit = now + COMMIT
            if self._acknowledged != self._seen:
                self._seen = self._acknowledged
                self._lively_until = now + LIVELY
            self._commit(consumer)
        if self._handed - self._taken < self._batch:
            self._full_since = None
            if self._paused:
                self._pause(consumer, False)
            self._fetch(consumer)
            return
        self._room.clear()
        if self._handed - self._taken >= self._batch:
            self._room.wait(POLL)
        if self._full_since is None:
            self._full_since = now
        elif now - self._full_since > PATIENCE:
            if not self._paused:
                self._pause(consumer, True)
            self._accept(consumer.consume(1, 0))  # paused, it brings no message, but serves rebalances

    def _fetch(self, consumer: Consumer) -> None:
        # Asked for many, consume() waits for all of them, or for its whole timeout: so first for one
        lively = time.monotonic() < self._lively_until
        records = consumer.consume(1, COMMIT if lively else POLL)
        if records:
            if self._batch > 1:
                records += consumer.consume(self._batch - 1, 0)
            self._accept(records)

    def _accept(self, records: list[Any]) -> None:
        deliveries, errors = unpack(records, self._partitions)
        if deliveries:
            self._handed += len(deliveries)
            self._lively_until = time.monotonic() + LIVELY
            self._tell(self._inbox.put, deliveries)
        for error in errors:
            self._note(error)

    def _note(self, error: KafkaError) -> None:
        """An event of librdkafka. It mends by itself what can be mended: only the rest is a failure."""
        failure = translated(error, f"receiving from {self._topic!r}")
        if unknown(error):
            raise away(f"the topic {self._topic!r} was removed")
        if error.fatal() or not isinstance(failure, ConnectionLost) or error.code() == MAX_POLL_EXCEEDED:
            raise KafkaException(error)
        log.debug("%s", failure)

    def _watch(self, consumer: Consumer, now: float) -> None:
        """Say so if this consumer receives nothing and no other does in its place."""
        ailment = None
        if not self._partitions:
            if now < self._next_look:
                return
            ailment = self._why_idle(consumer)
        self._next_look = now + UNASSIGNED
        if ailment != self._ailment:
            self._ailment = ailment
            self._tell(self._subscription.ailing, ailment)

    def _why_idle(self, consumer: Consumer) -> str | None:
        """What is wrong with having no partition. None for a member to which its group gave none: it stands by.

        Not from the broker's description of the group: librdkafka (2.16) may end the process while it asks for one.
        """
        if not self._joined.done():
            return "it is not let in: its group is rebalancing, and a member does not let go of what it has"
        return None if consumer.memberid() else "it is not in its group any more"

    def _pause(self, consumer: Consumer, pause: bool) -> None:
        self._paused = pause
        partitions = [TopicPartition(self._topic, partition) for partition in self._partitions]
        (consumer.pause if pause else consumer.resume)(partitions)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        if not self._inbox.tell(callback, *arguments):
            self._closing = True  # there is nobody to receive for

    # --- committing

    def _commit(self, consumer: Consumer) -> bool:
        """Commit what has changed, without waiting for the answer; False if there was nothing.

        One commit is under way at a time. While the group rebalances by the classic protocol it waits: the broker
        answers one request of a connection after another, and JoinGroup only when all members have joined.
        """
        if self._committing:
            return True
        due = {
            number: mark
            for number, mark in self._marks(self._partitions)
            if self._committed.get(number) != mark
        }
        if due:
            self._committed.update(due)
            self._committing = True
            consumer.commit(offsets=self._places(due), asynchronous=True)
        return bool(due)

    def _marks(self, partitions: Mapping[int, Offsets]) -> Iterator[tuple[int, Mark]]:
        for number, offsets in partitions.items():
            mark = offsets.mark(self._metadata_limit)
            if mark is not None:
                yield number, mark

    def _places(self, marks: Mapping[int, Mark]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, number, *mark) for number, mark in marks.items()]

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """What became of a commit; what was not taken is committed again."""
        self._committing = False
        for each in partitions:
            trouble = each.error or error
            if trouble is None:
                continue
            log.debug("%s %d: the commit failed: %s", self._topic, each.partition, trouble)
            self._committed.pop(each.partition, None)
            if trouble.code() == KafkaError.OFFSET_METADATA_TOO_LARGE:
                self._metadata_limit = 0  # this broker takes less than Kafka's default

    def _finish(self, consumer: Consumer) -> None:
        """Commit for the last time, in bounded time, and leave."""
        ends = time.monotonic() + GOODBYE
        try:
            while self._commit(consumer) and time.monotonic() < ends:
                consumer.consume(
                    1, 0.02
                )  # only for the answer: a message that comes with it is others' again
        except KafkaException as error:
            log.debug("%s: the last commit failed: %s", self._topic, error)
        try:
            consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.debug("%s: closing failed: %s", self._topic, error)
        del self._consumer

    # --- rebalances: called by librdkafka in the thread, inside of consume() and close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions:
            partitions = consumer.committed(partitions, timeout=ANSWER)
            for each in partitions:
                if each.error is not None:
                    raise KafkaException(each.error)
            self._place(consumer, partitions)
        consumer.incremental_assign(partitions)
        if partitions:
            # Also resumed: one that left while it was paused is still so, if it comes back to this client
            (consumer.pause if self._paused else consumer.resume)(partitions)
        self._tell(self._has_joined)

    def _place(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Find where each partition goes on, and fix the start of a group that begins at the end."""
        new = []
        for each in partitions:
            if each.offset >= 0:
                self._partitions[each.partition] = Offsets.restored(each.offset, each.metadata)
                self._committed[each.partition] = (each.offset, each.metadata or "")
            elif self._subscription.start == "latest":
                each.offset = consumer.get_watermark_offsets(each, timeout=ANSWER)[1]
                self._partitions[each.partition] = Offsets(each.offset)
                new.append(TopicPartition(each.topic, each.partition, each.offset))
            else:
                each.offset = OFFSET_BEGINNING
                self._partitions[each.partition] = Offsets()
        if new:  # else a restart before the first commit would jump to what is then the end
            consumer.commit(offsets=new, asynchronous=False)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Let begun handlers finish, commit, and only then let go."""
        leaving = self._held(partitions)
        if leaving and not self._closing:
            try:
                letting_go = self._let_go(frozenset(leaving.values()))
                self._letting_go = asyncio.run_coroutine_threadsafe(letting_go, self._loop)
                self._letting_go.result()
            except (CancelledError, RuntimeError):
                log.debug("%s: closed while letting go", self._topic)
            finally:
                self._letting_go = None
        marks = dict(self._marks(leaving))  # all: of a commit under way nobody knows yet whether it is taken
        if marks and not self._closing:
            try:
                consumer.commit(offsets=self._places(marks), asynchronous=False)
            except KafkaException as error:
                log.debug("%s: the commit before a rebalance failed: %s", self._topic, error)
        self._remove(leaving)
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Somebody else has them already: a commit would be refused, or worse, go back."""
        lost = self._held(partitions)
        self._tell(self._forget, frozenset(lost.values()))
        self._remove(lost)
        consumer.incremental_unassign(partitions)

    def _held(self, partitions: list[TopicPartition]) -> dict[int, Offsets]:
        numbers = [each.partition for each in partitions if each.partition in self._partitions]
        return {number: self._partitions[number] for number in numbers}

    def _remove(self, partitions: dict[int, Offsets]) -> None:
        for partition in partitions:
            del self._partitions[partition]
            self._committed.pop(partition, None)
