"""What a running soak knows so far: as much as is needed to go on, and to say how it goes."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from things_kit.testing.soak.plan import GROUPS
from things_kit.testing.soak.records import Entry


class Tally:
    """Counts what the processes write down.

    Attributes:
        confirmed: Ids of what was published.
        done: Of each group, what it has handled to the end.
        lags: The last lag of each group.
        ready: The processes that have said that they are.
        counts: Entries by kind.
        partitions: Of each group, the partitions of which it has begun messages.
    """

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.done: dict[str, set[str]] = {group: set() for group in GROUPS}
        self.lags: dict[str, float] = {}
        self.ready: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.partitions: dict[str, set[int]] = defaultdict(set)
        self._left = dict.fromkeys(GROUPS, 0)
        self._dropped: list[tuple[float, float]] = []
        self._asked: dict[str, float] = {}
        self._since = float("inf")
        self._first: dict[str, float] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """These happened."""
        for entry in entries:
            self.counts[entry.kind] += 1
            match entry.kind:
                case "publishing":
                    self._asked[entry.id] = entry.at
                case "published":
                    self._confirmed(entry)
                case "began" if "partition" in entry.figures:
                    self.partitions[entry.group].add(int(entry.figures["partition"]))
                case "done":
                    self._done(entry)
                case "lag":
                    self.lags[entry.group] = entry.figures["lag"]
                case "ready":
                    self.ready.add(entry.by)

    def _confirmed(self, entry: Entry) -> None:
        self.confirmed.add(entry.id)
        if not self._is_dropped(entry.id):
            self._count(entry.id, 1)

    def _count(self, id_: str, more: int) -> None:
        for group, done in self.done.items():
            if id_ not in done:
                self._left[group] += more

    def drop(self, since: float, until: float) -> None:
        """What was published in this time is gone: what a group has not handled of it is not left to be handled."""
        before = {id_ for id_ in self.confirmed if not self._is_dropped(id_)}
        self._dropped.append((since, until))
        for id_ in before:
            if self._is_dropped(id_):
                self._count(id_, -1)

    def _is_dropped(self, id_: str) -> bool:
        at = self._asked.get(id_, 0.0)
        return any(since <= at <= until for since, until in self._dropped)

    def _done(self, entry: Entry) -> None:
        done = self.done[entry.group]
        counted = entry.id in self.confirmed and not self._is_dropped(entry.id)
        self._left[entry.group] -= counted and entry.id not in done
        done.add(entry.id)
        if self._asked.get(entry.id, 0.0) >= self._since:
            self._first.setdefault(entry.group, entry.at)

    def watch(self, since: float) -> None:
        """Look from now on for the first success of each group with a message that was published after this."""
        self._since, self._first = since, {}

    def recovered(self) -> dict[str, float]:
        """Seconds until that success, of each group that had it."""
        return {group: at - self._since for group, at in self._first.items()}

    def left(self) -> dict[str, int]:
        """How many of the confirmed messages each group has still to handle."""
        return dict(self._left)
