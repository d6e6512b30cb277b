"""A broker in this process that does as a test tells it, and notes every breach of the driver contract by the engine.

Its `Capabilities` are the test's choice, so that what the engine emulates is seen: back-off without native delay,
order without native lanes, leases, foreign replays. Calls can be made to fail (`fail`) or to wait (`hold`),
connections can be cut (`cut`), and parts taken back (`StubReceiver.take_back`):

    driver = StubDriver(NATIVE_DELAY)
    async with broker_of(driver) as broker:
        driver.fail("send", ConnectionLost("the cable was cut"))
        await broker.producer().publish(Message("orders", b"1"))
        assert driver.calls.count("send") == 2

Under `run_virtual` such a scenario takes no time. It is what the engine is tested with; whoever writes a driver finds
in it the smallest one that keeps the contract.
"""

import asyncio
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

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

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker

NATIVE_LANES: Final = Capabilities(delay=True, lanes=True, retained=True, attempts=True, targeted=True)
"""As memory and SQLite."""

NATIVE_DELAY: Final = Capabilities(delay=True, attempts=True)
"""As RabbitMQ and SQS: no order of its own."""

BARE: Final = Capabilities(partitions=True)
"""As Kafka: the engine emulates everything."""


class Entry(msgspec.Struct, eq=False):
    """One message of one group: its place in the topic, which attempt it is, and from when it may be handed out."""

    offset: int
    message: Message
    attempt: int = 1
    due: float = 0.0
    suspect: int = 0


class Group:
    """A consumer group of one topic: what is to be handed out, and who receives."""

    def __init__(self, topic: str, name: str) -> None:
        self.topic = topic
        self.name = name
        self.pending: list[Entry] = []
        self.receivers: list[StubReceiver] = []

    def give(self, entries: Sequence[Entry]) -> None:
        """Have these handed out, in the order of the topic."""
        self.pending = sorted([*self.pending, *entries], key=lambda entry: entry.offset)
        for receiver in self.receivers:
            receiver.woken.set()


