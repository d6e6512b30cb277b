"""Brokers that keep a log in partitions, and of each group only how far it has come."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from itertools import islice
from typing import Final

from things_kit.engine.driver import ConnectionLost, Delivery, Later, Release, Subscription
from things_kit.engine.offsets import Offsets
from things_kit.messaging.message import Message
from things_kit.testing.simulation.models.scheduling import due_of
from things_kit.testing.simulation.models.server import ModelDriver, Server, Topic
from things_kit.testing.simulation.models.waiting import Waiting

COMMIT: Final = 0.05
"""Seconds from an acknowledgement to its commit: a process that dies meanwhile has not said it."""


class LogGroup:
    """How far a group has come in each partition, and who reads it."""

    def __init__(self, server: Server, topic: Topic, name: str, earliest: bool) -> None:
        self.name = name
        self.server = server
        self.topic = topic
        self.lost = False
        self.committed: dict[int, tuple[int, str]] = {}
        self.owners: dict[int, LogReceiver] = {}
        self._members: list[LogReceiver] = []
        self._dead: set[LogReceiver] = set()
        self._order = list(range(self._partitions))
        if not earliest:
            for partition in range(self._partitions):
                self.committed[partition] = (len(topic.log), "")

    @property
    def _partitions(self) -> int:
        return self.server.partitions(self.topic.name)

    # --- see Group

    def arrived(self, message: Message) -> None:
        """Its reader looks."""
        owner = self.owners.get(message.partition or 0)
        if owner is not None:
            owner.wake()

    def join(self, driver: ModelDriver, subscription: Subscription) -> "LogReceiver":
        """Another member, which gets its share."""
        receiver = LogReceiver(self, driver, subscription)
        self._members.append(receiver)
        self._rebalance()
        return receiver

    def lag(self, until: float = math.inf) -> int:
        """What is not committed."""
        done = {partition: Offsets.restored(*mark) for partition, mark in self.committed.items()}
        return sum(
            message.offset >= self.committed.get(message.partition, (0, ""))[0]
            and (message.partition not in done or not _ahead(done[message.partition], message.offset))
            and due_of(message) <= until
            for message in self.topic.log
            if message.offset is not None and message.partition is not None
        )

    def cut(self, driver: ModelDriver, *, dead: bool) -> None:
        """A member that is silent keeps its partitions until its session ends."""
        for member in [each for each in self._members if each.driver is driver and each not in self._dead]:
            self._dead.add(member)
            if not dead:
                member.broken = True
                member.wake()
            asyncio.get_running_loop().call_later(
                self.server.traits.session, self._bury, member, context=self.server.context
            )

    def forget(self) -> None:
        """It knows what is committed, and nothing else."""

    def lose(self) -> None:
        """Its members are told."""
        self.lost = True
        for member in self._members:
            member.broken = True
            member.wake()

    def add_later(self, copy: Later, delay: float) -> None:
        """It keeps nothing until later: the engine has topics for that."""
        raise NotImplementedError

    def add_copy(self, message: Message, hidden: float, due: float) -> None:
        """The same."""
        raise NotImplementedError

    def take_one(self, receiver: "LogReceiver", id: str) -> Delivery | None:  # noqa: A002 - the message's id
        """This message, if it comes next in a partition of this receiver's."""
        partitions = {message.partition or 0 for message in self.topic.log if message.id == id}
        coming = [delivery for each in partitions if (delivery := next(receiver.to_come(each), None))]
        return next((delivery for delivery in coming if delivery.message.id == id), None)

    # --- membership

    def leave(self, member: "LogReceiver") -> None:
        """It says goodbye."""
        if member in self._members and member not in self._dead:
            self._members.remove(member)
            self._free(member)
            self._rebalance()

    def _bury(self, member: "LogReceiver") -> None:
        self._dead.discard(member)
        if member in self._members:
            self._members.remove(member)
            self._free(member)
            self._rebalance()

    def _free(self, member: "LogReceiver") -> None:
        if member.subscription.ephemeral:
            self.topic.groups.pop(self.name, None)
        self.owners = {partition: owner for partition, owner in self.owners.items() if owner is not member}

    def shuffle(self) -> None:
        """A rebalance for no reason that a member could see: one partition changes places with another."""
        chance = self.server.chance
        self.exchange(chance.below(self._partitions), chance.below(self._partitions))

    def exchange(self, partition: int, other: int | None = None) -> None:
        """Each is for whom the other was; or nothing but for new members."""
        if other is not None:
            one, two = self._order.index(partition), self._order.index(other)
            self._order[one], self._order[two] = other, partition
        self._rebalance()

    @property
    def wanted(self) -> "dict[int, LogReceiver]":
        """Whose each partition is to be."""
        members = self._members
        return {partition: members[place % len(members)] for place, partition in enumerate(self._order)}

    def _rebalance(self) -> None:
        """Ask who has too much to let go; what nobody has goes to whom it is meant for."""
        if not self._members:
            return
        wanted = self.wanted
        moving: dict[LogReceiver, set[int]] = {}
        for partition, member in wanted.items():
            owner = self.owners.get(partition)
            if owner is None:
                self.owners[partition] = member
                member.begin(partition)
            elif owner is not member and owner not in self._dead:
                moving.setdefault(owner, set()).add(partition)
        for owner, partitions in moving.items():
            owner.asked_for(frozenset(partitions))

    def let_go(self, member: "LogReceiver", partitions: frozenset[int]) -> None:
        """A member has finished with these."""
        for partition in partitions:
            if self.owners.get(partition) is member:
                del self.owners[partition]
        self._rebalance()


