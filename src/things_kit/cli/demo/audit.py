"""One run of the demo, from the first message to the last count."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from things_kit.cli.dead_letters import looking_at
from things_kit.cli.demo.crew import Crew, Worker
from things_kit.cli.demo.inventory import Entry
from things_kit.cli.demo.plan import GROUP, WATCHERS, Plan
from things_kit.cli.demo.planted import Planted
from things_kit.cli.demo.tally import Tally
from things_kit.cli.running import CommandFailed
from things_kit.engine.broker import Broker
from things_kit.messaging import names
from things_kit.messaging.message import Message
from things_kit.messaging.policy import Batch

CHUNK: Final = 200
PATIENCE: Final = 120.0
"""Seconds without any news after which the demo gives up: brokers take up to a minute to miss a consumer."""


class Audit:
    """The run: what was published, what became of it, and what was done to the workers meanwhile.

    Attributes:
        messages: Every message's id, with the file that it is for.
        published: Those that the broker has confirmed.
        total: How many there will be.
        tally: What was counted.
        crew: The workers.
        killed: The worker that was killed; None before.
        killed_at: How many messages were settled then.
        in_hand: The message that it had verified, but not acknowledged.
        lag: What the group had not acknowledged at the end, as far as the broker can say.
        kept: The ids in the dead-letter topic at the end.
        seconds: How long it took from the first publish until nothing was left to do.
    """

    def __init__(
        self, broker: Broker, plan: Plan, entries: list[Entry], planted: Planted, folder: Path
    ) -> None:
        self.broker = broker
        self.plan = plan
        self.planted = planted
        self.tally = Tally()
        self.crew = Crew(plan, folder)
        self.messages = {str(uuid.uuid4()): entry for entry in [*planted.entries, *entries]}
        self.published: dict[str, Entry] = {}
        self.total = len(self.messages)
        self.killed: Worker | None = None
        self.killed_at = 0
        self.in_hand = ""
        self.lag: int | None = None
        self.kept: set[str] = set()
        self.seconds = 0.0

    async def run(self, workers: int, tell: Callable[[str], None]) -> None:
        """Do all of it.

        Raises:
            CommandFailed: A worker ended by itself, or the messages stopped coming.
            ThingsKitError: The broker failed.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.crew.kill)
            await self._declare()
            for topic, handler, batch in (
                (self.plan.reports, self.tally.report, Batch(size=500, wait=0.02)),
                (self.plan.dead_letters, self.tally.bury, None),
            ):
                await stack.enter_async_context(
                    self.broker.consumer(
                        topic, group=WATCHERS, handler=handler, batch=batch, dead_letter=None
                    )
                )
            await self._unless_a_worker_fails(self._audit(workers, tell))
            await self._until_acknowledged(self.plan.reports, WATCHERS)
            await self._count_what_is_left()

    async def _declare(self) -> None:
        await self.broker.declare(self.plan.topic, groups=[GROUP])
        await self.broker.declare(self.plan.reports, groups=[WATCHERS])
        await self.broker.declare(self.plan.dead_letters, groups=[WATCHERS, names.DEAD_LETTER_GROUP])

    async def _audit(self, workers: int, tell: Callable[[str], None]) -> None:
        await self.crew.start(workers)
        tell(
            f"{'1 worker process is' if workers == 1 else f'{workers} worker processes share'} the group {GROUP}"
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        late = asyncio.create_task(self._late())
        try:
            await self._publish_and_kill(tell)
            await self._until(lambda: self.tally.settled >= self.total and self._came_again())
            await late
        finally:
            late.cancel()
        # A worker reports before its message is acknowledged.
        await self._until_acknowledged(self.plan.topic, GROUP)
        self.seconds = loop.time() - began
        await self.crew.stop()

    async def _publish_and_kill(self, tell: Callable[[str], None]) -> None:
        ids = list(self.messages)
        half = self.total // 2
        # The last are published when the workers know that one of them is to be killed: so there is something in hand.
        first, last = ids[: -max(1, self.total // 10)], ids[-max(1, self.total // 10) :]
        producer = self.broker.producer()
        while first and self.tally.settled < half:
            await self._publish(producer.publish_batch, first[:CHUNK])
            first = first[CHUNK:]
        await self._until(lambda: self.tally.settled >= half)
        await self.crew.hold()
        await self._publish(producer.publish_batch, [*first, *last])
        tell(f"all {self.total:,} messages are published")
        self.killed, self.in_hand = await self.crew.kill_first_holding()
        self.killed_at = self.tally.settled
        tell(
            f"{self.killed.name} was killed with SIGKILL in the middle of a message, after {self.killed_at:,}"
        )
        await self.crew.start(1)
        tell(f"{self.crew.workers[-1].name} takes its place")

    async def _publish(
        self, publish_batch: Callable[[list[Message]], Awaitable[None]], ids: list[str]
    ) -> None:
        entries = {message_id: self.messages[message_id] for message_id in ids}
        await publish_batch(
            [
                Message(
                    self.plan.topic,
                    msgspec.json.encode(entry.file),
                    key=entry.distribution.encode(),
                    headers={"type": "file.recorded"},
                    id=message_id,
                )
                for message_id, entry in entries.items()
            ]
        )
        self.published |= entries

    async def _late(self) -> None:
        late_id = next(key for key, entry in self.messages.items() if entry.file.path == self.planted.late)
        await self._until(lambda: late_id in self.tally.failed)
        self.planted.arrive()

    def _came_again(self) -> bool:
        return self.tally.verified[self.in_hand] > 1

    async def _until(self, satisfied: Callable[[], bool]) -> None:
        if not await self.tally.until(satisfied, PATIENCE):
            raise CommandFailed(
                f"nothing happened for {PATIENCE:g} seconds, with {self.tally.settled} of {self.total} messages done"
            )

    async def _until_acknowledged(self, topic: str, group: str) -> None:
        loop = asyncio.get_running_loop()
        lag, since = await self.broker.lag(topic, group=group), loop.time()
        while lag:
            await asyncio.sleep(0.05)
            before, lag = lag, await self.broker.lag(topic, group=group)
            if lag != before:
                since = loop.time()
            elif loop.time() - since > PATIENCE:
                raise CommandFailed(f"{lag} messages of {topic} are still not acknowledged by {group}")

    async def _unless_a_worker_fails(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.crew.failed}, return_when=asyncio.FIRST_COMPLETED)
            if self.crew.failed.done():
                await self.crew.failed
            await task
        finally:
            task.cancel()

    async def _count_what_is_left(self) -> None:
        self.lag = await self.broker.lag(self.plan.topic, group=GROUP)
        async with looking_at(self.broker, self.plan.dead_letters) as messages:
            self.kept = {message.id or "" async for message in messages}
