"""Share groups of Kafka (KIP-932): a queue instead of an order. `kafka://...?group_type=share`, a preview.

Each record is acknowledged alone, goes to whichever consumer has time, also to more of them than there are partitions, and
has the broker's count of deliveries as its attempt. What librdkafka's share consumer, a preview itself, does not do yet:

* It may fetch more than it is asked for, and again only after all that is acknowledged: one slow message holds up the others of its batch.
* It cannot renew a lock: what is not settled within `group.share.record.lock.duration.ms` (30 s) goes to others as well.
* The broker drops a record after `group.share.delivery.count.limit` (5) deliveries. Retries in this process are none.
* A member begins to receive with its second heartbeat, five seconds after it joined, and the lag cannot be asked for.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

from confluent_kafka import AcknowledgeType, KafkaException, ShareConsumer

from things_kit.brokers.kafka.asking import Asked, Asking
from things_kit.brokers.kafka.errors import error_of, translated
from things_kit.brokers.kafka.options import Config, Settings
from things_kit.brokers.kafka.wire import unpack_one
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

log = logging.getLogger("things_kit.kafka")

POLL: Final = 0.1
"""Seconds that the thread waits in one go."""

ANSWER: Final = 10.0
"""Seconds that the broker may take to note acknowledgements."""

PARTING: Final = 3.0
"""Seconds that leaving the group is waited for."""

GENEROSITY: Final = 1.0
"""Seconds without fetching after a release: a consumer gives back when it stops, and is not to take that again."""

MOST: Final = 500
"""Records fetched at once."""

Settlement = tuple[list[tuple[Any, Any]], "asyncio.Future[None]"]
"""Records with their answers, and who waits for the broker to have noted them."""


class ShareReceiver:
    """One member of a share group: a thread that fetches, and acknowledges what is settled."""

    def __init__(self, settings: Settings, subscription: Subscription) -> None:
        self._topic = subscription.topic
        self._loop = asyncio.get_running_loop()
        self._asking = Asking(subscription.topic, subscription.inbox)
        self._closing = False
        self._settlements: SimpleQueue[Settlement | None] = SimpleQueue()
        self._out = 0
        self._not_before = 0.0
        config = share_config(settings, subscription)
        self._consumer: Any = settings.created(ShareConsumer, config)
        name = f"things_kit kafka {subscription.topic} as {subscription.group}"
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    # --- on the loop

    async def join(self, within: float) -> None:
        """Start. A share group says nothing of who has joined."""
        self.thread.start()

    async def fetch(self, limit: int, wait: float) -> None:
        """Have the thread fetch; librdkafka alone knows how many come at once."""
        await self._asking.fetch(limit, wait, self._wake)

    async def quiesce(self) -> None:
        """What the thread brings from now on goes back when it leaves."""
        self._asking.quiesce()

    async def overdue(self) -> None:
        """The client cannot ask."""

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Have the broker note what became of each record."""
        if self._asking.failure is not None:
            raise self._asking.failure
        answers = [(delivery.token, AcknowledgeType.ACCEPT) for delivery in acknowledged]
        answers += [(release.delivery.token, AcknowledgeType.RELEASE) for release in released]
        noted: asyncio.Future[None] = self._loop.create_future()
        self._settlements.put((answers, noted))
        await noted

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Locks cannot be renewed."""

    async def close(self) -> None:
        """Give back what was not settled, and leave."""
        self.abandon()
        await self._asking.ended(PARTING)

    def abandon(self) -> None:
        """Have the thread close by itself."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        self._settlements.put(None)

    def _has_ended(self, failure: Exception | None) -> None:
        failure = self._asking.end(failure)
        while not self._settlements.empty():
            self._answer(self._settlements.get(), failure)

    def _answer(self, settlement: Settlement | None, failure: Exception | None) -> None:
        if settlement is None or settlement[1].done():
            return
        if failure is None:
            settlement[1].set_result(None)
        else:
            settlement[1].set_exception(failure)

    # --- in the thread

    def _run(self) -> None:
        failure: Exception | None = None
        consumer = self._consumer
        try:
            consumer.subscribe([self._topic])
            while not self._closing:
                asked = self._asking.asked
                if self._out or asked is None or time.monotonic() < self._not_before:
                    self._acknowledge(consumer)
                else:
                    self._fetch(consumer, asked)
        except KafkaException as error:
            failure = translated(error_of(error), f"receiving from {self._topic!r}")
        except Exception as error:  # a fault of ours must reach somebody
            failure = error
            log.exception("%s: the receiving thread broke", self._topic)
        finally:
            self._leave(consumer)
            self._tell(self._has_ended, failure)

    def _fetch(self, consumer: Any, asked: Asked) -> None:
        deliveries = []
        for record in consumer.poll(POLL) if asked.limit else ():
            if record.error() is not None:  # librdkafka settles these itself
                log.debug("%s: %s", self._topic, record.error())
                continue
            message = unpack_one(record).replace(attempt=record.delivery_count() or 1)
            deliveries.append(Delivery(message, record))
        if deliveries or asked.over:
            self._out = len(deliveries)
            if not self._asking.answer(deliveries):
                self._closing = True

    def _acknowledge(self, consumer: Any) -> None:
        try:
            settlement = self._settlements.get(timeout=POLL)
        except Empty:
            return
        if settlement is None:
            return
        failure: Exception | None = None
        self._out -= len(settlement[0])
        if any(answer is AcknowledgeType.RELEASE for _, answer in settlement[0]):
            self._not_before = time.monotonic() + GENEROSITY
        try:
            for record, answer in settlement[0]:
                consumer.acknowledge(record, answer)
            errors = [error for error in consumer.commit_sync(ANSWER).values() if error is not None]
        except KafkaException as refusal:
            errors = [refusal]
        for each in errors:  # of a lock that has run out: the record is somebody else's now
            trouble = translated(error_of(each), f"acknowledging to {self._topic!r}")
            failure = trouble if isinstance(trouble, ConnectionLost) else failure
            log.debug("%s: %s", self._topic, trouble)
        self._tell(self._answer, settlement, failure)

    def _leave(self, consumer: Any) -> None:
        try:
            consumer.close()
        except (KafkaException, RuntimeError) as error:
            log.debug("%s: closing failed: %s", self._topic, error)
        del self._consumer

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        if not self._asking.tell(callback, *arguments):
            self._closing = True  # there is nobody to receive for


def share_config(settings: Settings, subscription: Subscription) -> Config:
    """Properties of a share consumer: it has no use for those of other groups."""
    return {
        "group.id": subscription.group,
        "share.acknowledgement.mode": "explicit",
        "max.poll.records": min(MOST, subscription.max_in_flight),
        "max.poll.interval.ms": 86_400_000,  # it may not poll while it handles; locks run out long before
        **settings.common(),
    }
