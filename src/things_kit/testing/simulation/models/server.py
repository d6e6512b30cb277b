"""What the models of brokers have in common: topics, connections, and what may go wrong on the way to a broker.

A model is the contract of a broker, not its implementation: what its documentation lets it do, it does under the fault
that stands for it. It lives outside of all simulated processes, and forgets nothing when one of them dies.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from things_kit.engine.driver import (
    ConnectionLost,
    Inbox,
    Later,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.url import BrokerURL
from things_kit.engine.wait_topics import WAITS, is_wait_topic
from things_kit.messaging.errors import ConfigError, MessageTooLarge
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.testing.simulation.models.scheduling import (
    KeepsSchedules,
    NamesSchedules,
    Schedules,
    Timetable,
)
from things_kit.testing.simulation.models.traits import Traits
from things_kit.testing.simulation.process import PROCESS, SimulatedProcess

if TYPE_CHECKING:
    from things_kit.testing.simulation.plan import Chance

NEAR: Final = (0.0002, 0.004)
"""Seconds that a call of the broker takes, from and to."""

AWAY: Final = (0.5, 8.0)
"""The same of an outage: below the 30 s of `publish_timeout`."""


class Group(Protocol):
    """What a group of a topic must be able to do, whatever the broker."""

    def arrived(self, message: Message) -> None:
        """A message was published to its topic."""

    def join(self, driver: "ModelDriver", subscription: Subscription) -> Any:
        """A receiver of it."""

    def lag(self, until: float = math.inf) -> int:
        """Messages that it has not acknowledged, and that are to be handled by then, in seconds since 1970."""

    def cut(self, driver: "ModelDriver", *, dead: bool) -> None:
        """The connection of these receivers is gone; `dead` if their process is."""

    def forget(self) -> None:
        """The server was killed, and had not written what it handed out."""

    def lose(self) -> None:
        """It was removed."""

    def add_later(self, copy: Later, delay: float) -> None:
        """Keep this for so many seconds."""

    def add_copy(self, message: Message, hidden: float, due: float) -> None:
        """Hide this for so many seconds; who receives it then has it wait on until it is due, in seconds since 1970."""


class Topic:
    """A topic's log, its groups, and what is to come in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: list[Message] = []
        self.groups: dict[str, Group] = {}
        self.timetable = Timetable()