class StubReceiver:
    """One subscription of the stub.

    Attributes:
        subscription: What was asked for.
        out: The deliveries that the engine has.
        settled: Those that it settled.
        expired: Those whose lease ended before.
        closed: Whether it was closed.
        lost: What every call raises since its connection was cut.
        woken: Set when there may be something to receive.
        leases: When the lease of each delivery ends, in the loop's time.
    """

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
        self.leases: dict[Delivery, float] = {}
        self._fetching = False
        self.quiet = False

    async def fetch(self, limit: int, wait: float) -> None:
        """What the group has for it, within its lanes, back-offs and leases."""
        if self._fetching or self.closed:
            self._driver.breach("fetch while another waits, or after close")
        if limit < 1:
            self._driver.breach(f"fetch of {limit} messages")
        self._fetching = True
        try:
            await self._driver.enter("fetch", self)
            if self.quiet:
                self._driver.breach("fetch after quiesce")
            await self._fetch(limit, asyncio.get_running_loop().time() + wait)
        finally:
            self._fetching = False

    async def quiesce(self) -> None:
        """Put nothing more into the inbox."""
        self.quiet = True
        await self._driver.enter("quiesce", self)

    async def overdue(self) -> int | None:
        """What a test says."""
        await self._driver.enter("overdue", self)
        return self._driver.overdue

    async def _fetch(self, limit: int, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.lost is not None:
                raise self.lost
            for receiver in self._group.receivers:
                receiver.expire(loop.time())
            if taken := self._take(limit, loop.time()):
                if self.subscription.inbox.put(taken):
                    self._driver.breach("refused, though nobody asked for quiet")
                return
            if loop.time() >= deadline:
                return
            times = [entry.due for entry in self._group.pending if entry.due > loop.time()]
            times += [end for receiver in self._group.receivers for end in receiver.leases.values()]
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
                message = entry.message.replace(attempt=entry.attempt)
                delivery = Delivery(message, entry.offset, entry.suspect)
                self.out[delivery] = entry
                if (lease := self._driver.capabilities.lease) is not None:
                    self.leases[delivery] = now + lease
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
        """Note what was acknowledged, and give the group what was released."""
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
        self.leases.pop(delivery, None)
        return self.out.pop(delivery)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Begin the leases of these anew."""
        await self._driver.enter("extend", self)
        if self.lost is not None:
            raise self.lost
        now = asyncio.get_running_loop().time()
        if self._driver.capabilities.lease is None:
            self._driver.breach("extend without leases")
            return
        for delivery in deliveries:
            if delivery in self.out:
                self.leases[delivery] = now + self._driver.capabilities.lease

    async def close(self) -> None:
        """What it still has goes back to the group."""
        self.closed = True
        self._driver.calls.append("close receiver")
        if self in self._group.receivers:
            self._group.receivers.remove(self)
        self.give_back()

    # --- what a test does

    def expire(self, now: float) -> None:
        """Give the group back what was leased until now at most."""
        for delivery, end in list(self.leases.items()):
            if end <= now:
                del self.leases[delivery]
                self.expired.add(delivery)
                self._driver.expired.append(delivery.message)
                self._group.give([self.out.pop(delivery)])

    def give_back(self) -> None:
        """Give the group all that is out, as when a connection ends."""
        back, self.out = list(self.out.values()), {}
        self.leases.clear()
        self._group.give(back)

    def take_back(self, which: Which) -> None:
        """A part was lost: it belongs to somebody else already."""
        self.subscription.inbox.forget(which)
        for delivery in [delivery for delivery in self.out if which(delivery)]:
            del self.out[delivery]
            self.leases.pop(delivery, None)


class MarkingStubReceiver(StubReceiver):
    """One that can keep a mark beside a message that is handed out."""

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """The next delivery of this message has it."""
        await self._driver.enter("mark", self)
        self._driver.marks.append((delivery.message.id, suspect))
        self.out[delivery].suspect = suspect


class StubDriver:
    """A broker in this process; see the module.

    Attributes:
        capabilities: What it is to have natively; a test may replace them before the broker is opened.
        breaches: The engine's violations of the contract, each a sentence. A test wants none.
        calls: The names of all calls, in order.
        batches: What each `send` was given.
        attempted: The same, with those that failed.
        acknowledged: The messages that groups have acknowledged.
        released: What was given back, and how.
        expired: The messages whose lease ended in the engine's hands.
        overdue: What its receivers say of what they should be getting.
        marks: The ids of messages that were marked, and with what; 0 where a mark was taken back.
        peak: The most deliveries that one receiver ever had out.
        topics: All that was published, by topic.
        groups: The groups, by topic and name.
        refuse: Asked for each message that is sent: the error that it is refused with, or None.
        refuse_topic: Asked for each topic that is declared: the error to raise, or None.
    """

    def __init__(
        self,
        capabilities: Capabilities = BARE,
        *,
        partitions: int = 4,
        creates: bool = True,
        marking: bool = True,
    ) -> None:
        self.capabilities = capabilities
        self.breaches: list[str] = []
        self.calls: list[str] = []
        self.batches: list[list[Message]] = []
        self.attempted: list[list[Message]] = []
        self.acknowledged: list[Message] = []
        self.released: list[Release] = []
        self.expired: list[Message] = []
        self.overdue: int | None = None
        self.marks: list[tuple[str | None, int]] = []
        self.peak = 0
        self.topics: dict[str, list[Message]] = {}
        self.groups: dict[tuple[str, str], Group] = {}
        self.refuse: Callable[[Message], Exception | None] = lambda _: None
        self.refuse_topic: Callable[[str], Exception | None] = lambda _: None
        self._partitions = partitions
        self._creates = creates
        self._receiver_kind = MarkingStubReceiver if capabilities.suspects and marking else StubReceiver
        self._counts: dict[str | None, tuple[int, int]] = {}
        self._failures: dict[str, deque[Exception | None]] = defaultdict(deque)
        self._holds: dict[str, asyncio.Event] = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A stub with nothing of its own; it takes no options."""
        url.options(StubOptions)
        return cls()

    # --- the contract

    async def open(self) -> None:
        """Answer."""
        await self.enter("open")

    async def close(self) -> None:
        """Only note it: what a test looks at stays."""
        self.calls.append("close")

    async def ping(self) -> None:
        """Answer."""
        await self.enter("ping")

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Make what is missing, unless `refuse_topic` says otherwise."""
        await self.enter("declare")
        if (error := self.refuse_topic(topic)) is not None:
            raise error
        self._topic(topic)
        for group in groups:
            self._group(topic, group, earliest=True)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Forget the topic, or one group."""
        await self.enter("remove")
        if group is None:
            self.topics.pop(topic, None)
        else:
            self.groups.pop((topic, group), None)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append each to its topic, unless `refuse` says otherwise."""
        self.attempted.append(list(messages))
        await self.enter("send")
        if len(messages) > self.capabilities.max_batch:
            self.breach("more than max_batch")
        self.batches.append(list(messages))
        return [self._append(message) for message in messages]

    async def subscribe(self, subscription: Subscription) -> StubReceiver:
        """A receiver of the group, which begins where the subscription says if it is new."""
        await self.enter("subscribe")
        if subscription.topic not in self.topics and not subscription.create:
            raise ConfigError(f"there is no topic {subscription.topic!r}")
        earliest = subscription.start == "earliest" and not subscription.ephemeral
        group = self._group(subscription.topic, subscription.group, earliest=earliest)
        receiver = self._receiver_kind(self, group, subscription)
        group.receivers.append(receiver)
        return receiver

    async def lag(self, topic: str, group: str) -> int | None:
        """How many messages the group has not acknowledged, handed out or not."""
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

    def count(self, message: Message, attempt: int, suspect: int = 0) -> None:
        """Of what is `put` after this: its next attempt, as if processes had died with it, and its mark."""
        self._counts[message.id] = attempt, suspect

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
        """The only receiver of a group."""
        (receiver,) = self.groups[topic, group].receivers
        return receiver

    def breach(self, what: str) -> None:
        """Note a violation of the contract."""
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
                known.give([self._entry(message) for message in self._topic(topic)])
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
                group.give([self._entry(stored)])
        return None

    def _entry(self, stored: Message) -> Entry:
        attempt, suspect = self._counts.get(stored.id, (1, 0))
        return Entry(stored.offset or 0, stored, attempt, suspect=suspect)


class StubOptions(msgspec.Struct):
    """`stub://` has no options of its own."""


def broker_of(driver: StubDriver, query: str = "") -> "Broker":
    """A broker on the stub, not yet open."""
    from things_kit.engine.broker import Broker  # noqa: PLC0415 - pytest's plugin lives beside this, and is to be light

    return Broker(driver, BrokerURL.parse(f"stub://stub{query}"))
