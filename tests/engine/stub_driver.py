"""A driver that does as it is told, and notes every breach of the driver contract by the engine.

It is a small broker in this process whose `Capabilities` a test chooses, so that what the engine emulates is seen:
back-off without native delay, order without native lanes, leases, foreign replays. Calls can be made to fail
(`fail`), to wait (`hold`), connections can be cut (`cut`) and parts taken back (`take_back`).
"""

import asyncio
import functools
import gc
import zlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeAlias, overload

import msgspec

from things_kit.engine.broker import Broker
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Delivery,
    Release,
    Subscription,
    UnknownTopic,
    Which,
)
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message
from things_kit.testing import run_virtual

NATIVE_LANES = Capabilities(delay=True, lanes=True, retained=True, attempts=True, targeted=True)
"""As memory and SQLite."""

NATIVE_DELAY = Capabilities(delay=True, attempts=True)
"""As RabbitMQ and SQS: no order of its own."""

BARE = Capabilities(partitions=True)
"""As Kafka: the engine emulates everything."""


class Entry(msgspec.Struct, eq=False):
    """One message of one group."""

    offset: int
    message: Message
    attempt: int = 1
    due: float = 0.0


class Group:
    def __init__(self, topic: str, name: str) -> None:
        self.topic = topic
        self.name = name
        self.pending: list[Entry] = []
        self.receivers: list[StubReceiver] = []

    def give(self, entries: Sequence[Entry]) -> None:
        self.pending = sorted([*self.pending, *entries], key=lambda entry: entry.offset)
        for receiver in self.receivers:
            receiver.woken.set()


