"""What every test of the suite stands on: brokers of the target, names of its own, and cleaning up after it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import pytest

from things_kit import (
    Broker,
    BrokerUnavailable,
    Message,
    Producer,
    RetryPolicy,
    Topic,
    UnsupportedError,
    connect,
)
from things_kit.engine.driver import Capabilities, Scheduling
from things_kit.engine.looking import topics_of
from things_kit.engine.wait_topics import DEAD_LETTER, declare, wait_topics
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Act, Recorder
from things_kit.testing.conformance.target import Hook, Target
from things_kit.testing.conformance.waiting import eventually

QUICK: Final = RetryPolicy(attempts=3, first=0.02, factor=2.0, limit=0.1, jitter=0.0)
"""A retry policy for tests that only need one."""


class Stage:
    """The target, with unique names, and everything that a test opened, closed after it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.patience = target.patience
        self._unique = uuid4().hex[:10]
        self._topics: list[str] = []
        self._brokers: list[Broker] = []
        self.consumers: list[Any] = []
        self._workers: list[WorkerProcess] = []
        self._first: Broker | None = None

    async def __aenter__(self) -> Self:
        self._first = await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            await worker.kill()
        for broker in reversed(self._brokers):
            if broker.transmission.has_declared(
                DEAD_LETTER, DEAD_LETTER_GROUP
            ):  # else all later tests would carry on
                self.sweep(DEAD_LETTER, *wait_topics(partitions=broker.capabilities.partitions))
            await broker.close()
        async with connect(self.target.url) as sweeper:
            for topic in self._topics:
                await sweeper.remove(topic)

    @property
    def broker(self) -> Broker:
        """The test's first broker, open."""
        assert self._first is not None
        return self._first

    @property
    def capabilities(self) -> Capabilities:
        """What the broker under test says that it can."""
        return self.broker.capabilities

    @property
    def schedules(self) -> bool:
        """Whether messages are kept until later, by the driver or by topics of the engine's."""
        return self.capabilities.carried > 0 or isinstance(self.broker.transmission.driver, Scheduling)

    async def ready_to_schedule(self) -> None:
        """Have what the engine needs for that, where it is needed: made once for a broker, it is no part of any time."""
        if self.capabilities.carried and not self.capabilities.schedule_ids:
            await declare(self.broker.transmission)

    def name(self, word: str) -> str:
        """A name that no other test uses."""
        return f"{word}-{self._unique}"

    def topic(self, word: str = "orders") -> str:
        """A topic that no other test uses; it and its dead letters are removed after the test."""
        name = self.name(word)
        self.sweep(name, f"{name}-dlq")
        return name

    def sweep(self, *topics: str) -> None:
        """Have these topics removed after the test."""
        self._topics.extend(topics)

    def group(self, word: str = "billing") -> str:
        """A consumer group that no other test uses."""
        return self.name(word)

    async def open(self, **options: object) -> Broker:
        """One more broker, with these options in its URL; it is closed after the test."""
        broker = connect(self.target.at(**options))
        await broker.open()
        self.closing(broker)
        return broker

    def closing(self, broker: Broker) -> None:
        """Have this broker closed after the test."""
        self._brokers.append(broker)

    async def consume(
        self,
        topics: str | list[str] | Topic[Any],
        group: str | None,
        handler: Any = None,
        *,
        broker: Broker | None = None,
        **options: Any,
    ) -> Any:
        """A started consumer; it is stopped after the test. Retries are quick unless told otherwise."""
        options.setdefault("retry", QUICK)
        options.setdefault("drain_timeout", 5.0)
        consumer = (broker or self.broker).consumer(topics, group=group, handler=handler, **options)
        await consumer.start()
        self.consumers.append(consumer)
        return consumer

    async def record(
        self, topics: str | list[str], group: str | None, act: Act | None = None, **options: Any
    ) -> Recorder:
        """A recorder that is being fed by a consumer of its own."""
        recorder = Recorder(act)
        await self.consume(topics, group, recorder, **options)
        return recorder

    async def keep(self, topic: str, group: str | None = None) -> None:
        """Let messages be published before a group of the test is there: a broker that retains none refuses them."""
        if not self.capabilities.retained:
            await self.broker.declare(topic, groups=[group or self.group("keeper")])

    async def publish(
        self, topic: str, *values: bytes, broker: Broker | None = None, **fields: Any
    ) -> list[Message]:
        """Publish values one after another; the messages carry the ids under which they will arrive."""
        messages = [Message(topic, value, id=uuid4().hex, **fields) for value in values]
        producer = (broker or self.broker).producer()
        for message in messages:
            await producer.publish(message)
        await producer.close()
        return messages

    async def publish_all(self, messages: Sequence[Message], broker: Broker | None = None) -> None:
        """Publish messages as one batch."""
        producer = (broker or self.broker).producer()
        await producer.publish_batch(messages)
        await producer.close()

    async def tells_names(self) -> bool:
        """Whether the broker, as it was set up, tells which topics there are."""
        try:
            await topics_of(self.broker)
        except UnsupportedError:
            return False
        return True

    async def lag(self, topic: str, group: str) -> int | None:
        """The lag, as the first broker sees it."""
        return await self.broker.lag(topic, group=group)

    async def until_lag(self, topic: str, group: str, expected: int) -> None:
        """Wait until the lag is this.

        Where the broker cannot say, check that it says so, and let those who have begun with all there is finish it.
        """
        if not self.capabilities.lag:
            assert await self.lag(topic, group) is None
            if expected == 0:
                await eventually(lambda: not self._held(topic, group), self.patience, "all is settled")
            return
        seen: list[int | None] = []

        async def reached() -> bool:
            seen[:] = [await self.lag(topic, group)]
            return seen == [expected]

        try:
            await eventually(reached, self.patience, f"the lag of {group} is {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the lag is {seen[0]}") from None

    def _held(self, topic: str, group: str) -> int:
        """How many messages the test's consumers have and have not settled."""
        health = [consumer.health() for consumer in self.consumers]
        return sum(
            each.in_flight for each in health if each.running and topic in each.topics and group == each.group
        )

    async def until_published(self, producer: Producer, message: Message) -> None:
        """Publish it, again and again where its publish_timeout is shorter than a busy machine takes."""

        async def published() -> bool:
            with contextlib.suppress(BrokerUnavailable):
                await producer.publish(message)
                return True
            return False

        await eventually(published, self.patience, "it is published")

    async def dead_letters(self, topic: str, count: int) -> list[Message]:
        """Wait for so many dead letters of a topic, and take them as the group that keeps them."""
        recorder = await self.record(f"{topic}-dlq", DEAD_LETTER_GROUP, dead_letter=None)
        return await recorder.until_done(count, self.patience)

    def needs_outage(self) -> tuple[Hook, Hook]:
        """How the broker is taken away and brought back; skips the test where that cannot be done.

        For its first line: what was begun before a skip would be left to the tests after it.
        """
        hooks = self.target.outage
        if hooks is None:
            pytest.skip(
                "this target can neither be paused nor killed: there is no broker apart from this process"
            )
        return hooks

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """The broker is away inside of this. See `needs_outage`."""
        away, back = self.needs_outage()
        await away()
        try:
            yield
        finally:
            await back()

    async def worker(
        self, topic: str, group: str, *, short_lease: bool = True, **options: float
    ) -> WorkerProcess:
        """Another process that consumes; skips the test where no other process can connect.

        A test that loses none of them wants no short lease: on a busy machine it runs out while the process is well.
        """
        if not self.target.shared:
            pytest.skip("no other process can connect with this broker")
        lease = self.target.lease_options if short_lease else {}
        worker = await WorkerProcess.start(self.target.at(**lease), topic, group, **options)
        self._workers.append(worker)
        return worker

    async def side_by_side(self, *started: Callable[[], Any]) -> None:
        """Run coroutine functions at the same time; the first failure ends all."""
        async with asyncio.TaskGroup() as tasks:
            for start in started:
                tasks.create_task(start())
