"""One retry topic of a consumer: what was put aside comes back to the workers when it is due."""

from collections.abc import Sequence
from typing import Any

from things_kit.engine.delays import Delays
from things_kit.engine.driver import Delivery, Which
from things_kit.engine.loan import Loan
from things_kit.engine.retry_topics import remaining, restore
from things_kit.engine.source import Source
from things_kit.engine.verdict import TryAgain
from things_kit.messaging.errors import DecodeError


class RetrySource(Source):
    """Brings what waits in a retry topic to the workers, when it is due."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._arrivals = Delays(self._admit)

    def _accept(self, loan: Loan, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            delivery.loan = loan
            wait = remaining(delivery.message)
            if wait > 0:
                self._arrivals.hold(delivery, wait)
            else:
                self._admit(delivery)

    def _admit(self, delivery: Delivery) -> None:
        try:
            message = restore(delivery.message)
        except DecodeError as error:
            self._keep_stranger(delivery, error)
            return
        delivery.message = message
        self._lanes.admit([delivery], delivery.loan)
        self._workers.wake()

    def _keep_stranger(self, delivery: Delivery, error: DecodeError) -> None:
        verdict = self._judge(delivery, error)
        if isinstance(verdict, TryAgain):  # no dead letter: it stays where it is
            self._arrivals.hold(delivery, verdict.wait)
        else:
            self._give_up(delivery, error)

    def _drop_queued(self, which: Which) -> None:
        self._arrivals.drop(which)
        super()._drop_queued(which)

    def stop_receiving(self) -> None:
        """Take nothing more, and give back all that is not being handled."""
        self._arrivals.clear()
        super().stop_receiving()