class StubReceiver:
    def __init__(self, driver: "StubDriver", group: Group, subscription: Subscription) -> None:
        self.subscription = subscription
        self.out: dict[Delivery, Entry] = {}
        self.settled: set[Delivery] = set()
        self.expired: set[Delivery] = set()
        self.closed = False
        self.lost: Exception | None = None
        self.woken = asyncio.Event()
        self._driver = driver
        self._group = group
        self._leases: dict[Delivery, float] = {}
        self._receiving = False

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        if self._receiving or self.closed:
            self._driver.breach("receive while another waits, or after close")
        self._receiving = True
        try:
            await self._driver.enter("receive", self)
            return await self._receive(limit, asyncio.get_running_loop().time() + wait)
        finally:
            self._receiving = False

    async def _receive(self, limit: int, deadline: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        while True:
            if self.lost is not None:
                raise self.lost
            for receiver in self._group.receivers:
                receiver.expire(loop.time())
            if taken := self._take(limit, loop.time()):
                return taken
            if loop.time() >= deadline:
                return []
            times = [entry.due for entry in self._group.pending if entry.due > loop.time()]
            times += [end for receiver in self._group.receivers for end in receiver._leases.values()]
            self.woken.clear()
            try:
                async with asyncio.timeout_at(min([deadline, *times])):
                    await self.woken.wait()
            except TimeoutError:
                pass

    def _take(self, limit: int, now: float) -> list[Delivery]:
        taken: list[Delivery] = []
        closed: set[Any] = set()
        for entry in list(self._group.pending):
            if len(taken) >= limit:
                break
            lane = self._lane(entry.message)
            if lane is not None and (
                lane in closed or entry.due > now or self._elsewhere(lane, entry.offset)
            ):
                closed.add(lane)
            elif entry.due <= now:
                self._group.pending.remove(entry)
                delivery = Delivery(entry.message.replace(attempt=entry.attempt), token=entry.offset)
                self.out[delivery] = entry
                if (lease := self._driver.capabilities.lease) is not None:
                    self._leases[delivery] = now + lease
                taken.append(delivery)
        if len(self.out) > self.subscription.max_in_flight:
            self._driver.breach(f"{len(self.out)} held, more than max_in_flight")
        self._driver.peak = max(self._driver.peak, len(self.out))
        return taken

    def _lane(self, message: Message) -> Any:
        if not self._driver.capabilities.lanes or self.subscription.ordering == "none":
            return None
        return message.key if self.subscription.ordering == "key" else ("partition", message.partition)

    def _elsewhere(self, lane: Any, offset: int) -> bool:
        return any(
            self._lane(entry.message) == lane and (receiver is not self or entry.offset > offset)
            for receiver in self._group.receivers
            for entry in receiver.out.values()
        )

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        await self._driver.enter("settle", self)
        if self.lost is not None:
            raise self.lost
        back: list[Entry] = []
        native = self._driver.capabilities
        for delivery in acknowledged:
            if (entry := self._settle(delivery)) is not None:
                self._driver.acknowledged.append(entry.message)
        for release in released:
            if release.delay and not native.delay:
                self._driver.breach("a delay that this broker cannot keep")
            if (entry := self._settle(release.delivery)) is not None:
                entry.due = asyncio.get_running_loop().time() + release.delay if release.delay else 0.0
                entry.attempt = release.attempt if native.attempts else 1
                back.append(entry)
                self._driver.released.append(release)
        self._group.give(back)

    def _settle(self, delivery: Delivery) -> Entry | None:
        if delivery in self.expired:
            return None
        if delivery in self.settled:
            self._driver.breach(f"settled twice: {delivery.message.value!r}")
            return None
        if delivery not in self.out:
            self._driver.breach(f"settled, though it was taken back: {delivery.message.value!r}")
            return None
        self.settled.add(delivery)
        self._leases.pop(delivery, None)
        return self.out.pop(delivery)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        await self._driver.enter("extend", self)
        if self.lost is not None:
            raise self.lost
        now = asyncio.get_running_loop().time()
        if self._driver.capabilities.lease is None:
            self._driver.breach("extend without leases")
            return
        for delivery in deliveries:
            if delivery in self.out:
                self._leases[delivery] = now + self._driver.capabilities.lease

    async def close(self) -> None:
        self.closed = True
        self._driver.calls.append("close receiver")
        if self in self._group.receivers:
            self._group.receivers.remove(self)
        self.give_back()

    # --- what a test does

    def expire(self, now: float) -> None:
        for delivery, end in list(self._leases.items()):
            if end <= now:
                del self._leases[delivery]
                self.expired.add(delivery)
                self._driver.expired.append(delivery.message)
                self._group.give([self.out.pop(delivery)])

    def give_back(self) -> None:
        back, self.out = list(self.out.values()), {}
        self._leases.clear()
        self._group.give(back)

    def take_back(self, which: Which) -> None:
        """A part was lost: it belongs to somebody else already."""
        self.subscription.forget(which)
        for delivery in [delivery for delivery in self.out if which(delivery)]:
            del self.out[delivery]
            self._leases.pop(delivery, None)


class StubDriver:
    """See the module. `breaches` are the engine's violations of the contract; `checked` wants none."""

    def __init__(
        self, capabilities: Capabilities = BARE, *, partitions: int = 4, creates: bool = True
    ) -> None:
        self.capabilities = capabilities
        self.breaches: list[str] = []
        self.calls: list[str] = []
        self.batches: list[list[Message]] = []  # what each `send` was given
        self.attempted: list[list[Message]] = []  # the same, of those that failed too
        self.acknowledged: list[Message] = []
        self.released: list[Release] = []
        self.expired: list[Message] = []
        self.peak = 0
        self.topics: dict[str, list[Message]] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self.refuse: Callable[[Message], Exception | None] = lambda _: None
        self.refuse_topic: Callable[[str], Exception | None] = lambda _: None
        self._partitions = partitions
        self._creates = creates
        self._failures: dict[str, deque[Exception | None]] = defaultdict(deque)
        self._holds: dict[str, asyncio.Event] = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        url.options(StubOptions)
        return cls()

    # --- the contract

    async def open(self) -> None:
        await self.enter("open")

    async def close(self) -> None:
        self.calls.append("close")

    async def ping(self) -> None:
        await self.enter("ping")

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        await self.enter("declare")
        if (error := self.refuse_topic(topic)) is not None:
            raise error
        self._topic(topic)
        for group in groups:
            self._group(topic, group, earliest=True)

    async def remove(self, topic: str) -> None:
        await self.enter("remove")
        self.topics.pop(topic, None)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        self.attempted.append(list(messages))
        await self.enter("send")
        if len(messages) > self.capabilities.max_batch:
            self.breach("more than max_batch")
        self.batches.append(list(messages))
        return [self._append(message) for message in messages]

    async def subscribe(self, subscription: Subscription) -> StubReceiver:
        await self.enter("subscribe")
        if subscription.topic not in self.topics and not subscription.create:
            raise ConfigError(f"there is no topic {subscription.topic!r}")
        earliest = subscription.start == "earliest" and not subscription.ephemeral
        group = self._group(subscription.topic, subscription.group, earliest=earliest)
        receiver = StubReceiver(self, group, subscription)
        group.receivers.append(receiver)
        return receiver

    async def lag(self, topic: str, group: str) -> int | None:
        await self.enter("lag")
        if not self.capabilities.lag:
            return None
        known = self.groups.get((topic, group))
        if known is None:
            return len(self.topics.get(topic, ()))
        return len(known.pending) + sum(len(receiver.out) for receiver in known.receivers)

    # --- what a test does

    def put(self, *messages: Message) -> None:
        """Messages are there, whoever published them."""
        for message in messages:
            self._topic(message.topic)
            assert self._append(message) is None

    def fail(self, call: str, *errors: Exception | None) -> None:
        """The next calls of this method raise these, one after another; None lets one pass."""
        self._failures[call] += errors

    def hold(self, call: str) -> asyncio.Event:
        """Calls of this method wait until the event is set."""
        self._holds[call] = asyncio.Event()
        return self._holds[call]

    def cut(self, error: Exception | None = None) -> None:
        """Every receiver's connection is lost."""
        for group in self.groups.values():
            for receiver in list(group.receivers):
                receiver.lost = error or ConnectionLost("the cable was cut")
                group.receivers.remove(receiver)
                receiver.woken.set()
                receiver.give_back()

    def receiver(self, topic: str, group: str) -> StubReceiver:
        (receiver,) = self.groups[topic, group].receivers
        return receiver

    def breach(self, what: str) -> None:
        self.breaches.append(what)

    async def enter(self, call: str, receiver: StubReceiver | None = None) -> None:
        """Every method begins here: fails or waits as told."""
        self.calls.append(call)
        if call in self._holds:
            await self._holds[call].wait()
        failures = self._failures[call]
        if failures and (error := failures.popleft()) is not None:
            if receiver is not None and isinstance(error, ConnectionLost):
                receiver.lost = error
                receiver.give_back()
            raise error

    # --- parts

    def _topic(self, name: str) -> list[Message]:
        return self.topics.setdefault(name, [])

    def _group(self, topic: str, name: str, *, earliest: bool) -> Group:
        known = self.groups.get((topic, name))
        if known is None:
            known = self.groups[topic, name] = Group(topic, name)
            if earliest:
                known.give([Entry(message.offset or 0, message) for message in self._topic(topic)])
            self._topic(topic)
        return known

    def _append(self, message: Message) -> Exception | None:
        if (refusal := self.refuse(message)) is not None:
            return refusal
        if message.topic not in self.topics:
            return UnknownTopic(message.topic)
        log = self.topics[message.topic]
        partition = (
            zlib.crc32(message.key or b"") % self._partitions if self.capabilities.partitions else None
        )
        stored = message.replace(offset=len(log), partition=partition, attempt=1)
        log.append(stored)
        for (topic, _), group in self.groups.items():
            if topic == message.topic:
                group.give([Entry(len(log) - 1, stored)])
        return None


class StubOptions(msgspec.Struct):
    """`stub://` has no options of its own."""


def broker_of(driver: StubDriver, query: str = "") -> Broker:
    """A broker on the stub, not yet open."""
    return Broker(driver, BrokerURL.parse(f"stub://stub{query}"))


class Recorder:
    """A handler that notes what it got, when, and who ran beside whom; `answer` decides how each call ends."""

    def __init__(self, answer: Callable[[Message], Awaitable[None]] | None = None) -> None:
        self.seen: list[tuple[float, Message]] = []
        self.ended: list[Message] = []
        self.running = 0
        self.most = 0
        self.overlaps: list[bytes] = []
        self._keys: set[bytes] = set()
        self._answer = answer

    @property
    def values(self) -> list[bytes]:
        return [message.value for _, message in self.seen]

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.seen]

    @property
    def attempts(self) -> list[int]:
        return [message.attempt for _, message in self.seen]

    async def handle(self, message: Message) -> None:
        self.seen.append((asyncio.get_running_loop().time(), message))
        self.running += 1
        self.most = max(self.most, self.running)
        if message.key is not None:
            if message.key in self._keys:
                self.overlaps.append(message.key)
            self._keys.add(message.key)
        try:
            if self._answer is not None:
                await self._answer(message)
            self.ended.append(message)
        finally:
            self.running -= 1
            if message.key is not None:
                self._keys.discard(message.key)


