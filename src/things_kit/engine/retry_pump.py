"""One retry topic of a consumer: what was put aside comes back to the workers when it is due."""

from collections.abc import Callable, Sequence
from typing import Any

from things_kit.engine.delays import Delays
from things_kit.engine.driver import Delivery, Later, Which
from things_kit.engine.inbox import ConsumerInbox
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.pump import Pump
from things_kit.engine.retry_topics import postpone, remaining, restore
from things_kit.engine.state import State
from things_kit.messaging.errors import DecodeError, PublishError
from things_kit.messaging.message import Message


class WaitingPump(Pump):
    """Holds what arrives until it is due. What that means is said by those that inherit from it."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._arrivals = Delays(self._admit)

    def arrived(self, inbox: ConsumerInbox, deliveries: Sequence[Delivery]) -> None:
        """Admit what is due; the others wait."""
        for delivery in deliveries:
            delivery.inbox = inbox
            delivery.state = State.ASIDE
            wait, moment = self._wait_of(delivery.message)
            if wait > 0 or moment is not None:  # others may still be here that wait for the same moment
                delivery.due = moment
                self._arrivals.hold(delivery, wait, moment)
            else:
                self._admit(delivery)
        self._room.set()  # what waits here is in nobody's way: whoever is pushed to may have more

    def _wait_of(self, message: Message) -> tuple[float, float | None]:
        """For how many seconds it has to wait, and until which moment where several wait for one."""
        raise NotImplementedError

    def _admit(self, delivery: Delivery) -> None:
        """It is due."""
        delivery.due = None
        delivery.state = State.READY
        delivery.inbox.admit([delivery])
        self._workers.wake()

    def drop_queued(self, which: Which) -> None:
        """Take these out of everything in which they wait."""
        self._arrivals.drop(which)
        super().drop_queued(which)


class RetryPump(WaitingPump):
    """Brings what waits in a retry topic to the workers, when it is due."""

    def _wait_of(self, message: Message) -> tuple[float, float | None]:
        return remaining(message), None

    def _admit(self, delivery: Delivery) -> None:
        try:
            delivery.message = restore(delivery.message)
        except DecodeError as error:
            if self.outcomes.keeps:  # no dead letter: it stays where it is
                self._arrivals.hold(delivery, self.outcomes.longest_wait)
            else:
                self.outcomes.failed(delivery, error)
            return
        super()._admit(delivery)


def sender(producer: BrokerProducer) -> "Callable[[Sequence[Later]], Any]":
    """Publishes copies to the retry topics of their group."""

    async def send(copies: Sequence[Later]) -> Sequence[Exception | None]:
        carriers = [postpone(copy) for copy in copies]
        try:
            await producer.publish_batch(carriers)
        except PublishError as error:
            return [error.failures.get(index) for index in range(len(carriers))]
        return [None] * len(carriers)

    return send
