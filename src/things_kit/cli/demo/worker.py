"""A worker process of the demo.

Its plan is the first line of its standard input, so that a password in the URL is not seen among the processes.
Lines that follow are orders, and the end of the input stops it: it cannot outlive the demo.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import msgspec

from things_kit.brokers.connect import connect
from things_kit.cli.demo.plan import ARMED, GROUP, HOLD, HOLDING, READY, RESUME, Plan, Report
from things_kit.cli.demo.recorded import RecordedFile
from things_kit.cli.source import Source, unbuffered
from things_kit.messaging.errors import ThingsKitError
from things_kit.messaging.message import Message
from things_kit.messaging.policy import RetryPolicy
from things_kit.messaging.producer import Producer

RETRY = RetryPolicy(attempts=5, first=0.1)  # a package manager may be at work: what is wrong now may mend


class Auditor:
    """Verifies files, and reports each attempt before it is acknowledged."""

    def __init__(self, plan: Plan, producer: Producer) -> None:
        self._plan = plan
        self._producer = producer
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._told = False

    async def audit(self, file: RecordedFile, message: Message) -> None:
        """Verify one file. A file that is missing or changed fails, with its reason."""
        try:
            await asyncio.to_thread(file.verify)
        except Exception as error:
            await self._report(message, type(error).__name__)
            raise
        await self._report(message, None)
        await self._held(message)

    def obey(self, order: str) -> None:
        """Freeze in the middle of the next message, or go on."""
        if order == HOLD:
            self._resumed.clear()
            _tell(ARMED)
        elif order == RESUME:
            self._resumed.set()

    async def _report(self, message: Message, error_type: str | None) -> None:
        report = Report(message.id or "", self._plan.worker, message.attempt, error_type)
        await self._producer.publish(Message(self._plan.reports, msgspec.json.encode(report)))

    async def _held(self, message: Message) -> None:
        if not self._resumed.is_set() and not self._told:
            self._told = True
            _tell(f"{HOLDING} {message.id}")
        await self._resumed.wait()


async def work(plan: Plan, orders: AsyncIterator[str]) -> None:
    """Audit as one of the group until there are no more orders."""
    async with connect(plan.url) as broker:
        auditor = Auditor(plan, broker.producer())
        # An audit needs no order. With ordering="key" the files of a large distribution would queue up behind
        # one another, and the demo would take more than twice as long.
        consumer = broker.consumer(
            plan.topic,
            group=GROUP,
            handler=auditor.audit,
            concurrency=8,
            ordering="none",
            max_in_flight=100,
            retry=RETRY,
            drain_timeout=5,
        )
        async with consumer:
            _tell(READY)
            waiting = asyncio.create_task(consumer.wait())
            obeying = asyncio.create_task(_obey(auditor, orders))
            try:
                done, _ = await asyncio.wait({waiting, obeying}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                obeying.cancel()
            for task in done:
                task.result()


async def _obey(auditor: Auditor, orders: AsyncIterator[str]) -> None:
    async for order in orders:
        auditor.obey(order)


async def _main() -> None:
    lines = _lines()
    plan = msgspec.json.decode(await anext(lines), type=Plan)
    await work(plan, lines)


async def _lines() -> AsyncIterator[str]:
    async for lines in Source(unbuffered(sys.stdin.buffer)).lines(1):
        for line in lines:
            yield line.decode()


def _tell(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Ctrl-C is for the demo, which then closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asyncio.run(_main())
    except ThingsKitError as failure:
        sys.stderr.write(f"{failure}\n")
        raise SystemExit(1) from None