class Server:
    """One simulated broker.

    Attributes:
        traits: Which broker it is.
        chance: What goes wrong.
        topics: All there is.
        note: Told of everything that happens, for the trace and the history.
        context: In which what the broker does by itself runs: no process's.
        joined: Which groups of which topics have had consumers.
        clock: The wall clock of who runs, in seconds since 1970.
        workload: The messages of the workload by id, numbered in their order.
        schedules: What is to come in its topics.
        inboxes: Where it has put messages.
    """

    def __init__(
        self,
        traits: Traits,
        group: "Callable[[Server, Topic, str, bool], Group]",
        chance: "Chance",
        note: Callable[[str, Message | None], None],
    ) -> None:
        self.traits = traits
        self.chance = chance
        self.topics: dict[str, Topic] = {}
        self.note = note
        self.context = Context()
        self.joined: set[tuple[str, str]] = set()
        self.workload: dict[str | None, int] = {}
        self.clock: Callable[[], float] = simulated_now
        self.schedules = Schedules(self)
        self.inboxes: list[Inbox] = []
        self._group = group
        self._connections: list[ModelDriver] = []
        self._away_until = 0.0

    def driver(self, process: SimulatedProcess) -> "ModelDriver":
        """A connection of this process's."""
        driver = driver_kind(self.traits)(self, process)
        self._connections.append(driver)
        return driver

    # --- what happens to it

    def crashed(self, process: SimulatedProcess) -> None:
        """All connections of this process are gone with it."""
        for driver in [each for each in self._connections if each.process is process]:
            self.disconnect(driver, dead=True)

    def disconnect(self, driver: "ModelDriver", *, dead: bool) -> None:
        """Its connection is no more; what its receivers held comes again as the broker has it."""
        for group in self.groups():
            group.cut(driver, dead=dead)
        if dead:
            self._connections.remove(driver)

    def go_away(self) -> None:
        """An outage: every connection breaks, and new ones are refused for a while."""
        self.note("the broker goes away", None)
        now = asyncio.get_running_loop().time()
        self._away_until = now + self.chance.between(*AWAY)
        self.lose_connections(forgetting=self.traits.forgets and bool(self.chance.below(2)))

    def lose_connections(self, *, forgetting: bool) -> None:
        """Every connection breaks, and perhaps nobody knows any more what was handed out over them."""
        for driver in list(self._connections):
            self.disconnect(driver, dead=False)
        for group in self.groups() if forgetting else ():
            group.forget()

    @property
    def away(self) -> bool:
        """Whether nobody can reach it."""
        return asyncio.get_running_loop().time() < self._away_until

    def heal(self) -> None:
        """Nothing goes wrong from now on."""
        self._away_until = 0.0

    # --- what there is

    def groups(self) -> list[Group]:
        """All groups of all topics."""
        return [group for topic in self.topics.values() for group in topic.groups.values()]

    def topic(self, name: str) -> Topic:
        """The topic of this name, which is made if it is missing."""
        return self.topics.setdefault(name, Topic(name))

    def group(self, topic: Topic, name: str, *, earliest: bool) -> Group:
        """The group of this name; a new one begins at the earliest, or now."""
        if name not in topic.groups:
            topic.groups[name] = self._group(
                self, topic, name, earliest and self.traits.capabilities.retained
            )
            if self.traits.keeping is not None and self.traits.keeping.patient:
                self.schedules.carry(topic)  # what has waited for somebody to listen
        return topic.groups[name]

    def append(self, message: Message) -> Exception | None:
        """Take a message for good, or say why not."""
        self.schedules.look(message.topic)
        refused = self.refusal(message)
        if refused is None:
            self.take(self.topics[message.topic], message)
        return refused

    def refusal(self, message: Message, *, unheard: bool = False) -> Exception | None:
        """Why a message is not taken; None where it is. `unheard`: also where nobody listens."""
        topic = self.topics.get(message.topic)
        if topic is None:
            return UnknownTopic(message.topic)
        if self.traits.mandatory and not topic.groups and not unheard:
            return nobody_listens(message.topic)
        most = self.traits.capabilities.dead_letter_bytes
        if most is not None and len(message.value) + len(message.key or b"") > most:
            return MessageTooLarge(f"a message has at most {most} bytes here")
        return None

    def store(self, topic: Topic, message: Message) -> Message:
        """Append it."""
        partition = self._partition(topic, message)
        stored = message.replace(offset=len(topic.log), partition=partition, attempt=1)
        topic.log.append(stored)
        self.note("published", stored)
        return stored

    def take(self, topic: Topic, message: Message) -> None:
        """Append it, and hand it to its groups."""
        stored = self.store(topic, message)
        target = message.headers.get(REPLAY_GROUP)
        for name, group in topic.groups.items():
            if not self.traits.capabilities.targeted or target in {None, name}:
                group.arrived(stored)

    def partitions(self, topic: str) -> int:
        """How many a topic has: one for each wait where messages wait for their time."""
        return len(WAITS) if self.traits.partitions and is_wait_topic(topic) else self.traits.partitions

    def _partition(self, topic: Topic, message: Message) -> int | None:
        count = self.partitions(topic.name)
        if not count or message.partition is not None:
            return message.partition if count else None
        return len(topic.log) % count if message.key is None else sum(message.key) % count


