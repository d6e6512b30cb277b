"""Brokers that hand out each message of a group to one receiver at a time, and take it back if it is not settled."""

import asyncio
import math
from bisect import insort
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from things_kit.engine.driver import Delivery, Later, Release, Subscription
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.messaging.policy import RetryPolicy
from things_kit.testing.simulation.models.entry import Entry
from things_kit.testing.simulation.models.receivers import (
    FetchingReceiver,
    Marking,
    PushedReceiver,
    QueueReceiver,
)
from things_kit.testing.simulation.models.scheduling import due_of
from things_kit.testing.simulation.models.server import ModelDriver, Server, Topic

FROZEN: Final = (0.02, 2.0)
"""Seconds after which a lease ends under its owner, from and to, where that is the fault."""


FIRST: Final = 1_000_000_000.0
"""Places before that of the first message in its topic, for what comes back to be handed out first."""


BORNE: Final = RetryPolicy().attempts - 1
"""How often a message may come again without a verdict."""


class QueueGroup:
    """The messages of one group that it has not acknowledged."""

    def __init__(self, server: Server, topic: Topic, name: str, earliest: bool) -> None:
        self.name = name
        self.server = server
        self.topic = topic
        self.lost = False
        self._waiting: list[Entry] = []
        self._out: dict[int, Entry] = {}
        self._receivers: list[QueueReceiver] = []
        self._tokens = self._returns = 0
        if earliest:
            for message in topic.log:
                if message.headers.get(REPLAY_GROUP, name) == name or not server.traits.capabilities.targeted:
                    self.arrived(message)

    # --- see Group

    def arrived(self, message: Message) -> None:
        """It is to be handed out."""
        self._put(Entry(message, place=len(self.topic.log)), at_once=True)

    def join(self, driver: ModelDriver, subscription: Subscription) -> QueueReceiver:
        """Another receiver."""
        marks = driver.capabilities.suspects and not driver.server.traits.later
        kinds = (
            (PushedReceiver, PushedReceiver) if driver.server.traits.pushed else (FetchingReceiver, Marking)
        )
        receiver: QueueReceiver = kinds[marks](self, driver, subscription)
        self._receivers.append(receiver)
        return receiver

    def lag(self, until: float = math.inf) -> int:
        """What waits, and what is handed out."""
        if until == math.inf:
            return len(self._waiting) + len(self._out)
        return sum(
            (entry.wanted or due_of(entry.message)) <= until
            for entry in (*self._waiting, *self._out.values())
        )

    def cut(self, driver: ModelDriver, *, dead: bool) -> None:
        """Its receivers lose what they hold: at once, or when the leases end."""
        for receiver in [each for each in self._receivers if each.driver is driver]:
            receiver.break_off(dead=dead)

    def forget(self) -> None:
        """What was handed out and not settled is as if it had not been."""
        self._take_back(list(self._out), counted=False)

    def lose(self) -> None:
        """Its receivers are told."""
        self.lost = True
        for receiver in list(self._receivers):
            receiver.break_off(dead=False)

    def add_later(self, copy: Later, delay: float) -> None:
        """A copy is a message of its own, at the end of the queue."""
        message = copy.message.replace(attempt=copy.attempt)
        due = self._now() + delay
        self._put(Entry(message, due, copy.attempt, due, suspect=copy.suspect, aside=True))

    def add_copy(self, message: Message, hidden: float, due: float) -> None:
        """It is in the queue at once, and seen later."""
        at = self._now() + hidden
        self._put(Entry(message, len(self.topic.log), due=at, wanted=due))

    # --- handing out

    def take(self, receiver: QueueReceiver, limit: int) -> list[Delivery]:
        """What this receiver may have now."""
        return [self._hand(receiver, entry) for entry in islice(self._to_be_had(receiver), limit)]

    def take_one(self, receiver: QueueReceiver, id: str) -> Delivery | None:  # noqa: A002 - the message's id
        """This message, if this receiver may have it now, whatever else there is."""
        for entry in self._to_be_had(receiver):
            if entry.message.id == id:
                return self._hand(receiver, entry)
        return None

    def _to_be_had(self, receiver: QueueReceiver) -> Iterator[Entry]:
        """What this receiver may have, one after another as it is handed out."""
        self._expire()
        now = self._now()
        shut: set[object] = set()
        for entry in self._in_order():
            lane = self._lane(receiver, entry)
            if lane is not None and (
                lane in shut or entry.due > now or self._elsewhere(receiver, lane, entry)
            ):
                shut.add(lane)
            elif entry.due <= now:
                yield entry

    def available(self, receiver: QueueReceiver) -> int:
        """How many messages this receiver could have."""
        now = self._now()
        return sum(entry.due <= now and self._lane(receiver, entry) is None for entry in self._waiting)

    def held_by(self, receiver: QueueReceiver) -> int:
        """How many this receiver has."""
        return sum(entry.holder is receiver for entry in self._out.values())

    def can_bear_one_more(self, receiver: QueueReceiver) -> bool:
        """Whether all that this receiver holds may come again without a verdict, and ends in no dead letter by that."""
        return all(self._can_bear_one_more(entry) for entry in self._out.values() if entry.holder is receiver)

    def _can_bear_one_more(self, entry: Entry) -> bool:
        to_come = self.server.chance.left("crash") + self.server.chance.left("outage")
        return entry.losses + to_come < BORNE or not self.server.traits.counts

    def _in_order(self) -> list[Entry]:
        entries, chance = list(self._waiting), self.server.chance
        if self.server.traits.unordered and len(entries) > 1 and chance.strikes("redelivery"):
            entries.insert(0, entries.pop(chance.below(len(entries))))
        return entries

    def _hand(self, receiver: QueueReceiver, entry: Entry) -> Delivery:
        chance, lease = self.server.chance, self.server.traits.capabilities.lease
        self._waiting.remove(entry)
        if self.server.traits.duplicates and chance.strikes("redelivery"):
            at = self._now() + chance.between(0.0, 1.0)
            self._put(Entry(entry.message, entry.place, entry.attempt, at, entry.wanted))
        if entry.returned_by is not receiver.driver.process:
            entry.attempt, entry.returns = entry.attempt + entry.returns, 0
        self._tokens += 1
        self._out[self._tokens] = entry
        entry.holder, entry.frozen, entry.ends = receiver, False, None
        if lease is not None:
            entry.ends = self._now() + lease * self.server.traits.shortest_lease
            if chance.strikes("lease_expiry", bearable=self._can_bear_one_more(entry)):
                entry.ends, entry.frozen = self._now() + chance.between(*FROZEN), True
            self._look_at(entry.ends)
        self.server.note(f"delivered to {receiver.driver.process}", entry.message)
        return Delivery(
            entry.message.replace(attempt=entry.attempt), self._tokens, entry.suspect, entry.wanted
        )

    def _lane(self, receiver: QueueReceiver, entry: Entry) -> object:
        traits, ordering = self.server.traits, receiver.subscription.ordering
        if not (traits.capabilities.lanes or traits.keyed) or ordering == "none" or entry.aside:
            return None
        return entry.message.key if ordering == "key" or traits.keyed else (None,)

    def _elsewhere(self, receiver: QueueReceiver, lane: object, entry: Entry) -> bool:
        return any(
            self._lane(receiver, other) == lane
            and (other.holder is not receiver or other.place > entry.place or self.server.traits.waits)
            for other in self._out.values()
        )

    # --- taking back

    def settle(
        self, receiver: QueueReceiver, acknowledged: Sequence[Any], released: Sequence[tuple[Any, Release]]
    ) -> None:
        """These are done, and those come again."""
        traits = self.server.traits
        for token in acknowledged:
            if (entry := self._out.get(token)) is not None and entry.holder is receiver:
                del self._out[token]
                self.server.note("acknowledged", entry.message)
        for token, release in released:
            entry = self._out.get(token)
            if entry is None or entry.holder is not receiver:
                continue
            del self._out[token]
            if traits.capabilities.attempts:
                entry.attempt = release.attempt
            if traits.counts_returns:
                entry.returns, entry.returned_by = entry.returns + 1, receiver.driver.process
            delayed = traits.capabilities.delay and release.delay > 0.0
            entry.due = self._now() + release.delay if delayed else 0.0
            entry.aside = entry.aside or release.aside
            entry.suspect = 0  # whoever gives it back has survived it
            if not entry.due:
                self._place_first(entry)
            self._put(entry)
        self.wake()

    def disown(self, receiver: QueueReceiver, tokens: Sequence[Any]) -> None:
        """Whoever says that it is done with these forgets that it gave them back, also where that is never heard."""
        for token in tokens:
            entry = self._out.get(token)
            if entry is not None and entry.holder is receiver:
                entry.returned_by = None

    def extend(self, receiver: QueueReceiver, tokens: Sequence[Any]) -> None:
        """Begin these leases anew."""
        lease = self.server.traits.capabilities.lease or 0.0
        for token in tokens:
            entry = self._out.get(token)
            if entry is not None and entry.holder is receiver and not entry.frozen:
                entry.ends = self._now() + lease
                self._look_at(entry.ends)

    def mark(self, receiver: QueueReceiver, token: Any, suspect: int) -> None:
        """Keep a mark beside a message."""
        entry = self._out.get(token)
        if entry is not None and entry.holder is receiver:
            entry.suspect = suspect

    def leave(self, receiver: QueueReceiver, *, leased: bool = False, counted: bool = False) -> None:
        """A receiver is no more: what it held comes at once, or when the lease ends."""
        if receiver in self._receivers:
            self._receivers.remove(receiver)
        if receiver.subscription.ephemeral:
            self.topic.groups.pop(self.name, None)
        if not leased:
            held = [token for token, entry in self._out.items() if entry.holder is receiver]
            self._take_back(held, counted=counted)
            if held and self.server.traits.returned_first:
                self._put_back_in_order()

    def _put_back_in_order(self) -> None:
        """As our driver, which takes what is still there from earlier, and gives back all in the order of the stream."""
        now = self._now()
        back = [entry for entry in self._waiting if entry.place < 0 and entry.due <= now]
        places = [entry.place for entry in back]
        for place, entry in zip(places, sorted(back, key=lambda each: each.number), strict=True):
            entry.place = place
        self._waiting.sort(key=lambda each: each.place)

    def _expire(self) -> None:
        now = self._now()
        ended = [t for t, entry in self._out.items() if entry.ends is not None and entry.ends <= now]
        self._take_back(ended, counted=True)

    def _take_back(self, tokens: Sequence[int], *, counted: bool) -> None:
        """Without a verdict: some brokers count that, but for what a living receiver has given back."""
        for token in tokens:
            entry = self._out.pop(token)
            if counted and self.server.traits.counts:
                entry.attempt, entry.losses = entry.attempt + 1, entry.losses + 1
            self.server.note("comes again", entry.message)
            entry.due = 0.0
            self._place_first(entry)
            self._put(entry)

    def _place_first(self, entry: Entry) -> None:
        """Where its broker has it so: before what was never handed out, behind what has come back before."""
        if self.server.traits.returned_first:
            self._returns += 1
            entry.place = self._returns - FIRST

    def _put(self, entry: Entry, *, at_once: bool = False) -> None:
        entry.holder = entry.ends = None
        insort(self._waiting, entry, key=lambda each: each.place)
        if at_once:
            self.wake()
        else:
            self._look_at(entry.due)

    # --- waking

    def _look_at(self, when: float) -> None:
        """Something may be had at this time."""
        loop = asyncio.get_running_loop()
        loop.call_at(max(when, loop.time()), self._look, context=self.server.context)

    def _look(self) -> None:
        self._expire()
        self.wake()

    def wake(self) -> None:
        """There may be something to be had."""
        if self._waiting:
            for receiver in self._receivers:
                receiver.wake()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
