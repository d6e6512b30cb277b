"""Receiving from Kafka as a member of a group."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Final, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from things_kit.brokers.kafka.admin import Admin
from things_kit.brokers.kafka.errors import UNREACHABLE, translated, unknown
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.places import Beginning, Places
from things_kit.brokers.kafka.progress import INTERVAL, Progress
from things_kit.brokers.kafka.standing import Standing
from things_kit.brokers.kafka.thread import POLL, ReceivingThread
from things_kit.brokers.kafka.wire import Placed, unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.offsets import Offsets

log = logging.getLogger("things_kit.kafka")

SHORTEST: Final = 0.02
"""Seconds that the thread waits in one go where commits are to follow sooner than `POLL`."""

STALLED: Final = 30.0
"""Seconds without a round of the thread, unless it waits for handlers, after which librdkafka is taken to hang."""

HASTE: Final = 0.1
"""Seconds between two commits where `max_in_flight` are acknowledged sooner than `commit_interval` is over."""

PATIENCE: Final = 1.0
"""Seconds without room before fetching is paused, which throws away what was prefetched."""

MAX_POLL_EXCEEDED: Final = KafkaError._MAX_POLL_EXCEEDED  # noqa: SLF001 - the name of librdkafka's own error

BATCH: Final = 1000
"""The most records fetched in one go: what the loop does once for each of these is dear, but their unpacking, a millisecond or two, holds it up."""

GATHER: Final = 0.005
"""Seconds for which more room is waited for where there is little: few records at a time cost as much as many."""

GOODBYE: Final = 2.0
"""Seconds that the last commit may take."""


class KafkaReceiver(ReceivingThread):
    """One subscription: the consumer, and the offsets of its partitions.

    The thread goes on polling while there is no room, so the group is kept however long the handlers take. What was
    acknowledged is committed a moment later.
    """

    member = True
    """Whether it is a member of its group, which librdkafka keeps in touch with."""

    def __init__(
        self,
        settings: Settings,
        subscription: Subscription,
        admin: Admin,
        beginning: Beginning,
        instance: str | None = None,
    ) -> None:
        super().__init__(subscription)
        self.instance = instance
        self._options = settings.options
        self._joined: asyncio.Future[None] = self._loop.create_future()
        # Shared with the thread: each is written by one side only
        self._acknowledged = 0
        self._emptied = 0
        self._letting_go: Future[None] | None = None
        self._admin = admin
        self._progress = Progress(admin, subscription.topic, beginning.topic_id)
        self._watching: asyncio.Task[None] | None = None
        # Of the thread
        self._places = Places(subscription.topic, beginning)
        self._next_commit = 0.0
        self._hasty_from = 0.0
        self._seen = 0
        self._full_since: float | None = None
        self._paused = True  # until there is credit
        self._poll = min(POLL, max(SHORTEST, settings.options.commit_interval))
        self._ailment: str | None = None
        self._lost = False
        self._standing = Standing(settings.options, member=self.member)
        self._consumer = settings.created(
            Consumer,
            settings.consumer(subscription.group, instance),
            on_commit=self._places.on_commit,
            stats_cb=self._standing.heard,
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
        except BaseException as error:
            self.abandon()
            if not isinstance(error, TimeoutError):
                raise
            group, where = self._subscription.group, self._standing.where
            raise ConnectionLost(
                f"the group {group!r} was not joined within {within:g} s ({where})"
            ) from error
        self._watching = asyncio.create_task(self._watch_progress(), name=f"{self.thread.name} progress")

    async def _watch_progress(self) -> None:
        """End this receiver if nothing arrives that should: whatever the client says, a new one begins afresh."""
        reason: str | None = None
        while reason is None:
            emptied = self._emptied
            await asyncio.sleep(INTERVAL)
            reason = await self._progress.look(self._expected(), busy=self._emptied == emptied)
            if reason is None and self._letting_go is None and time.monotonic() - self._turned > STALLED:
                reason = f"the client of {self._topic!r} hangs"
        self._has_ended(ConnectionLost(reason))
        self.abandon()

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Note what is finished; the thread commits it. What is released is not, so it comes again after us."""
        if self.failure is not None:
            raise self.failure
        for placed in cast("Sequence[Placed]", acknowledged):  # `finish` without a call for each
            placed.token.unfinished.pop(placed.offset, None)
        self._acknowledged += len(acknowledged)
        self._wanted.set()  # there is room

    async def overdue(self) -> int:
        """How many messages its own partitions have that it has not received. Raises ConnectionLost."""
        if self._letting_go is not None:
            return 0  # the thread waits for handlers
        return sum((await self._progress.overdue(self._expected())).values())

    def _expected(self) -> dict[int, Offsets]:
        """The partitions from which what is there should come."""
        return dict(self._places.partitions)

    def abandon(self) -> None:
        """Have the thread close by itself."""
        super().abandon()
        if self._watching is not None:
            self._watching.cancel()
        if self._letting_go is not None:
            self._letting_go.cancel()

    def _has_joined(self) -> None:
        if not self._joined.done():
            self._joined.set_result(None)

    def _has_ended(self, failure: Exception | None) -> None:
        super()._has_ended(failure)
        if not self._joined.done():
            self._joined.set_exception(self.failure or ConnectionLost())
            self._joined.exception()  # the one who waited may be gone

    async def _let_go(self, gone: frozenset[Offsets]) -> None:
        await self._subscription.inbox.let_go(lambda delivery: delivery.token in gone)

    def _forget(self, gone: frozenset[Offsets]) -> None:
        self._subscription.inbox.forget(lambda delivery: delivery.token in gone)

    # --- in the thread

    def _begin(self) -> None:
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _turn(self) -> None:
        """One round: commit if it is time, then fetch, or wait for room."""
        now = time.monotonic()
        self._watch()
        many = self._acknowledged - self._seen >= self._subscription.max_in_flight
        if now >= self._next_commit or (many and now >= self._hasty_from):
            self._seen = self._acknowledged
            commits = self._commit()
            self._next_commit = now + (self._options.commit_interval if commits else self._poll)
            self._hasty_from = now + HASTE
        self._wanted.clear()
        room = self._room()
        if 0 < 4 * room < self._window:
            time.sleep(GATHER)
            room = self._room()
        if room > 0:
            self._fetch(min(room, BATCH))
        elif not self._places.partitions:
            self._take(self._consumer.consume(1, self._poll))  # for a rebalance
        elif not self._wanted.wait(self._poll):
            self._keep_up(now)

    def _room(self) -> int:
        return self._window - sum(len(each.unfinished) for each in self._places.partitions.values())

    def _fetch(self, most: int) -> None:
        self._full_since = None
        if self._paused:
            self._pause(False)
        # Asked for many, consume() waits for all of them, or for its whole timeout: so first for what is there, then for one
        consume = self._consumer.consume
        records = consume(most, 0)
        if not records and (records := consume(1, self._poll)) and most > 1:
            records += consume(most - 1, 0)
        self._emptied += len(records) < most
        self._take(records)

    def _keep_up(self, now: float) -> None:
        """Serve rebalances though there is no room."""
        if self._full_since is None:
            self._full_since = now
        elif now - self._full_since > PATIENCE:
            if not self._paused:
                self._pause(True)
            self._take(self._consumer.consume(1, 0))  # paused, it brings no message

    def _take(self, records: list[Any]) -> None:
        deliveries, errors = unpack(records, self._places.partitions)
        self._put(deliveries)
        for error in errors:
            self._note(error)

    def _note(self, error: KafkaError) -> None:
        """An event of librdkafka. It mends by itself what can be mended: only the rest is a failure."""
        failure = translated(error, f"receiving from {self._topic!r}")
        if unknown(error):
            raise ConnectionLost(f"the topic {self._topic!r} was removed")
        if error.fatal() or not isinstance(failure, ConnectionLost) or error.code() == MAX_POLL_EXCEEDED:
            raise KafkaException(error)
        if error.code() in UNREACHABLE:
            self._standing.said = error.str()
        log.debug("%s", failure)

    def _watch(self) -> None:
        """Say so if this consumer receives nothing. Raises ConnectionLost if its client may never find back by itself."""
        if self._lost:
            raise ConnectionLost(f"the group {self._subscription.group!r} took this consumer for dead")
        has_any, joined = bool(self._places.partitions), self._joined.done()
        ailment = self._standing.ailment(joined=joined, has_any=has_any)
        if ailment != self._ailment:
            self._ailment = ailment
            self._tell(self._subscription.inbox.ailing, ailment)

    def _pause(self, pause: bool) -> None:
        self._paused = pause
        partitions = [TopicPartition(self._topic, partition) for partition in self._places.partitions]
        (self._consumer.pause if pause else self._consumer.resume)(partitions)

    def _commit(self) -> bool:
        """Commit what has changed, without waiting for the answer; False if there was nothing."""
        return self._places.commit(self._consumer)

    def _leave(self, failure: Exception | None) -> None:
        """Commit for the last time, in bounded time."""
        ends = time.monotonic() + GOODBYE
        while failure is None and not self._progress.gone and self._commit() and time.monotonic() < ends:
            self._consumer.consume(1, 0.02)  # only for the answer: a message that comes is others' again

    # --- rebalances: called by librdkafka in the thread, inside of consume() and close()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if partitions and not self._closing:  # a broker that is slow would hold up the end
            partitions = self._places.begin(consumer, partitions)
        consumer.incremental_assign(partitions)
        if partitions:
            # Also resumed: one that left while it was paused is still so, if it comes back to this client
            (consumer.pause if self._paused else consumer.resume)(partitions)
        self._tell(self._has_joined)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Let begun handlers finish, commit, and only then let go."""
        leaving = self._places.held(partitions)
        if leaving and not self._closing:
            try:
                letting_go = self._let_go(frozenset(leaving.values()))
                self._letting_go = asyncio.run_coroutine_threadsafe(letting_go, self._loop)
                self._letting_go.result()
            except (CancelledError, RuntimeError):
                log.debug("%s: closed while letting go", self._topic)
            finally:
                self._letting_go = None
        if not self._closing:
            self._places.commit_leaving(consumer, leaving)
        self._places.remove(leaving)
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Somebody else has them already: a commit would be refused, or worse, go back."""
        self._lost = True
        lost = self._places.held(partitions)
        self._tell(self._forget, frozenset(lost.values()))
        self._places.remove(lost)
        consumer.incremental_unassign(partitions)