class ModelDriver:
    """One connection to a simulated broker: a driver like any other."""

    def __init__(self, server: Server, process: SimulatedProcess) -> None:
        self.server = server
        self.process = process
        self.capabilities = server.traits.capabilities

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """It cannot be had by URL: a simulated broker lives in its simulation."""
        raise ConfigError(f"{url.display}: a simulated broker is made by simulate()")

    async def call(self) -> None:
        """Say something to the broker. Raises ConnectionLost if it is away, now or by the time of its answer."""
        self._check()
        await asyncio.sleep(self.server.chance.between(*NEAR))
        if self.server.chance.strikes("outage"):
            self.server.go_away()
        self._check()

    def _check(self) -> None:
        if self.server.away:
            raise ConnectionLost("the simulated broker is away")

    async def open(self) -> None:
        """Connect."""
        await self.call()

    async def close(self) -> None:
        """Disconnect."""
        self.server.disconnect(self, dead=False)

    async def ping(self) -> None:
        """Ask whether it is there."""
        await self.call()

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Make what is missing."""
        await self.call()
        for group in groups:
            self.server.group(self.server.topic(topic), group, earliest=True)
        self.server.topic(topic)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the topic, or one group."""
        await self.call()
        if group is None:
            found = self.server.topics.pop(topic, None)
            gone = list(found.groups.values()) if found else []
        else:
            lost = self.server.topics[topic].groups.pop(group, None) if topic in self.server.topics else None
            gone = [] if lost is None else [lost]
        for each in gone:
            each.lose()

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append them; the answer may be lost, and then it is not known how many were taken."""
        await self.call()
        chance = self.server.chance
        if chance.strikes("unknown_publish"):
            for message in messages[: chance.below(len(messages) + 1)]:
                if self._wanted(message):
                    self.server.append(message)
            self.server.note("publishes, and its connection breaks", None)
            raise ConnectionLost("the connection broke before the broker had answered")
        return [self.server.append(message) if self._wanted(message) else None for message in messages]

    def _wanted(self, message: Message) -> bool:
        """Whether this message of the workload is in this history: shrinking leaves some out."""
        wanted = self.server.chance.plan.messages
        if self.process.number:
            return True
        number = self.server.workload.setdefault(message.id, len(self.server.workload))
        return wanted is None or number in wanted

    async def subscribe(self, subscription: Subscription) -> Any:
        """Join the group."""
        await self.call()
        topic = self.server.topics.get(subscription.topic)
        known = topic is not None and (subscription.ephemeral or subscription.group in topic.groups)
        if not known and not subscription.create:
            raise ConfigError(f"there is no group {subscription.group!r} of {subscription.topic!r}")
        earliest = subscription.start == "earliest" or subscription.past
        group = self.server.group(
            self.server.topic(subscription.topic), subscription.group, earliest=earliest
        )
        self.server.note(f"joins {subscription.group}: {self.process}", None)
        self.server.inboxes.append(subscription.inbox)
        return group.join(self, subscription)

    async def lag(self, topic: str, group: str) -> int | None:
        """What a group has not acknowledged."""
        await self.call()
        if not self.capabilities.lag:
            return None
        self.server.schedules.look(topic)
        found = self.server.topics.get(topic)
        if found is None:
            return 0
        if group in found.groups:
            return found.groups[group].lag() + self._ahead(found)
        return len(found.log) if self.capabilities.retained else 0

    def _ahead(self, topic: Topic) -> int:
        """What is scheduled and counts already, beside the copies that are in the groups' queues."""
        keeping = self.server.traits.keeping
        counts = self.capabilities.scheduled_in_lag and keeping is not None and keeping.by == "clock"
        return len(topic.timetable) if counts else 0


class Listens(ModelDriver):
    """One whose broker drops what nobody has subscribed to, but can be asked."""

    async def has_listeners(self, topic: str) -> bool | None:
        """Whether a group has the topic."""
        await self.call()
        return bool(topic in self.server.topics and self.server.topics[topic].groups)


class KeepsCopies(ModelDriver):
    """One whose broker keeps copies until they are due."""

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Keep each for its group."""
        await self.call()
        if self.server.chance.strikes("unknown_publish"):
            raise ConnectionLost("the connection broke before the broker had the copies")
        now = self.server.clock()
        for copy in copies:
            topic = self.server.topic(copy.message.topic)
            group = self.server.group(topic, copy.group, earliest=False)
            group.add_later(copy, max(0.0, copy.due.timestamp() - now))
        return [None] * len(copies)


@cache
def driver_kind(traits: Traits) -> type[ModelDriver]:
    """A driver that has what this broker's has."""
    has: dict[type, bool] = {
        KeepsSchedules: traits.keeping is not None,
        NamesSchedules: traits.capabilities.schedule_ids,
        KeepsCopies: traits.later,
        Listens: traits.listened,
    }
    return type("SimulatedDriver", (*(each for each, there in has.items() if there), ModelDriver), {})


EPOCH: Final = 1_800_000_000.0
"""The wall clock's time when a history begins, in seconds since 1970."""


def simulated_now() -> float:
    """The wall clock of the process that asks, in seconds since 1970."""
    process = PROCESS.get()
    return EPOCH + asyncio.get_running_loop().time() + (0.0 if process is None else process.skew)
