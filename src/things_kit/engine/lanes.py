"""Order within one process: which deliveries may be handled now, and which wait for an earlier one."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeAlias

from things_kit.engine.driver import Delivery
from things_kit.engine.state import QUEUED, READY, State
from things_kit.messaging.policy import Ordering

if TYPE_CHECKING:
    from things_kit.engine.inbox import ConsumerInbox

Lane: TypeAlias = Hashable
"""What orders a delivery: its key or partition. None: nothing does."""

_WHOLE_TOPIC: Final = -1


def _no_lane(delivery: Delivery) -> Lane:
    return None


def _partition(delivery: Delivery) -> Lane:
    partition = delivery.message.partition
    return _WHOLE_TOPIC if partition is None else partition


_LANE_OF: Final[dict[Ordering, Callable[[Delivery], Lane]]] = {
    "key": attrgetter("message.key"),
    "partition": _partition,
    "none": _no_lane,
}

_PARKED: Final[deque[Delivery]] = deque()
"""Stands for a lane whose deliveries went back to the broker."""


class Lanes:
    """Lets one delivery of a lane at a time into `ready`, the queue that the workers take from.

    A lane exists while one of its deliveries is ready, being handled, or waiting for another attempt. Its head is
    the delivery that may be handled; those behind it are queued here.
    """

    def __init__(self, ordering: Ordering, ready: deque[Delivery]) -> None:
        self.lane_of = _LANE_OF[ordering]
        self._by_key = ordering == "key"  # the usual case is worth no call for each message
        self._ready = ready
        # lane -> its queue; None where nothing is queued, which saves a deque for most keys
        self._queues: dict[Lane, deque[Delivery] | None] = {}
        # those that are not simply ready when it is their turn
        self._turns: dict[Delivery, Callable[[Delivery], None]] = {}
        # lane -> how many heads it has beyond one: a batch handler takes several of a lane at once
        self._more_heads: dict[Lane, int] = {}

    def admit(self, deliveries: Sequence[Delivery], inbox: "ConsumerInbox") -> list[Delivery]:
        """Take in what arrived, in order; returns what belongs to a parked lane and must go back."""
        queues, ready, strays, queued = self._queues, self._ready, [], QUEUED
        by_key, lane_of = self._by_key, self.lane_of
        for delivery in deliveries:
            delivery.inbox = inbox
            lane = delivery.message.key if by_key else lane_of(delivery)
            if lane is None:
                ready.append(delivery)
            elif lane not in queues:
                queues[lane] = None
                ready.append(delivery)
            else:
                queue = queues[lane]
                if queue is _PARKED:
                    strays.append(delivery)
                    continue
                delivery.state = queued
                if queue is None:
                    queues[lane] = deque((delivery,))
                else:
                    queue.append(delivery)
        return strays

    def admit_apart(
        self, delivery: Delivery, inbox: "ConsumerInbox", turn: Callable[[Delivery], None]
    ) -> list[Delivery]:
        """The same of one for which `turn` is called when it may be handled."""
        strays = self.admit([delivery], inbox)
        if delivery.state is State.QUEUED:
            self._turns[delivery] = turn
        elif not strays:
            self._ready.pop()
            turn(delivery)
        return strays

    def advance(self, delivery: Delivery) -> None:
        """The delivery is done with: the next of its lane is ready."""
        lane = delivery.message.key if self._by_key else self.lane_of(delivery)
        if lane is None:
            return
        if self._more_heads and lane in self._more_heads:
            self._drop_head(lane)
            return
        queue = self._queues.pop(lane, None)
        if queue is None:  # most lanes end here
            return
        if queue is _PARKED:
            self._queues[lane] = queue
        else:
            following = queue.popleft()
            self._queues[lane] = queue or None
            following.state = READY
            if self._turns and following in self._turns:
                self._turns.pop(following)(following)
            else:
                self._ready.append(following)

    def take_more(self, head: Delivery, room: int) -> list[Delivery]:
        """Up to `room` more of the head's lane, to be handled together with it."""
        lane = self.lane_of(head)
        queue = self._queues.get(lane)
        if lane is None or not queue:
            return []
        taken: list[Delivery] = []
        while queue and len(taken) < room and queue[0] not in self._turns:
            taken.append(queue.popleft())
        for delivery in taken:
            delivery.state = State.GATHERED
        if not queue:
            self._queues[lane] = None
        if taken:
            self._more_heads[lane] = self._more_heads.get(lane, 0) + len(taken)
        return taken

    def has_several_heads(self, lane: Lane) -> bool:
        """Whether more than one delivery of this lane was taken to be handled together."""
        return lane in self._more_heads

    def put_behind(self, deliveries: Sequence[Delivery], order: Mapping[Delivery, int] | None = None) -> None:
        """Queue heads of one lane again, behind the head that waits: in this order, or in front of all others."""
        lane = self.lane_of(deliveries[0])
        for delivery in deliveries:
            delivery.state = State.QUEUED
        queued = [*deliveries, *(self._queues.get(lane) or ())]
        if order is not None:
            queued.sort(key=order.__getitem__)
        self._queues[lane] = deque(queued)
        for _ in deliveries:
            self._drop_head(lane)

    def park(self, head: Delivery) -> list[Delivery]:
        """Give up a lane to the broker: returns what is queued behind the head.

        Until `unpark`, what arrives of this lane goes back as well: it was on its way when the head failed, and
        handling it would overtake the head.
        """
        lane = self.lane_of(head)
        if lane is None:
            return []
        queue = self._queues.get(lane)
        self._queues[lane] = _PARKED
        self._drop_head(lane)
        return list(queue or ())

    def unpark(self, lanes: Iterable[Lane]) -> None:
        """What arrives of these lanes from now on comes in the broker's order."""
        for lane in lanes:
            if self._queues.get(lane) is _PARKED:
                del self._queues[lane]

    def drop(self, which: Callable[[Delivery], bool]) -> None:
        """Drop these where they are queued or ready; a lane whose head was only ready goes on without it."""
        for lane, queue in self._queues.items():
            if queue:
                kept = deque(delivery for delivery in queue if not which(delivery))
                self._queues[lane] = kept or None
        self._turns = {delivery: turn for delivery, turn in self._turns.items() if not which(delivery)}
        dropped = [delivery for delivery in self._ready if which(delivery)]
        staying = [delivery for delivery in self._ready if not which(delivery)]
        self._ready.clear()
        self._ready.extend(staying)
        for delivery in dropped:
            self.advance(delivery)

    def _drop_head(self, lane: Lane) -> None:
        """One of several heads is no head any more; the last one stays."""
        heads = self._more_heads.pop(lane, 0) - 1
        if heads > 0:
            self._more_heads[lane] = heads
