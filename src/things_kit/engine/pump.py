"""One topic of a consumer: keeps a receiver subscribed, asks it for what could be handled now, and keeps the leases."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from weakref import WeakSet

from things_kit.engine.backoff import Backoff
from things_kit.engine.cancelling import abandon, ended, finished
from things_kit.engine.clock import steady
from things_kit.engine.dead_letter import unmarked
from things_kit.engine.driver import (
    ConnectionLost,
    Delivery,
    Driver,
    Fetching,
    Pushed,
    Receiver,
    Subscription,
    Which,
)
from things_kit.engine.inbox import ConsumerInbox
from things_kit.engine.lanes import Lanes
from things_kit.engine.leases import keep_leases
from things_kit.engine.outages import Outages
from things_kit.engine.outcomes import Outcomes
from things_kit.engine.state import State
from things_kit.engine.suspects import Suspects
from things_kit.engine.watch import Stalled, watch
from things_kit.engine.window import Window
from things_kit.engine.workers import Workers
from things_kit.messaging.names import DEAD_LETTER_MARK, REPLAY_GROUP

log = logging.getLogger("things_kit.consumer")

WAIT: Final = 5.0
"""Seconds that one `fetch` waits: nothing depends on it but how often an idle consumer looks around."""

SHRINK: Final = 5.0
"""Seconds after which a smaller credit is said where it is fixed at the broker."""

QUIESCE: Final = 1.0
"""Seconds that a receiver may take to end a call that waits, and to become quiet."""

MARKS: Final = 0.5
"""Seconds that taking marks back may take."""

CLOSE: Final = 1.5
"""Seconds that closing a receiver may take: the broker may be frozen, and finds out by itself."""


class Pump:
    """Brings one topic's deliveries to the workers, and what became of them back."""

    def __init__(
        self,
        subscription: Subscription,
        driver: Driver,
        drain: float,
        lanes: Lanes,
        workers: Workers,
        window: Window,
        outcomes: Outcomes,
        suspects: Suspects | None,
    ) -> None:
        self.subscription = subscription
        self.subscribed = asyncio.Event()
        self.away: Exception | None = None
        self.outcomes = outcomes
        self.inbox: ConsumerInbox | None = None
        self._inboxes: WeakSet[ConsumerInbox] = WeakSet()
        self.last_settled: datetime | None = None
        self._driver = driver
        self._capabilities = driver.capabilities
        self._drain = drain
        self._lanes = lanes
        self._workers = workers
        self._window = window
        self._suspects = suspects
        self._attempts = sys.maxsize if suspects is None else suspects.attempts
        self._backoff = Backoff()
        self._outages = Outages(self._name)
        self._ailment: str | None = None
        self._room = asyncio.Event()
        self._progress = asyncio.Event()
        self._lull = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._told = 0
        self._told_at = 0.0
        self._paused = False
        self._stopping = False

    # --- subscribed

    async def run(self) -> None:
        """Subscribe and receive, again after each lost connection, until `stop`. Raises what cannot be mended."""
        while not self._stopping:
            inbox = ConsumerInbox(self.subscription, self, self._lanes, self._window, self.outcomes)
            self._inboxes.add(inbox)
            try:
                receiver = await self._driver.subscribe(inbox.subscription)
            except ConnectionLost as error:
                inbox.lose()
                self._went_away(error)
                await self._backoff.wait()
                continue
            inbox.receiver = receiver
            self.away = self._ailment = None  # of a former receiver
            self._outages.ended()
            self.inbox = inbox
            self.subscribed.set()
            if self._stopping:
                inbox.finish()  # whoever stopped us did not see this, as the driver swallowed our cancellation
            try:
                await self._serve(inbox)
            except Stalled as stalled:
                self.ailing(f"{stalled}; it is opened anew")
                inbox.lose()
            except ConnectionLost as error:
                self._went_away(error)
                inbox.lose()
            finally:
                self.inbox = None
                await self._close(receiver)
            if not self._stopping:
                await self._backoff.wait()

    async def _close(self, receiver: Receiver) -> None:
        closing = asyncio.create_task(receiver.close(), name=f"{self._name} close")
        try:
            if not await finished(closing, CLOSE):
                log.warning("%s: the receiver did not close within %g s", self._name, CLOSE)
        except ConnectionLost:
            pass
        except Exception as error:  # the next one may do well, and says so if not
            log.warning("%s: the receiver did not close well: %s", self._name, error, exc_info=error)

    async def _serve(self, inbox: ConsumerInbox) -> None:
        """Receive, settle and extend side by side until the pump stops. Raises the first error of these."""
        asking = self._fetch(inbox) if isinstance(inbox.receiver, Fetching) else self._give_credit(inbox)
        self._asking = asyncio.create_task(asking, name=f"{self._name} pump")
        settling = asyncio.create_task(inbox.settle(), name=f"{self._name} settle")
        leases = keep_leases(inbox.receiver.extend, inbox.leased, self._lease)
        extending = asyncio.create_task(leases, name=f"{self._name} leases")
        watching = watch(inbox, lambda: self._stopping or self._paused or self._room_of(inbox) <= 0)
        tasks = {
            self._asking, settling, extending, asyncio.create_task(watching, name=f"{self._name} watch")
        }  # fmt: skip
        try:
            pending: set[asyncio.Future[None]] = {*tasks, inbox.failure}
            while not settling.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    if each.cancelled():
                        self._raise_if_cut_off(each)
                    elif (error := each.exception()) is not None:
                        raise error
        finally:
            await ended(*tasks)

    @property
    def _lease(self) -> float | None:
        return self._capabilities.lease

    def _raise_if_cut_off(self, task: asyncio.Future[None]) -> None:
        """Only we may cancel it, to stop; else, such as by a driver's own future, nothing would ever arrive again."""
        if not self._stopping and isinstance(task, asyncio.Task):
            raise RuntimeError(f"{task.get_name()} was cancelled from outside")

    # --- asking for messages

    async def _fetch(self, inbox: ConsumerInbox) -> None:
        receiver = inbox.receiver
        assert isinstance(receiver, Fetching)  # noqa: S101 - narrowed by whoever calls
        while not self._stopping:
            room = self._room_of(inbox, inbox.departed)
            if self._paused or room <= 0 or (self._workers.provided and 4 * room < self._most):
                self._room.clear()  # few at a time cost as much as many
                await self._room.wait()
                continue
            await inbox.calm()
            inbox.unpark()
            room = await self._gathered(inbox, room)
            if self._paused:
                continue
            before = inbox.brought
            await receiver.fetch(room, WAIT)
            if inbox.brought == before:
                self._backoff.reset()

    async def _gathered(self, inbox: ConsumerInbox, room: int) -> int:
        """The room that there is once what is ready has been handled, and is on its way, if that is worth to wait for."""
        if not (patience := inbox.patience):
            return room
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while (self._workers.ready or inbox.unsaid) and room < self._most and not self._paused:
                    self._room.clear()
                    await self._room.wait()
                    room = max(room, self._room_of(inbox, inbox.departed))
        return room

    @property
    def _most(self) -> int:
        return min(self._window.size, self.subscription.max_in_flight)

    def _room_of(self, inbox: ConsumerInbox, departed: int = 0) -> int:
        """How many more may come, where so many of those held are none of ours by the time that the broker hears of it."""
        if self.outcomes.full:
            return 0
        return min(self._window.room, self.subscription.max_in_flight - len(inbox.held) + departed)

    async def _give_credit(self, inbox: ConsumerInbox) -> None:
        receiver = inbox.receiver
        assert isinstance(receiver, Pushed)  # noqa: S101 - narrowed by whoever calls
        self._told = 0
        while not self._stopping:
            await inbox.calm()
            inbox.unpark()
            held = len(inbox.held)
            # Less than is held, where the handler has become slow
            credit = 0 if self._paused else max(0, held + self._room_of(inbox))
            wait = self._worth_telling(credit, held)
            if wait == 0.0:
                self._told, self._told_at = credit, asyncio.get_running_loop().time()
                receiver.credit(credit)
            self._room.clear()
            again = asyncio.get_running_loop().call_later(wait or WAIT, self._room.set)
            try:
                await self._room.wait()
            finally:
                again.cancel()

    def _worth_telling(self, credit: int, held: int) -> float | None:
        """In how many seconds this is to be told; None: not at all."""
        told = self._told
        if credit == told:
            return None
        if not self._capabilities.fixed_credit or told == 0 or credit == 0:
            return 0.0
        if credit >= 2 * told or credit == self.subscription.max_in_flight:
            return 0.0
        if credit > told and held >= told and self._workers.starving:
            return 0.0
        if 2 * credit > told:
            return None
        return max(0.0, self._told_at + SHRINK - asyncio.get_running_loop().time())

    def make_room(self) -> None:
        """A worker has nothing to do, or something was dropped: whatever room there is is worth a call."""
        self._room.set()
        self._progress.set()
        if not self._workers.ready:
            self._lull.set()

    async def lull(self, within: float) -> None:
        """Return when nothing is ready to be handled any more, or after so many seconds."""
        if not self._workers.ready or self._stopping:
            return
        self._lull.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._lull.wait()

    def pause(self, paused: bool) -> None:
        """Ask for nothing while this is set; what is not begun goes back where that costs nothing."""
        self._paused = paused
        self._room.set()
        if paused:
            self._hand_back()

    def _hand_back(self) -> None:
        if self.inbox is not None and self._capabilities.lanes:  # elsewhere it would count, or lose its place
            self.inbox.release_unbegun()

    # --- what arrives

    def arrived(self, inbox: ConsumerInbox, deliveries: Sequence[Delivery]) -> None:
        """Admit to their lanes what came, in this order."""
        foreign, most = not self._capabilities.targeted, self._attempts
        for each in deliveries:  # every line of this is paid for by each message
            message = each.message
            headers = message.headers
            if (
                DEAD_LETTER_MARK in headers
                or (foreign and REPLAY_GROUP in headers)
                or message.attempt > most
                or each.due is not None
            ):
                self._admit_unusual(inbox, deliveries)
                break
        else:
            inbox.admit(deliveries)
        if self._paused:
            self._hand_back()
        self._room.set()  # what waits behind its key takes nobody's place: whoever is pushed to may have more
        self._workers.wake()

    def _admit_unusual(self, inbox: ConsumerInbox, deliveries: Sequence[Delivery]) -> None:
        """Some were replayed, perhaps for another group, have a mark that no handler sees, are early, or suspects."""
        group, now = self.subscription.group, steady()
        ours = []
        for each in deliveries:
            headers = each.message.headers
            if headers.get(REPLAY_GROUP, group) != group and not self._capabilities.targeted:
                inbox.acknowledge(each)
                continue
            if DEAD_LETTER_MARK in headers:
                each.message = unmarked(each.message)
            if each.due is None or each.due <= now:
                ours.append(each)
            else:
                each.inbox = inbox
                self.outcomes.put_off(each, each.due - now)
        if self._suspects is None:
            inbox.admit(ours)
        else:
            self._suspects.admit(inbox, ours)

    def settled(self) -> None:
        """The broker has taken settlements: there is room for more."""
        self.last_settled = datetime.now(UTC)
        self._backoff.reset()  # only now: a broker that hands out but takes nothing back is not well
        self._room.set()
        self._progress.set()
        if self._stopping and self.inbox is not None:
            self.inbox.release_unbegun()  # what waited behind a message that was being handled

    def drop_queued(self, which: Which) -> None:
        """Take these out of everything in which they wait."""
        self.outcomes.drop(which)

    # --- health

    @property
    def trouble(self) -> str | None:
        """Why nothing can arrive; None where it can."""
        return self._ailment if self.away is None else f"the broker is away: {self.away}"

    def ailing(self, reason: str | None) -> None:
        """See `Inbox.ailing`."""
        if reason is not None:
            log.warning("%s: %s", self._name, reason)
        self._ailment = reason

    def _went_away(self, error: Exception) -> None:
        self.away = error
        self._outages.lasts(error)

    # --- giving up a part, such as a partition that moves to another consumer

    async def let_go(self, inbox: ConsumerInbox, which: Which) -> None:
        """Drop what was not begun, wait up to the drain time for what was, and settle it."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._drain
        begun = {State.HANDLING, State.LEAVING, State.LEAVING_ASIDE, State.SETTLING}
        while True:
            # Of what failed meanwhile, the next attempt is not ours to make
            inbox.forget(lambda each: which(each) and each.state not in begun)
            if not any(map(which, inbox.held)) or loop.time() >= ends or self.inbox is not inbox:
                break
            self._progress.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ends):
                    await self._progress.wait()
        inbox.forget(which)

    # --- stopping

    async def stop_receiving(self) -> None:
        """Take nothing more, and give back all that is not being handled, in the order of arrival."""
        self._stopping = True
        self.outcomes.stop()
        inbox = self.inbox
        with contextlib.suppress(ConnectionLost, TimeoutError):
            async with asyncio.timeout(QUIESCE):
                if self._asking is not None:
                    self._asking.cancel()
                    await asyncio.wait({self._asking})
                if inbox is not None:
                    await inbox.receiver.quiesce()
        if inbox is None:
            return
        inbox.quiet()
        inbox.release_unbegun()

    async def finish(self, within: float) -> None:
        """Wait for dead letters and retries on their way; then let the last settlements go and `run` return."""
        inbox, suspects = self.inbox, self._suspects
        leaving = self.outcomes.leaving
        if leaving:
            _, late = await asyncio.wait(leaving, timeout=within)
            for task in late:
                abandon(task)
        if inbox is None:
            return
        if suspects is not None:
            with contextlib.suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(MARKS):
                    await suspects.take_back(list(inbox.held))
        inbox.release_all()
        inbox.finish()

    def dispose(self) -> None:
        """Nothing of it is at work any more."""
        for inbox in self._inboxes:
            inbox.dispose()

    @property
    def _name(self) -> str:
        return f"{self.subscription.topic} as {self.subscription.group}"
