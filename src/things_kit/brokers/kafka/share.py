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
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

from confluent_kafka import AcknowledgeType, KafkaException, ShareConsumer

from things_kit.brokers.kafka.errors import error_of, translated
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.thread import POLL, ReceivingThread
from things_kit.brokers.kafka.wire import unpack_one
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

log = logging.getLogger("things_kit.kafka")

ANSWER: Final = 10.0
"""Seconds that the broker may take to note acknowledgements."""

GENEROSITY: Final = 1.0
"""Seconds without fetching after a release: a consumer gives back when it stops, and is not to take that again."""

MOST: Final = 500
"""Records fetched at once."""

Settlement = tuple[list[tuple[Any, Any]], "asyncio.Future[None]"]
"""Records with their answers, and who waits for the broker to have noted them."""


class ShareReceiver(ReceivingThread):
    """One member of a share group: a thread that fetches, and acknowledges what is settled."""

    def __init__(self, settings: Settings, subscription: Subscription) -> None:
        super().__init__(subscription)
        self._settlements: SimpleQueue[Settlement] = SimpleQueue()
        self._out = 0
        self._not_before = 0.0
        most = min(MOST, subscription.max_in_flight)
        self._consumer = settings.created(ShareConsumer, settings.share_consumer(subscription.group, most))

    # --- on the loop

    async def join(self, within: float) -> None:
        """Start. A share group says nothing of who has joined."""
        self.thread.start()

    async def overdue(self) -> None:
        """The client cannot ask."""

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Have the broker note what became of each record."""
        if self.failure is not None:
            raise self.failure
        answers = [(delivery.token, AcknowledgeType.ACCEPT) for delivery in acknowledged]
        answers += [(release.delivery.token, AcknowledgeType.RELEASE) for release in released]
        noted: asyncio.Future[None] = self._loop.create_future()
        self._settlements.put((answers, noted))
        await noted

    def _has_ended(self, failure: Exception | None) -> None:
        super()._has_ended(failure)
        while not self._settlements.empty():
            _answer(self._settlements.get()[1], self.failure)

    # --- in the thread

    def _begin(self) -> None:
        self._consumer.subscribe([self._topic])

    def _turn(self) -> None:
        if self._out or not self._window or time.monotonic() < self._not_before:
            self._acknowledge()
        else:
            self._fetch()

    def _fetch(self) -> None:
        """Only librdkafka knows how many come at once."""
        deliveries = []
        for record in self._consumer.poll(POLL):
            if record.error() is not None:  # librdkafka settles these itself
                log.debug("%s: %s", self._topic, record.error())
                continue
            message = unpack_one(record).replace(attempt=record.delivery_count() or 1)
            deliveries.append(Delivery(message, record))
        self._out = len(deliveries)
        self._put(deliveries)

    def _acknowledge(self) -> None:
        try:
            answers, noted = self._settlements.get(timeout=POLL)
        except Empty:
            return
        failure: Exception | None = None
        self._out -= len(answers)
        if any(answer is AcknowledgeType.RELEASE for _, answer in answers):
            self._not_before = time.monotonic() + GENEROSITY
        try:
            for record, answer in answers:
                self._consumer.acknowledge(record, answer)
            errors = [error for error in self._consumer.commit_sync(ANSWER).values() if error is not None]
        except KafkaException as refusal:
            errors = [refusal]
        for each in errors:  # of a lock that has run out: the record is somebody else's now
            trouble = translated(error_of(each), f"acknowledging to {self._topic!r}")
            failure = trouble if isinstance(trouble, ConnectionLost) else failure
            log.debug("%s: %s", self._topic, trouble)
        self._tell(_answer, noted, failure)


def _answer(noted: "asyncio.Future[None]", failure: Exception | None) -> None:
    if noted.done():
        return
    if failure is None:
        noted.set_result(None)
    else:
        noted.set_exception(failure)