class LogReceiver:
    """One member of a group."""

    def __init__(self, group: LogGroup, driver: ModelDriver, subscription: Subscription) -> None:
        self.group = group
        self.driver = driver
        self.subscription = subscription
        self.broken = False
        self.quiet = False
        self._context = copy_context()
        self._waiting = Waiting(subscription)
        self._places: dict[int, Offsets] = {}
        self._leaving: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing = False

    def wake(self) -> None:
        """Look again."""
        self._waiting.wake()

    def begin(self, partition: int) -> None:
        """This partition is ours, from where it was committed."""
        self._places[partition] = Offsets.restored(*self.group.committed.get(partition, (0, "")))
        self._leaving.discard(partition)
        self.wake()

    def asked_for(self, partitions: frozenset[int]) -> None:
        """Others shall have these."""
        partitions -= self._leaving
        if partitions:
            self._leaving |= partitions
            asyncio.get_running_loop().call_soon(self._begin_to_let_go, partitions, context=self._context)

    def _begin_to_let_go(self, partitions: frozenset[int]) -> None:
        task = asyncio.get_running_loop().create_task(self._let_go(partitions))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self, partitions: frozenset[int]) -> None:
        if not self.quiet:
            await self.subscription.inbox.let_go(lambda delivery: delivery.token[0] in partitions)
        if self.broken:
            return
        for partition in partitions:
            self._commit_one(partition)
            self._places.pop(partition, None)
        self._leaving -= partitions
        self.group.let_go(self, partitions)

    # --- see Receiver

    def _check(self) -> None:
        if self.broken:
            raise ConnectionLost("the group took this member for dead")

    async def fetch(self, limit: int, wait: float) -> None:
        """What comes next in its partitions."""
        self._check()
        await self.driver.call()
        await self._waiting.bring(lambda: self._look(limit), wait)

    def _look(self, limit: int) -> Sequence[Delivery]:
        self._check()
        server = self.group.server
        if self.group.owners and server.chance.strikes("rebalance"):
            server.note("partitions move", None)
            self.group.shuffle()
        if any(place.unfinished for place in self._places.values()) and server.chance.strikes("redelivery"):
            server.note("its session ends", None)
            self.group.cut(self.driver, dead=False)
            self._check()
        return self.take(limit)

    def take(self, limit: int) -> list[Delivery]:
        """What comes next in its partitions."""
        coming = (delivery for partition in self._places for delivery in self.to_come(partition))
        return list(islice(coming, limit))

    def to_come(self, partition: int) -> Iterator[Delivery]:
        """What comes in a partition, one after another as it is handed out; nothing if it is another's."""
        place = self._places.get(partition)
        if place is None or partition in self._leaving:
            return
        for message in self.group.topic.log[place.end or 0 :]:
            offset = message.offset or 0
            if message.partition == partition and place.receive(offset):
                self.group.server.note(f"delivered to {self.driver.process}", message)
                yield Delivery(message, (partition, offset))

    async def quiesce(self) -> None:
        """Nothing more is put into the inbox."""
        self.quiet = True

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Note what is finished; it is committed in a moment. What is released comes again to whoever reads next."""
        self._check()
        for delivery in acknowledged:
            partition, offset = delivery.token
            if (place := self._places.get(partition)) is not None:
                place.finish(offset)
                self.group.server.note("acknowledged", delivery.message)
        if not self._committing:
            self._committing = True
            asyncio.get_running_loop().call_later(COMMIT, self._commit)

    def _commit(self) -> None:
        self._committing = False
        if self.broken or self.group.server.away:
            return
        if self.group.server.chance.strikes("lost_acknowledgement"):
            self.group.server.note("commits, and its connection breaks", None)
            self.group.cut(self.driver, dead=False)
            return
        for partition in self._places:
            self._commit_one(partition)

    def _commit_one(self, partition: int) -> None:
        place = self._places.get(partition)
        mark = None if place is None else place.mark()
        if mark is not None and self.group.owners.get(partition) is self:
            self.group.committed[partition] = mark

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """There are no leases."""

    async def overdue(self) -> int | None:
        """What is there and was not fetched."""
        await self.driver.call()
        self._check()
        return sum(
            message.partition in self._places
            and (message.offset or 0) >= (self._places[message.partition].end or 0)
            for message in self.group.topic.log
            if message.partition is not None
        )

    async def close(self) -> None:
        """Commit for the last time, and leave."""
        if not self.broken:
            self._commit()
            self.broken = True
            self.group.leave(self)


def _ahead(place: Offsets, offset: int) -> bool:
    return any(start <= offset < stop for start, stop in place.ahead)
