"""One topic of a consumer: keeps a receiver subscribed, and decides what becomes of each failure."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import msgspec

from things_kit.engine.backoff import Backoff
from things_kit.engine.cancelling import ended
from things_kit.engine.dead_letter import make_dead_letter
from things_kit.engine.delays import Delays
from things_kit.engine.driver import ConnectionLost, Delivery, Driver, Release, Subscription, Which
from things_kit.engine.lanes import Lanes
from things_kit.engine.loan import Loan
from things_kit.engine.outages import Outages
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.retry_topics import SHORT, postpone
from things_kit.engine.verdict import Bury, TryAgain, after_lost_burial, judge
from things_kit.engine.workers import Workers
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.messaging.outcomes import Retry
from things_kit.messaging.policy import RetryPolicy

log = logging.getLogger("things_kit.consumer")

WAIT: Final = 5.0
"""Seconds that one `receive` waits: nothing depends on it but how often an idle consumer looks around."""


class Treatment(msgspec.Struct, frozen=True):
    """What a consumer does with failures.

    `dead_letter` is a topic; None keeps messages for ever, and `discard` drops them. `retry_topics` says whether
    what is put aside has topics to wait in; else it waits in memory.
    """

    retry: RetryPolicy
    dead_letter: str | None
    discard: bool
    drain: float
    retry_topics: bool
    chance: random.Random


class Source:
    """Brings one topic's deliveries to the workers, and their outcomes back."""

    def __init__(
        self,
        subscription: Subscription,
        driver: Driver,
        treatment: Treatment,
        lanes: Lanes,
        workers: Workers,
        producer: BrokerProducer,
    ) -> None:
        self.subscription = msgspec.structs.replace(
            subscription, let_go=self.let_go, forget=self.forget, ailing=self._ails
        )
        self.subscribed = asyncio.Event()
        self.away: Exception | None = None
        self.discarded = 0
        self.loan: Loan | None = None
        self._driver = driver
        self._capabilities = driver.capabilities
        self._treatment = treatment
        self._workers = workers
        self._producer = producer
        self._lanes = lanes
        self._delays = Delays(self._due)
        self._backoff = Backoff()
        self._outages = Outages(self._name)
        self._burials: dict[asyncio.Task[None], Delivery] = {}
        self._postponing: dict[asyncio.Task[None], Delivery] = {}
        # On their way to the dead letter, of lanes that went back to the broker meanwhile: not of any lane here
        self._loose: set[Delivery] = set()
        self._ailment: str | None = None
        self._room = asyncio.Event()
        self._progress = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._stopping = False

    # --- receiving

    async def run(self) -> None:
        """Subscribe and receive, again after each lost connection, until `stop`. Raises what cannot be mended."""
        while not self._stopping:
            self._ailment = None  # of a former receiver
            try:
                receiver = await self._driver.subscribe(self.subscription)
            except ConnectionLost as error:
                self._went_away(error)
                await self._backoff.wait()
                continue
            self.away = None
            self._outages.ended()
            self.loan = loan = Loan(receiver, self, self._lanes, self._capabilities)
            self.subscribed.set()
            if self._stopping:
                loan.finish()  # whoever stopped us did not see this loan, as the driver swallowed our cancellation
            try:
                await self._serve(loan)
            except ConnectionLost as error:
                self._lose(loan, error)
            finally:
                with contextlib.suppress(ConnectionLost):
                    await receiver.close()
            if loan.lost and not self._stopping:
                await self._backoff.wait()

    async def _serve(self, loan: Loan) -> None:
        """Receive, settle and extend side by side until the source stops. Raises the first error of the three."""
        self._pump = asyncio.create_task(self._receive(loan), name=f"{self._name} pump")
        settling = asyncio.create_task(loan.settle(), name=f"{self._name} settle")
        extending = asyncio.create_task(loan.extend(), name=f"{self._name} leases")
        tasks = {self._pump, settling, extending}
        try:
            pending = tasks
            while not settling.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.cancelled():
                        self._raise_if_cut_off(task)
                    elif (error := task.exception()) is not None:
                        raise error
        finally:
            await ended(*tasks)

    def _raise_if_cut_off(self, task: asyncio.Task[None]) -> None:
        """Only we may cancel it, to stop; else, such as by a driver's own future, nothing would ever arrive again."""
        if not self._stopping:
            raise RuntimeError(f"{task.get_name()} was cancelled from outside")

    async def _receive(self, loan: Loan) -> None:
        most = self.subscription.max_in_flight
        while not self._stopping:
            room = most - len(loan.held)
            if room <= 0 or (room * 4 < most and self._workers.ready):  # few at a time cost as much as many
                self._room.clear()
                await self._room.wait()
                continue
            await loan.calm()
            self._lanes.unpark(loan.take_unparked())
            deliveries = await loan.receiver.receive(room, WAIT)
            if deliveries:
                loan.held.update(dict.fromkeys(deliveries, asyncio.get_running_loop().time()))
                self._accept(loan, deliveries)
            else:
                self._backoff.reset()

    def settled(self) -> None:
        """The broker has taken settlements: there is room for more."""
        self._backoff.reset()  # only now: a broker that hands out but takes nothing back is not well
        self._room.set()
        self._progress.set()

    def make_room(self) -> None:
        """A worker has nothing to do: whatever room there is is worth a call."""
        self._room.set()

    def _accept(self, loan: Loan, deliveries: Sequence[Delivery]) -> None:
        if not self._capabilities.targeted:
            deliveries = self._skip_foreign(loan, deliveries)
        loan.send_back(self._lanes.admit(deliveries, loan))
        self._workers.wake()

    def _skip_foreign(self, loan: Loan, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Acknowledge what was replayed for another group."""
        group = self.subscription.group
        foreign = {d for d in deliveries if d.message.headers.get(REPLAY_GROUP, group) != group}
        for delivery in foreign:
            loan.acknowledge(delivery)
        return [d for d in deliveries if d not in foreign] if foreign else deliveries

    def _went_away(self, error: Exception) -> None:
        self.away = error
        self._outages.lasts(error)

    @property
    def trouble(self) -> str | None:
        """Why nothing can arrive; None where it can."""
        return self._ailment if self.away is None else f"the broker is away: {self.away}"

    def _ails(self, reason: str | None) -> None:
        if reason is not None:
            log.warning("%s: %s", self._name, reason)
        self._ailment = reason

    def _lose(self, loan: Loan, error: ConnectionLost) -> None:
        """Forget what came over a lost connection: it comes again over the next."""
        self._went_away(error)
        loan.lost = True
        self.loan = None
        self._drop_queued(lambda delivery: delivery.loan is loan)
        self._lanes.unpark(loan.parked)

    def _busy(self) -> set[Delivery]:
        """What is being handled, or on its way to the dead letter."""
        return {*self._workers.busy(), *self._burials.values()}

    # --- giving up a part, such as a partition that moves to another consumer

    async def let_go(self, which: Which) -> None:
        """Drop what was not begun, wait up to the drain time for what was, and settle it."""
        self._drop_unbegun(which)
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._treatment.drain
        while self.loan is not None and any(map(which, self.loan.held)) and loop.time() < ends:
            self._progress.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ends):
                    await self._progress.wait()
            self._drop_unbegun(which)  # what failed meanwhile: the next attempt is not ours to make
        self.forget(which)

    def forget(self, which: Which) -> None:
        """Drop them, begun or not; what their handlers answer concerns nobody any more."""
        self._drop_unbegun(which)
        if self.loan is not None:
            self.loan.drop(which)
        self._room.set()

    def _drop_unbegun(self, which: Which) -> None:
        loan = self.loan
        if loan is None:
            return
        self._drop_queued(which)
        begun = {*self._busy(), *self._postponing.values(), *loan.leaving()}
        loan.drop(lambda delivery: which(delivery) and delivery not in begun)
        self._workers.wake()

    def _drop_queued(self, which: Which) -> None:
        """Drop what waits here; a lane whose head is being handled stays closed until that is done."""
        self._lanes.drop(which)
        for delivery in self._delays.drop(which):
            if self._treatment.retry.mode == "in_place":  # else its lane went on without it long ago
                self._lanes.advance(delivery)

    # --- outcomes

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """Decide what becomes of a delivery whose handler failed."""
        if not delivery.loan.owns(delivery):
            self._pass_on(delivery)  # it comes, or has come, to somebody again
            return
        verdict = self._judge(delivery, error)
        if isinstance(verdict, TryAgain):
            self._try_again(delivery, verdict.wait)
        else:
            self._give_up(delivery, error)

    def _pass_on(self, delivery: Delivery) -> None:
        self._lanes.advance(delivery)
        self._workers.wake()

    def give_back(self, delivery: Delivery) -> None:
        """Return a delivery whose handler was cut short by the stop: nobody's failure, so not counted."""
        delivery.loan.release(Release(delivery, attempt=delivery.message.attempt))

    def _judge(self, delivery: Delivery, error: BaseException) -> TryAgain | Bury:
        treatment, message = self._treatment, delivery.message
        keep = treatment.dead_letter is None and not treatment.discard
        verdict = judge(error, message.attempt, treatment.retry, keep=keep, chance=treatment.chance)
        if isinstance(verdict, TryAgain):
            log.log(
                logging.INFO if isinstance(error, Retry) else logging.WARNING,  # it was asked for
                "%s: attempt %d of message %r failed: %r; again in %.3g s",
                self._name, message.attempt, message.id, error, verdict.wait,
            )  # fmt: skip
        return verdict

    def _try_again(self, delivery: Delivery, wait: float) -> None:
        """In place: the lane waits with its head. Delayed: the head gives up its place and the lane goes on."""
        native, lane = self._capabilities, self._lanes.lane_of(delivery)
        again = Release(delivery, wait, delivery.message.attempt + 1)
        if not delivery.loan.owns(delivery):
            self._pass_on(delivery)
        elif self._treatment.retry.mode == "delayed":
            self._put_aside(again)
            self._pass_on(delivery)
        elif native.lanes and delivery in self._loose:
            self._loose.remove(delivery)
            delivery.loan.release(again)
        elif native.lanes:
            buried = {other for other in self._burials.values() if self._lanes.lane_of(other) == lane}
            self._loose |= buried - {delivery}
            delivery.loan.park(again)
        elif (self._waits_in_broker(wait) and native.attempts and lane is None) or self._stopping:
            # A head that came later than those behind it, which go back now, would be overtaken: order before back-off
            again.delay = wait if native.delay and lane is None else 0.0
            delivery.loan.release(again)
        elif self._lanes.has_several_heads(lane) and any(
            self._lanes.lane_of(d) == lane for d in self._delays
        ):
            delivery.message = delivery.message.replace(attempt=again.attempt)
            arrived = {each: number for number, each in enumerate(delivery.loan.held)}
            self._lanes.put_behind([delivery], arrived)  # several of one batch failed: they keep their order
        else:
            self._hold(again)

    def _waits_in_broker(self, wait: float) -> bool:
        return self._capabilities.delay and wait >= self._capabilities.delay_from

    def _put_aside(self, again: Release) -> None:
        delivery = again.delivery
        if self._waits_in_broker(again.delay):
            again.aside = True
            delivery.loan.release(again)
        elif again.delay <= SHORT or not self._treatment.retry_topics:
            self._hold(again)
        else:
            delivery.message = delivery.message.replace(attempt=again.attempt)
            self._in_background(self._postpone(delivery, again.delay), delivery, self._postponing)

    async def _postpone(self, delivery: Delivery, wait: float) -> None:
        """Acknowledge a message only after its copy in a retry topic is confirmed; without one it waits here."""
        try:
            await self._producer.publish(postpone(delivery.message, self.subscription.group, wait))
        except ThingsKitError as error:
            log.warning("%s: message %r waits in memory: %s", self._name, delivery.message.id, error)
            self._delays.hold(delivery, wait)
        else:
            delivery.loan.acknowledge(delivery)

    def _in_background(
        self,
        work: Coroutine[Any, Any, None],
        delivery: Delivery,
        register: dict[asyncio.Task[None], Delivery],
    ) -> None:
        task = asyncio.create_task(work, name=f"{self._name} leaving message")
        register[task] = delivery
        task.add_done_callback(register.pop)

    def _hold(self, again: Release) -> None:
        delivery = again.delivery
        delivery.message = delivery.message.replace(attempt=again.attempt)
        self._delays.hold(delivery, again.delay)
        self._progress.set()

    def _due(self, delivery: Delivery) -> None:
        if self._treatment.retry.mode == "delayed":
            self._lanes.admit([delivery], delivery.loan)
        else:
            self._workers.ready.append(delivery)
        self._workers.wake()

    # --- giving up

    def _give_up(self, delivery: Delivery, error: BaseException) -> None:
        message, treatment = delivery.message, self._treatment
        log.error(
            "%s: message %r failed for good after attempt %d: %r",
            self._name, message.id, message.attempt, error,
            exc_info=error,
        )  # fmt: skip
        if treatment.dead_letter is None:
            self.discarded += 1
            delivery.loan.done(delivery)
            self._workers.wake()
            return
        dead = make_dead_letter(
            message,
            topic=treatment.dead_letter,
            group=self.subscription.group,
            error=error,
            limit=self._capabilities.dead_letter_bytes,
        )
        self._in_background(self._bury(delivery, dead), delivery, self._burials)

    async def _bury(self, delivery: Delivery, dead: Message) -> None:
        """Acknowledge a message only after its dead letter is confirmed; without one it is tried again."""
        try:
            await self._producer.publish(dead)
        except ThingsKitError as error:
            log.error(  # noqa: TRY400 - the sentence says it all
                "%s: the dead letter of message %r was not published: %s; the message is kept",
                self._name, delivery.message.id, error,
            )  # fmt: skip
            self._try_again(delivery, after_lost_burial(self._treatment.retry, self._treatment.chance).wait)
        else:
            if delivery in self._loose:
                self._loose.remove(delivery)
                delivery.loan.acknowledge(delivery)
            else:
                delivery.loan.done(delivery)
            self._workers.wake()

    # --- stopping

    def stop_receiving(self) -> None:
        """Take nothing more, and give back all that is not being handled."""
        self._stopping = True
        self._delays.clear()
        if self._pump is not None:
            self._pump.cancel()
        if self.loan is not None:
            self.loan.release_all_but({*self._busy(), *self._postponing.values()})
            self._lanes.forget(self._busy())

    async def finish(self, within: float) -> None:
        """Wait for dead letters and retries on their way; then let the last settlements go and `run` return."""
        leaving = [*self._burials, *self._postponing]
        if leaving:
            await asyncio.wait(leaving, timeout=within)
        await ended(*leaving)
        if self.loan is not None:
            self.loan.release_all_but(frozenset())
            self.loan.finish()

    @property
    def _name(self) -> str:
        return f"{self.subscription.topic} as {self.subscription.group}"
