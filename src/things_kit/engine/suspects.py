"""Messages that may be what kills the processes that handle them.

A broker that counts deliveries counts those to processes that died, too. A count beyond the policy's attempts without a
verdict makes a suspect, no more: it may have been the neighbour of the guilty one, or was given back by deployments. So a
mark is stored for it, and it is handled while its consumer handles nothing else. Whoever dies of it then has convicted it:
it comes again with its mark, and goes to the dead letter. A stop takes the mark back.

A mark beside a message is stored as its handler is about to begin. One that travels on a copy comes with it, perhaps to a
process that has others to finish first and dies meanwhile: the first loss of such a copy convicts nobody.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from things_kit.engine.copies import Copies
from things_kit.engine.driver import ConnectionLost, Delivery, Marking
from things_kit.engine.inbox import ConsumerInbox
from things_kit.engine.lanes import Lanes
from things_kit.engine.state import State
from things_kit.engine.verdict import ProcessDied
from things_kit.engine.workers import Workers
from things_kit.messaging.errors import ThingsKitError

log = logging.getLogger("things_kit.consumer")

FORGIVEN: Final = 1
"""Losses of a copy that came with its mark: it may not have begun."""

RETURN: Final = 0.5
"""Seconds for a copy to come back with its mark before the next is marked: several at once would convict one another."""


class Suspects:
    """One topic's suspects, from their arrival until their handler begins.

    They came more than `attempts` times without a verdict. Without `copies` a mark is stored beside the message. What
    died alone is `convicted`.
    """

    def __init__(
        self,
        name: str,
        attempts: int,
        lanes: Lanes,
        workers: Workers,
        copies: Copies | None,
        convicted: Callable[[Delivery, BaseException], None],
    ) -> None:
        self._name = name
        self.attempts = attempts
        self._lanes = lanes
        self._workers = workers
        self._copies = copies
        self._convicted = convicted
        self._came_marked: Delivery | None = None  # the last copy that came with its mark
        self._returned = asyncio.Event()

    def admit(self, inbox: ConsumerInbox, deliveries: Sequence[Delivery]) -> None:
        """Let all take their turns, in order; a suspect's turn is its own."""
        for delivery in deliveries:
            if delivery.message.attempt <= self.attempts:
                inbox.admit([delivery])
            else:
                inbox.send_back(self._lanes.admit_apart(delivery, inbox, self._turn))

    def _turn(self, delivery: Delivery) -> None:
        """All that was before it in its lane is done."""
        forgiven = 0 if isinstance(delivery.inbox.receiver, Marking) else FORGIVEN
        if delivery.suspect and delivery.message.attempt > delivery.suspect + forgiven:
            self._convicted(delivery, ProcessDied(delivery.message.attempt))
        elif delivery.suspect and self._copies is not None and self._another_is_marked():
            # Whoever dies of the one before it must not convict this one, too: it waits without its mark
            delivery.state = State.LEAVING
            self._copies.add(delivery, 0.0, self._no_copy)
        elif delivery.suspect and self._copies is not None:
            self._came_marked = delivery
            self._returned.set()
            # First, as what is without a mark cannot be convicted
            self._workers.isolate(delivery, self._prepare, first=True)
        else:
            self._workers.isolate(delivery, self._prepare)

    def _another_is_marked(self) -> bool:
        marked = self._came_marked
        return marked is not None and marked.state in {State.READY, State.LEAVING, State.HANDLING}

    async def _prepare(self, delivery: Delivery) -> bool:
        """Store the mark, as nothing else is being handled now; without one it is handled alone all the same."""
        delivery.state = State.LEAVING
        if self._copies is not None and self._copies.tasks:
            await asyncio.wait(self._copies.tasks)  # who loses its mark has lost it before anybody can die
        await delivery.inbox.all_told()  # what is finished must not come again because of this one
        if not delivery.suspect and not await self._marked(delivery):
            return False
        if delivery.state is State.GONE:  # somebody else has it by now
            delivery.inbox.done(delivery)
            return False
        return True

    async def _marked(self, delivery: Delivery) -> bool:
        """Whether it is to be handled here, with its mark or without; else a copy of it comes with the mark."""
        receiver, attempt = delivery.inbox.receiver, delivery.message.attempt
        log.warning(
            "%s: message %r came %d times and nobody said what became of it: it is handled alone",
            self._name, delivery.message.id, attempt,
        )  # fmt: skip
        if isinstance(receiver, Marking):
            delivery.suspect = attempt
            try:
                await receiver.mark(delivery, attempt)
            except (ConnectionLost, ThingsKitError) as error:
                delivery.suspect = 0
                self._say_unmarked(delivery, error)
        elif self._copies is not None:
            self._returned.clear()
            self._copies.add(delivery, 0.0, self._no_copy, suspect=attempt)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETURN):
                    await self._returned.wait()
            return False
        return True

    def _say_unmarked(self, delivery: Delivery, error: Exception) -> None:
        log.warning("%s: message %r could not be marked: %s", self._name, delivery.message.id, error)

    def _no_copy(self, delivery: Delivery, wait: float, error: Exception) -> None:
        """There is no copy, so it is handled here, as it is."""
        self._returned.set()
        self._say_unmarked(delivery, error)
        if delivery.state is State.LEAVING:
            delivery.state = State.READY
            self._workers.isolate(delivery, _at_once)
        elif delivery.state is State.GONE:
            delivery.inbox.done(delivery)

    async def take_back(self, held: Sequence[Delivery]) -> None:
        """The consumer stops: who begins with these next has not been warned of them. Raises ConnectionLost."""
        for delivery in held:
            if not delivery.suspect or delivery.state not in {State.READY, State.LEAVING}:
                continue
            receiver = delivery.inbox.receiver
            if isinstance(receiver, Marking):
                await receiver.mark(delivery, 0)
                delivery.suspect = 0
            elif self._copies is not None:
                delivery.state = State.LEAVING
                self._copies.add(delivery, 0.0, _stays_marked)
        if self._copies is not None and self._copies.tasks:
            await asyncio.wait(self._copies.tasks)


async def _at_once(delivery: Delivery) -> bool:
    return True


def _stays_marked(delivery: Delivery, wait: float, error: Exception) -> None:
    """It is given back as it is."""
    if delivery.state is State.LEAVING:
        delivery.state = State.READY
