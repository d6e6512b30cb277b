"""The thread that receives from Kafka: a member of a group, or a reader of its own."""

import asyncio
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
from things_kit.brokers.kafka.asking import Asked, Asking
from things_kit.brokers.kafka.errors import UNREACHABLE, error_of, translated, unknown
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
"""Seconds in which nothing is asked for before fetching is paused, which throws away what was prefetched."""

MAX_POLL_EXCEEDED: Final = KafkaError._MAX_POLL_EXCEEDED  # noqa: SLF001 - the name of librdkafka's own error

BATCH: Final = 250
"""The most records fetched in one go: more would only make the event loop wait for their unpacking."""

GOODBYE: Final = 2.0
"""Seconds that the last commit may take."""

PARTING: Final = 3.0
"""Seconds that leaving the group is waited for; it is finished, or left to the session timeout, without us."""


class KafkaReceiver:
    """One subscription: a thread that owns the consumer, and the offsets of its partitions.

    The thread hands whole batches to the event loop as it is asked for them. It goes on polling while it is not, so the
    group is kept however long the handlers take. What was acknowledged is committed a moment later.
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
        self._loop = asyncio.get_running_loop()
        self._asking = Asking(subscription.topic, subscription.inbox)
        self._joined: asyncio.Future[None] = self._loop.create_future()
        # Shared with the thread: each is written by one side only
        self._acknowledged = 0
        self._emptied = 0
        self._wanted = threading.Event()
        self._closing = False
        self._letting_go: Future[None] | None = None
        self._progress = Progress(admin, subscription.topic, beginning.topic_id)
        self._watching: asyncio.Task[None] | None = None
        # Of the thread
        self._places = Places(subscription.topic, beginning)
        self._next_commit = 0.0
        self._hasty_from = 0.0
        self._seen = 0
        self._unasked_since: float | None = None
        self._unasked: list[Delivery] = []
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
            emptied = self._emptied
            await asyncio.sleep(self._progress.interval)
            partitions = dict(self._places.partitions)
            reason = await self._progress.look(partitions, busy=self._emptied == emptied)
            if reason is None and self._letting_go is None and time.monotonic() - self._turned > STALLED:
                reason = f"the client of {self._topic!r} hangs"
            if reason is not None:
                self._has_ended(ConnectionLost(reason))
                self.abandon()
                return

    async def fetch(self, limit: int, wait: float) -> None:
        """Have the thread fetch a batch."""
        await self._asking.fetch(limit, wait, self._wanted.set)

    async def quiesce(self) -> None:
        """What the thread brings from now on is not finished, so it comes again after us."""
        self._asking.quiesce()

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Note what is finished; the thread commits it. What is released is not, so it comes again after us."""
        if self._asking.failure is not None:
            raise self._asking.failure
        for delivery in acknowledged:
            offsets, offset = delivery.token
            offsets.finish(offset)
        self._acknowledged += len(acknowledged)

    async def overdue(self) -> int:
        """How many messages its own partitions have that it has not received. Raises ConnectionLost."""
        if self._letting_go is not None:
            return 0  # the thread waits for handlers
        return sum((await self._progress.overdue(dict(self._places.partitions))).values())

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def close(self) -> None:
        """Commit, and leave the group. If the broker is away, that is left to its session timeout."""
        self.abandon()
        await self._asking.ended(PARTING)

    def abandon(self) -> None:
        """Have the thread close by itself."""
        self._closing = True
        if self._watching is not None:
            self._watching.cancel()
        self._wanted.set()
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
        failure = self._asking.end(failure)
        if not self._joined.done():
            self._joined.set_exception(failure)
            self._joined.exception()  # the one who waited may be gone

    async def _let_go(self, gone: frozenset[Offsets]) -> None:
        await self._subscription.inbox.let_go(lambda delivery: delivery.token[0] in gone)

    def _forget(self, gone: frozenset[Offsets]) -> None:
        self._subscription.inbox.forget(lambda delivery: delivery.token[0] in gone)

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
        """One round: commit if it is time, then fetch, or wait to be asked."""
        now = self._turned = time.monotonic()
        self._watch(consumer)
        many = self._acknowledged - self._seen >= self._subscription.max_in_flight
        if now >= self._next_commit or (many and now >= self._hasty_from):
            self._seen = self._acknowledged
            commits = self._commit(consumer)
            self._next_commit = now + (self._options.commit_interval if commits else self._poll)
            self._hasty_from = now + HASTE
        self._wanted.clear()
        asked = self._asking.asked
        if asked is not None and not asked.limit:
            self._answer(())
        elif asked is not None:
            self._fetch(consumer, asked, now)
        elif not self._places.partitions:
            self._unasked += self._unpacked(consumer.consume(1, self._poll))  # for a rebalance
        elif not self._wanted.wait(self._poll):
            self._keep_up(consumer, now)

    def _fetch(self, consumer: Consumer, asked: Asked, now: float) -> None:
        self._unasked_since = None
        if self._paused:
            self._pause(consumer, False)
        deliveries, self._unasked = self._still_ours(self._unasked), []
        if not deliveries:
            # Asked for many, consume() waits for all of them, or for its whole timeout: so first for one
            records = consumer.consume(1, max(0.0, min(self._poll, asked.until - now)))
            wanted = min(asked.limit, BATCH)
            if records and wanted > 1:
                records += consumer.consume(wanted - 1, 0)
            self._emptied += len(records) < wanted
            deliveries = self._unpacked(records)
        if deliveries or asked.over:
            self._answer(deliveries)

    def _keep_up(self, consumer: Consumer, now: float) -> None:
        """Serve rebalances though nothing is asked for."""
        if self._unasked_since is None:
            self._unasked_since = now
        elif now - self._unasked_since > PATIENCE:
            if not self._paused:
                self._pause(consumer, True)
            self._unasked += self._unpacked(consumer.consume(1, 0))  # paused, it should bring no message

    def _still_ours(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Without those of partitions that have left since they came."""
        held = frozenset(self._places.partitions.values())
        return [delivery for delivery in deliveries if delivery.token[0] in held]

    def _unpacked(self, records: list[Any]) -> list[Delivery]:
        deliveries, errors = unpack(records, self._places.partitions)
        for error in errors:
            self._note(error)
        return deliveries

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
            self._tell(self._subscription.inbox.ailing, ailment)

    def _pause(self, consumer: Consumer, pause: bool) -> None:
        self._paused = pause
        partitions = [TopicPartition(self._topic, partition) for partition in self._places.partitions]
        (consumer.pause if pause else consumer.resume)(partitions)

    def _answer(self, deliveries: Sequence[Delivery]) -> None:
        if not self._asking.answer(deliveries):
            self._closing = True

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        if not self._asking.tell(callback, *arguments):
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