async def until(condition: Callable[[], object], within: float = 1000.0) -> None:
    """Wait, in virtual time, until the condition holds; looks ever more seldom."""
    loop = asyncio.get_running_loop()
    ends, step = loop.time() + within, 0.001
    while not condition():
        assert loop.time() < ends, "it did not come to that in time"
        await asyncio.sleep(min(step, max(ends - loop.time(), 0.001)))
        step = min(step * 1.1, 5.0)


async def turns(count: int = 20) -> None:
    """Let everything that is ready run, without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


async def _checked(scenario: Awaitable[None]) -> None:
    """Run it; afterwards no task may be left, and no error may have got lost."""
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    await scenario
    await turns()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    names = [task.get_name() for task in left if task is not None]
    assert not left, f"tasks left: {names}"
    gc.collect()
    assert not problems


Test: TypeAlias = Callable[..., Awaitable[None]]


@overload
def virtual(test: Test) -> Callable[..., None]: ...


@overload
def virtual(*, grace: float = 0.0, clean: bool = True) -> Callable[[Test], Callable[..., None]]: ...


def virtual(
    test: Test | None = None, *, grace: float = 0.0, clean: bool = True
) -> Callable[..., None] | Callable[[Test], Callable[..., None]]:
    """Run an async test under virtual time; afterwards no task may be left, and no error may have got lost.

    `grace` is for handlers in threads; `clean=False` is for tests that provoke lost errors.
    """

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **named: Any) -> None:
            async def main() -> None:
                await test(*arguments, **named)

            run_virtual(_checked(main()) if clean else main(), grace=grace)

        return run

    return decorate if test is None else decorate(test)
