"""What subscriptions have to hand out, to whom, and until when."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from things_kit.testing.servers.pubsub_service.protocol import RECEIVED, Proto

INVALID: Final = "PERMANENT_FAILURE_INVALID_ACK_ID"
TRANSIENT: Final = "TRANSIENT_FAILURE_UNORDERED_ACK_ID"


class Entry:
    """A message that a subscription has not acknowledged. While it is out, `ack_id` says as what and `taker` with whom."""

    __slots__ = ("ack_id", "attempt", "deadline", "lane", "message", "number", "taker", "trusted")

    def __init__(self, number: int, message: Proto, lane: "Lane | None") -> None:
        self.number, self.message, self.lane = number, message, lane
        self.attempt, self.ack_id, self.deadline = 0, "", 0.0
        self.taker: Taker | None = None
        self.trusted = True


class Lane:
    """The messages of one ordering key, in order; the first `out` of them are with a subscriber."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.queued = False

    @property
    def out(self) -> int:
        """How many are with a subscriber."""
        return sum(entry.taker is not None for entry in self.entries)


class Taker:
    """A stream or a pull: takes up to `capacity` messages at once. A stream says which `client` it is of.

    Whoever lets messages expire may have gone without a word, and is asked last.
    """

    def __init__(self, capacity: int, deadline: int, client: str = "") -> None:
        self.capacity, self.deadline, self.client = capacity, deadline, client
        self.followed = False
        self.late = 0
        self.taken: list[Proto] = []
        self.holding = 0
        self.woken = asyncio.Event()

    def take(self) -> list[Proto]:
        """What has come for it."""
        taken, self.taken = self.taken, []
        self.woken.clear()
        return taken


class Subscribed:
    """One subscription."""

    def __init__(self, settings: Proto) -> None:
        self.settings = settings
        self.takers: list[Taker] = []
        self.lanes: dict[str, Lane] = {}
        self.ready: deque[Entry | Lane] = deque()
        self.entries: dict[int, Entry] = {}
        self.by_ack_id: dict[str, Entry] = {}

    def add(self, number: int, message: Proto) -> None:
        """A message was published."""
        key = message.ordering_key if self.settings.enable_message_ordering else ""
        lane = self.lanes.setdefault(key, Lane()) if key else None
        entry = self.entries[number] = Entry(number, message, lane)
        if lane is None:
            self.ready.append(entry)
        else:
            lane.entries.append(entry)
            self._queue(lane)

    def join(self, taker: Taker) -> None:
        """A stream or pull begins. What an earlier stream of the same client has, gone or not, is this one's."""
        for before in [each for each in self.takers if taker.client and each.client == taker.client]:
            self.leave(before)
            before.followed = True
            before.woken.set()
        for entry in self.entries.values():
            if entry.taker is not None and taker.client and entry.taker.client == taker.client:
                entry.taker = taker
                taker.holding += 1
        self.takers.append(taker)

    def leave(self, taker: Taker) -> None:
        """It ends, if it was not followed by another before."""
        if taker in self.takers:
            self.takers.remove(taker)

    def _queue(self, lane: Lane) -> None:
        if not lane.queued:
            lane.queued = True
            self.ready.append(lane)

    def deliver(self) -> None:
        """Hand out what can be handed out."""
        waiting: list[Entry | Lane] = []
        while self.ready and (free := [taker for taker in self.takers if taker.holding < taker.capacity]):
            each = self.ready.popleft()
            if isinstance(each, Lane):
                each.queued = False
                if not self._deliver_lane(each, free):
                    waiting.append(each)
            elif each.number in self.entries and each.taker is None:
                self._hand(each, min(free, key=_load))
        for each in waiting:
            if isinstance(each, Lane):
                self._queue(each)

    def _deliver_lane(self, lane: Lane, free: list[Taker]) -> bool:
        """False if it must wait for room with whom it is."""
        owner = next((entry.taker for entry in lane.entries if entry.taker is not None), None)
        taker = owner or min(free, key=_load)
        for entry in lane.entries:
            if entry.taker is not None:
                continue
            if taker not in self.takers:
                return True  # who comes back for it when it is settled
            if taker.holding >= taker.capacity:
                return False
            self._hand(entry, taker)
        return True

    def _hand(self, entry: Entry, taker: Taker) -> None:
        entry.attempt += 1
        entry.ack_id = f"{self.settings.name.rpartition('/')[2]}:{entry.number}:{entry.attempt}"
        entry.taker = taker
        entry.deadline = time.monotonic() + (taker.deadline or self.settings.ack_deadline_seconds)
        self.by_ack_id[entry.ack_id] = entry
        taker.holding += 1
        counted = entry.attempt if self.settings.dead_letter_policy.dead_letter_topic else 0
        taker.taken.append(RECEIVED(ack_id=entry.ack_id, message=entry.message, delivery_attempt=counted))
        taker.woken.set()

    def _take_back(self, entry: Entry) -> None:
        if entry.taker is not None:
            entry.taker.holding -= 1
            entry.taker.woken.set()
            entry.taker = None

    def acknowledge(self, ack_ids: Iterable[str]) -> tuple[list[int], dict[str, str]]:
        """The numbers of what is done, and why others are not."""
        once, done, failures = self.settings.enable_exactly_once_delivery, [], {}
        transient = self.settings.labels.get("fault") == "transient_ack"
        for ack_id in ack_ids:
            entry = self.by_ack_id.get(ack_id)
            if entry is None or (once and entry.ack_id != ack_id):
                failures[ack_id] = INVALID
            elif once and transient and entry.trusted:
                entry.trusted = False
                failures[ack_id] = TRANSIENT
            else:
                self.drop(entry)
                done.append(entry.number)
        return done, failures if once else {}

    def drop(self, entry: Entry) -> None:
        """It is acknowledged."""
        self._take_back(entry)
        for attempt in range(1, entry.attempt + 1):
            self.by_ack_id.pop(f"{self.settings.name.rpartition('/')[2]}:{entry.number}:{attempt}", None)
        self.entries.pop(entry.number, None)
        lane = entry.lane
        if lane is not None and entry in lane.entries:
            lane.entries.remove(entry)
            if lane.entries:
                self._queue(lane)

    def modify(self, ack_ids: Iterable[str], seconds: int) -> dict[str, str]:
        """New deadlines, or back with them."""
        failures = {}
        for ack_id in ack_ids:
            entry = self.by_ack_id.get(ack_id)
            if entry is None or entry.taker is None or entry.ack_id != ack_id:
                failures[ack_id] = INVALID
            elif entry.attempt == 1 and self.settings.labels.get("fault") == "stale":
                failures[ack_id] = INVALID
                self._give_back(entry)
            elif seconds:
                entry.deadline = time.monotonic() + seconds
            else:
                self._give_back(entry)
        return failures if self.settings.enable_exactly_once_delivery else {}

    def _give_back(self, entry: Entry) -> None:
        if entry.lane is None:
            self._take_back(entry)
            self.ready.appendleft(entry)
            return
        behind = entry.lane.entries[entry.lane.entries.index(entry) :]
        for each in behind:
            self._take_back(each)
        self._queue(entry.lane)

    def expire(self) -> None:
        """Take back what was not settled in time."""
        now = time.monotonic()
        for entry in [each for each in self.by_ack_id.values() if each.taker and each.deadline < now]:
            if entry.taker is not None:
                entry.taker.late += 1
                self._give_back(entry)


def _load(taker: Taker) -> tuple[int, int]:
    return taker.late, taker.holding
