"""Workers for batch handlers: each call gets a list."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from things_kit.engine.driver import Delivery
from things_kit.engine.pipeline import HandleBatch
from things_kit.engine.workers import Worker, Workers
from things_kit.messaging.outcomes import BatchError


class BatchWorkers(Workers):
    """Gathers what is ready into lists of up to `size`, waiting up to `wait` seconds for one to fill.

    A list holds messages of one lane in their order. Those that failed together go to `failed_together`.
    """

    def __init__(
        self,
        handle_batch: HandleBatch,
        *,
        size: int,
        wait: float,
        failed_together: Callable[[Sequence[tuple[Delivery, BaseException]]], None],
        **common: Any,
    ) -> None:
        super().__init__(handle=_never, failed=_never, **common)
        self._handle_batch = handle_batch
        self._size = size
        self._wait = wait
        self._failed_together = failed_together

    async def _busy_period(self, worker: Worker) -> None:
        while self.ready and not self._stopping:
            batch = await self._gather()
            if not batch:
                continue
            worker.deliveries = batch
            worker.started = asyncio.get_running_loop().time()
            try:
                await self._handle_batch([delivery.message for delivery in batch])
            except BatchError as error:
                self._part_failed(batch, error)
            except BaseException as error:  # noqa: BLE001 - every exception is an answer
                self._all_failed(worker, batch, error)
                await self.let_thread_end(worker)
            else:
                for delivery in batch:
                    delivery.loan.done(delivery)
            if worker.cancelled is not None:  # the handler swallowed it and finished
                self._uncancel(worker)
            worker.deliveries = None
            await asyncio.sleep(0)  # once a batch: the loop gets its turn

    async def _gather(self) -> list[Delivery]:
        """A batch; empty if the consumer stops meanwhile: what was gathered was never begun."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._wait
        heads: list[Delivery] = []
        batch: list[Delivery] = []
        while len(batch) < self._size and not self._stopping:
            if self.ready:
                heads.append(self.ready.popleft())
                batch.append(heads[-1])
                batch += heads[-1].loan.lanes.take_more(heads[-1], self._size - len(batch))
            elif loop.time() >= ends:
                break
            else:
                await self._rest_until(ends)
        for head in heads:  # more of their lanes may have come while we waited
            batch += head.loan.lanes.take_more(head, self._size - len(batch))
        return [] if self._stopping else [delivery for delivery in batch if not delivery.loan.lost]

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

    def _part_failed(self, batch: list[Delivery], error: BatchError) -> None:
        failed = [
            (delivery, error.errors[index]) for index, delivery in enumerate(batch) if index in error.errors
        ]
        for index, delivery in enumerate(batch):
            if index not in error.errors:
                delivery.loan.done(delivery)
        self._failed_together(failed)

    def _all_failed(self, worker: Worker, batch: list[Delivery], error: BaseException) -> None:
        failure = self.failure(worker, error)
        if failure is None:
            for delivery in batch:
                self._given_back(delivery)
        else:
            self._failed_together([(delivery, failure) for delivery in batch])


def _never(_: Any, __: Any = None) -> Any:
    raise AssertionError("a batch consumer handles lists")
