"""The thread that receives from Kafka: a member of a group, or a reader of its own."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Final

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)  # fmt: skip

from things_kit.brokers.kafka.admin import Admin
from things_kit.brokers.kafka.errors import UNREACHABLE, error_of, translated, unknown
from things_kit.brokers.kafka.inbox import Inbox
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.places import Beginning, Places
from things_kit.brokers.kafka.progress import Progress
from things_kit.brokers.kafka.standing import Standing
from things_kit.brokers.kafka.wire import unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.offsets import Offsets

log = logging.getLogger("things_kit.kafka")

POLL: Final = 0.1
"""Seconds that the thread waits in one go; so late it may notice that it is to close or commit."""

SHORTEST: Final = 0.02
"""The same where commits are to follow sooner."""

STALLED: Final = 30.0
"""Seconds without a round of the thread, unless it waits for handlers, after which librdkafka is taken to hang."""

HASTE: Final = 0.1
"""Seconds between two commits where `max_in_flight` are acknowledged sooner than `commit_interval` is over."""

PATIENCE: Final = 1.0
"""Seconds for which a full buffer is waited out before fetching is paused, which throws away what was prefetched."""

MAX_POLL_EXCEEDED: Final = KafkaError._MAX_POLL_EXCEEDED  # noqa: SLF001 - the name of librdkafka's own error

BATCH: Final = 250
"""The most records fetched in one go: more would only make the event loop wait for their unpacking."""

GOODBYE: Final = 2.0
"""Seconds that the last commit may take."""

PARTING: Final = 3.0
"""Seconds that leaving the group is waited for; it is finished, or left to the session timeout, without us."""


class KafkaReceiver:
    """One subscription: a thread that owns the consumer, a bounded buffer, and the offsets of its partitions.

    The thread hands whole batches to the event loop and stops fetching while the buffer is full; it goes on polling,
    so the group is kept however long the handlers take. What was acknowledged is committed a moment later.
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
        self.instance = instance
        self._options = settings.options
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
        self._progress = Progress(admin, subscription.topic, beginning.topic_id)
        self._watching: asyncio.Task[None] | None = None
        # Of the thread
        self._places = Places(subscription.topic, beginning)
        self._next_commit = 0.0
        self._hasty_from = 0.0
        self._seen = 0
        self._full_since: float | None = None
        self._paused = False
        self._poll = min(POLL, max(SHORTEST, settings.options.commit_interval))
        self._turned = time.monotonic()
        self._ailment: str | None = None
        self._lost = False
        self._standing = Standing(settings.options, member=self.member)
        self._consumer: Consumer = settings.created(
            Consumer,
            settings.consumer(subscription.group, instance),
            on_commit=self._places.on_commit,
            stats_cb=self._standing.heard,
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
                f"the group {self._subscription.group!r} was not joined within {within:g} s ({self._standing.where})"
            ) from error
        except BaseException:
            self.abandon()
            raise
        self._watching = asyncio.create_task(self._watch_progress(), name=f"{self.thread.name} progress")

    async def _watch_progress(self) -> None:
        """End this receiver if nothing arrives that should: whatever the client says, a new one begins afresh."""
        while True:
            await asyncio.sleep(self._progress.interval)
            reason = await self._progress.look(
                dict(self._places.partitions), full=self._full_since is not None
            )
            if reason is None and self._letting_go is None and time.monotonic() - self._turned > STALLED:
                reason = f"the client of {self._topic!r} hangs"
            if reason is not None:
                self._has_ended(ConnectionLost(reason))
                self.abandon()
                return

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

    async def overdue(self) -> int:
        """How many messages its own partitions have that it has not received. Raises ConnectionLost."""
        return sum((await self._progress.overdue(dict(self._places.partitions))).values())

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def close(self) -> None:
        """Commit, and leave the group. If the broker is away, that is left to its session timeout."""
        self.abandon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PARTING):
                await self._inbox.ended()

    def abandon(self) -> None:
        """Have the thread close by itself."""
        self._closing = True
        if self._watching is not None:
            self._watching.cancel()
        self._room.set()
        if self._letting_go is not None:
            self._letting_go.cancel()

    @property
    def serves(self) -> bool:
        """Whether it has not been told to close."""
        return not self._closing

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
        except ConnectionLost as error:
            failure = error.with_traceback(None)  # whose frames would keep the client
        except KafkaException as error:
            failure = translated(error_of(error), f"receiving from {self._topic!r}")
        except Exception as error:  # a fault of ours must reach somebody
            failure = error
            log.exception("%s: the receiving thread broke", self._topic)
        finally:
            self._closing = True
            if failure is not None:  # whoever subscribes anew need not wait for the end of this client
                self._tell(self._has_ended, failure)
            self._finish(consumer, commits=failure is None and not self._progress.gone)
            self._tell(self._has_ended, failure)

    def _begin(self, consumer: Consumer) -> None:
        consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _turn(self, consumer: Consumer) -> None:
        """One round: commit if it is time, then fetch, or wait for room."""
        now = self._turned = time.monotonic()
        self._watch(consumer)
        many = self._acknowledged - self._seen >= self._subscription.max_in_flight
        if now >= self._next_commit or (many and now >= self._hasty_from):
            self._seen = self._acknowledged
            commits = self._commit(consumer)
            self._next_commit = now + (self._options.commit_interval if commits else self._poll)
            self._hasty_from = now + HASTE
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
        records = consumer.consume(1, self._poll)
        if records:
            if self._batch > 1:
                records += consumer.consume(self._batch - 1, 0)
            self._accept(records)

    def _accept(self, records: list[Any]) -> None:
        deliveries, errors = unpack(records, self._places.partitions)
        if deliveries:
            self._handed += len(deliveries)
            self._tell(self._inbox.put, deliveries)
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
            self._standing.failed(error)
        log.debug("%s", failure)

    def _watch(self, consumer: Consumer) -> None:
        """Say so if this consumer receives nothing. Raises ConnectionLost if its client may never find back by itself."""
        if self._lost:
            raise ConnectionLost(f"the group {self._subscription.group!r} took this consumer for dead")
        has_any, joined = bool(self._places.partitions), self._joined.done()
        ailment = self._standing.ailment(joined=joined, has_any=has_any, is_known=consumer.memberid)
        if ailment != self._ailment:
            self._ailment = ailment
            self._tell(self._subscription.ailing, ailment)

    def _pause(self, consumer: Consumer, pause: bool) -> None:
        self._paused = pause
        partitions = [TopicPartition(self._topic, partition) for partition in self._places.partitions]
        (consumer.pause if pause else consumer.resume)(partitions)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        if not self._inbox.tell(callback, *arguments):
            self._closing = True  # there is nobody to receive for

    def _commit(self, consumer: Consumer) -> bool:
        """Commit what has changed, without waiting for the answer; False if there was nothing."""
        return self._places.commit(consumer)

    def _finish(self, consumer: Consumer, *, commits: bool) -> None:
        """Commit for the last time, in bounded time, and leave."""
        ends = time.monotonic() + GOODBYE
        try:
            while commits and self._commit(consumer) and time.monotonic() < ends:
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
