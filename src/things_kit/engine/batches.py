"""Workers for batch handlers: each call gets a list."""

import asyncio
from collections.abc import Mapping
from typing import Any

from things_kit.engine.driver import Delivery
from things_kit.engine.lanes import Lane
from things_kit.engine.pipeline import Steps
from things_kit.engine.state import State
from things_kit.engine.workers import Cancelled, Worker, Workers
from things_kit.messaging.handler import HandleBatch
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError


class BatchWorkers(Workers):
    """Gathers what is ready into lists of up to `size`, waiting up to `wait` seconds for one to fill.

    A list holds messages of one lane in their order.
    """

    def __init__(
        self,
        *,
        size: int,
        wait: float,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._size = size
        self._wait = wait

    def start_lists(self, handle_batch: HandleBatch) -> None:
        """Start the workers, which call this with each list."""
        self._handle_batch = handle_batch
        self.start(Steps(self._one, self._one))

    async def _one(self, message: Message) -> None:
        """What is handled alone is a batch of its own."""
        try:
            await self._handle_batch([message])
        except BatchError as error:
            raise error.errors.get(0, error) from None

    async def _busy_period(self, worker: Worker) -> None:
        while self.ready and not self._held and not worker.changed:
            batch = await self._gather(worker)
            if not batch:
                continue
            worker.deliveries = batch
            for delivery in batch:
                delivery.state = State.HANDLING
            worker.started = asyncio.get_running_loop().time()
            try:
                await self._handle_batch([delivery.message for delivery in batch])
            except BaseException as error:  # noqa: BLE001 - every exception is an answer
                self._not_all_done(worker, batch, error)
                await self.let_thread_end(worker)
            else:
                for delivery in batch:
                    delivery.inbox.done(delivery)
            worker.deliveries = None
            if worker.task.cancelling():  # the handler swallowed it and finished, or has cancelled itself
                await self._shed(worker)
            await asyncio.sleep(0)  # once a batch: the loop gets its turn

    async def _gather(self, worker: Worker) -> list[Delivery]:
        """A batch; empty if the consumer stops or pauses meanwhile: what was gathered was never begun."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._wait
        heads: list[Delivery] = []
        batch: list[Delivery] = []
        worker.gathered = batch
        while len(batch) < self._size and not self._held:
            if self.ready:
                head = self.ready.popleft()
                head.state = State.GATHERED
                heads.append(head)
                batch.append(head)
                batch += head.inbox.lanes.take_more(head, self._size - len(batch))
            elif loop.time() >= ends:
                break
            else:
                await self._rest_until(ends)
        for head in heads:  # more of their lanes may have come while we waited
            batch += head.inbox.lanes.take_more(head, self._size - len(batch))
        worker.gathered = []
        for delivery in batch:
            if delivery.state is State.GONE:  # it was taken back while it waited here
                delivery.inbox.done(delivery)
        batch = [delivery for delivery in batch if delivery.state is State.GATHERED]
        if not self._held:
            return batch
        self._put_back(batch)
        return []

    def _put_back(self, batch: list[Delivery]) -> None:
        """What was gathered is handled later, or goes back to the broker."""
        lanes: dict[Lane, list[Delivery]] = {}
        for delivery in batch:
            lanes.setdefault(delivery.inbox.lanes.lane_of(delivery), []).append(delivery)
        for lane, deliveries in lanes.items():
            head, *more = deliveries
            if lane is not None and more:
                head.inbox.lanes.put_behind(more)
            for each in [head] if lane is not None else deliveries:
                each.state = State.READY
        if not self._stopping:
            self.ready.extendleft(each for each in reversed(batch) if each.state is State.READY)

    async def _rest_until(self, when: float) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_at(when, lambda: None if waiter.done() else waiter.set_result(None))
        self._idle.appendleft(waiter)  # before those that have gathered nothing yet
        try:
            await waiter
        finally:
            timer.cancel()
            if waiter in self._idle:
                self._idle.remove(waiter)

    def _not_all_done(self, worker: Worker, batch: list[Delivery], error: BaseException) -> None:
        failed: Mapping[int, BaseException]
        partly = error.moved(range(len(batch))) if isinstance(error, BatchError) else None
        if partly is not None:
            failed, stopped = partly.errors, worker.cancelled is Cancelled.STOP
        else:
            failure = self.failure(worker, error)
            stopped = failure is None
            failed = dict.fromkeys(range(len(batch)), error if failure is None else failure)
        for index, delivery in enumerate(batch):
            if index not in failed:
                delivery.inbox.done(delivery)
        for index in sorted(failed):
            delivery = batch[index]
            if stopped:
                delivery.inbox.outcomes.give_back(delivery)
            else:
                delivery.inbox.outcomes.failed(delivery, failed[index])
