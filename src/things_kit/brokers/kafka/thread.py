"""The thread that owns a consumer of librdkafka and puts what it brings into the engine's inbox."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException

from things_kit.brokers.kafka.errors import error_of, translated
from things_kit.brokers.kafka.parting import told, within_or_not
from things_kit.engine.driver import ConnectionLost, Delivery, Subscription
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.kafka")

POLL: Final = 0.1
"""Seconds that the thread waits in one go; so late it may notice that it is to close or commit."""

CALM: Final = 1.0
"""Seconds that what is being fetched is waited for before a stop."""

PARTING: Final = 3.0
"""Seconds that leaving the group is waited for; it is finished, or left to the session timeout, without us."""


class ReceivingThread:
    """One subscription: as much as there is credit for goes to the inbox; what is settled, goes back to the broker.

    Attributes:
        failure: Why nothing more comes; None while something may.
        instance: Its name where membership is static.
        thread: The thread, which ends by itself once it is to close, or with the client.
    """

    instance: str | None = None

    def __init__(self, subscription: Subscription) -> None:
        self.failure: Exception | None = None
        self._subscription = subscription
        self._topic = subscription.topic
        self._loop = asyncio.get_running_loop()
        self._calm, self._ended = asyncio.Event(), asyncio.Event()
        # Shared with the thread: written by one side only
        self._quiet = False
        self._window = 0
        self._closing = False
        self._wanted = threading.Event()
        self._turned = time.monotonic()
        self._consumer: Any  # of the thread
        self.thread = threading.Thread(
            target=self._run,
            name=f"things_kit kafka {subscription.topic} as {subscription.group}",
            daemon=True,
        )

    # --- on the loop

    def credit(self, window: int) -> None:
        """So many messages may be here that are not settled."""
        self._window = window
        self._wanted.set()

    async def quiesce(self) -> None:
        """Fetch nothing more, and return once what is under way is in the inbox."""
        self.credit(0)  # before the thread hears of it
        self._quiet = True
        await within_or_not(self._calm, CALM)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases, or none that could be renewed."""

    async def close(self) -> None:
        """Leave the group. If the broker is away, that is left to its session timeout."""
        self.abandon()
        await within_or_not(self._ended, PARTING)

    def abandon(self) -> None:
        """Have the thread close by itself."""
        self._closing = True
        self._wanted.set()

    @property
    def serves(self) -> bool:
        """Whether it has not been told to close."""
        return not self._closing

    def _has_ended(self, failure: Exception | None) -> None:
        if self.failure is None:
            self.failure = failure or ConnectionLost(f"the consumer of {self._topic!r} was closed")
            if failure is not None:
                self._subscription.inbox.fail(failure)
        self._calm.set()
        self._ended.set()

    # --- in the thread

    def _begin(self) -> None:
        """Subscribe."""
        raise NotImplementedError

    def _turn(self) -> None:
        """One round, which takes no longer than `POLL`."""
        raise NotImplementedError

    def _leave(self, failure: Exception | None) -> None:
        """What is left to do before the client is closed."""

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            self._begin()
            while not self._closing:
                self._turned = time.monotonic()
                if self._quiet:
                    self._tell(self._calm.set)
                self._turn()
        except (ConnectionLost, ConfigError) as error:
            failure = error.with_traceback(None)  # whose frames would keep the client, as those of its cause
            if error.__cause__ is not None:
                error.__cause__.with_traceback(None)
        except KafkaException as error:
            failure = translated(error_of(error), f"receiving from {self._topic!r}")
        except Exception as error:  # a fault of ours must reach somebody
            failure = error
            log.exception("%s: the receiving thread broke", self._topic)
        finally:
            self._closing = True
            if failure is not None:  # whoever subscribes anew need not wait for the end of this client
                self._tell(self._has_ended, failure)
            try:
                self._leave(failure)
                self._consumer.close()
            except (KafkaException, RuntimeError, ConnectionLost, ConfigError) as error:
                log.debug("%s: closing failed: %s", self._topic, error)  # ours come out of its callbacks
            del self._consumer  # the last reference, which waits for its end
            self._tell(self._has_ended, failure)

    def _put(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._tell(self._subscription.inbox.put, deliveries)

    def _tell(self, callback: Callable[..., object], *arguments: Any) -> None:
        if not told(self._loop, callback, *arguments):
            self._closing = True  # there is nobody to receive for
