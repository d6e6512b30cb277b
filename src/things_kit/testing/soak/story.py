"""The journals of a run, put together so that promises can be checked: who handled what, when, and what was done to whom."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

import msgspec

from things_kit.testing.soak.plan import RESULTS
from things_kit.testing.soak.records import Entry, in_order

Findings: TypeAlias = Iterator[str]
"""What breaks a promise, a line each."""

NEVER: Final = float("inf")
CONSUMING: Final = ("ordered", "free", "batch", "results", "carrier")
"""How the names of processes begin that are members of groups."""


class Handling(msgspec.Struct):
    """One call of a handler with one message.

    `how` is what became of it: done, failed, cancelled; empty where the process ended in the middle.
    """

    id: str
    group: str
    by: str
    began: float
    ended: float = NEVER
    how: str = ""
    key: str = ""
    place: int = 0
    attempt: int = 1
    text: str = ""


class Struck(msgspec.Struct, frozen=True):
    """A fault that was done.

    Attributes:
        id: Its number.
        fault: Its name.
        victim: The process, by role and number; empty where it hit all.
        began: When it began.
        over: When it was over.
        until: Until when messages may come again because of it.
        violent: Whether they may at all.
        seconds: For how long it was meant to last.
        whole_group: Whether what befell its victim befell all who consume.
        drops: Whether what was published meanwhile, and not handled before, is lost by it.
        moves_keys: Whether the messages of a key may come from another partition afterwards.
    """

    id: str
    fault: str
    victim: str
    began: float
    over: float
    until: float
    violent: bool
    seconds: float
    whole_group: bool = False
    drops: bool = False
    moves_keys: bool = False

    def touches(self, *processes: str) -> bool:
        """Whether it hit one of these lives of a process."""
        return not self.victim or self.whole_group or self.befell(*processes)

    def befell(self, *processes: str) -> bool:
        """Whether it was done to one of these themselves."""
        return any(by.rpartition(".")[0] == self.victim for by in processes)


class Life(msgspec.Struct):
    """One life of a process: from its start to its end."""

    name: str
    started: float
    ready: float | None = None
    told: float | None = None
    ended: float | None = None
    code: int = 0
    killed: bool = False


class Story:
    """All that happened.

    Attributes:
        entries: As they were written down.
        across: Whether a key keeps its order across processes.
        whole_group: Whether a fault of one member is one of all in its group.
        counts_given_back: Whether what a stopping process gives back counts as an attempt in others.
        gives_back_in_order: Whether what a stopping process gives back comes again in its place.
        asked: When each message was first tried to be published.
        partitions: Of each message the partition that it came from last, where that was noted down.
        results: Of each message the ids under which the result of its handling came.
        published: Each that was confirmed.
        handlings: Of each group, of each message, in order.
        struck: The faults.
        lives: The processes.
        buried: Of each group, when each message was seen among the dead letters.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = in_order(entries)
        self.across = self.whole_group = self.counts_given_back = self.gives_back_in_order = False
        self.asked: dict[str, float] = {}
        self.published: dict[str, Entry] = {}
        self.handlings: dict[str, dict[str, list[Handling]]] = defaultdict(lambda: defaultdict(list))
        self.partitions: dict[str, float] = {}
        self.results: dict[str, set[str]] = defaultdict(set)
        self.struck: list[Struck] = []
        self.lives: dict[str, Life] = {}
        self.buried: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        self.phases: dict[str, float] = {}
        self._running: dict[tuple[str, str, str], list[Handling]] = defaultdict(list)
        self._open: dict[str, Entry] = {}
        for entry in self.entries:
            self._tell(entry)
        for entry in list(self._open.values()):
            self._strike(entry, self.entries[-1].at)

    def _tell(self, entry: Entry) -> None:
        match entry.kind:
            case "publishing":
                self.asked.setdefault(entry.id, entry.at)
            case "published":
                self.published[entry.id] = entry
            case "began":
                self._began(entry)
            case "done" | "failed" | "cancelled":
                self._finished(entry)
            case "buried":
                self.buried[entry.group][entry.id].append(entry)
            case "fault":
                self._open[entry.id] = entry
            case "over" if entry.id in self._open:
                self._strike(self._open[entry.id], entry.at)
            case "started" | "ready" | "told" | "ended":
                self._lives(entry)
            case "phase":
                self.phases[entry.text] = entry.at
                self.across |= bool(entry.figures.get("across"))
                self.whole_group |= bool(entry.figures.get("whole group"))
                self.counts_given_back |= bool(entry.figures.get("counts given back"))
                self.gives_back_in_order |= bool(entry.figures.get("gives back in order"))

    def _began(self, entry: Entry) -> None:
        handling = Handling(
            entry.id, entry.group, entry.by, entry.at, key=entry.key, place=entry.place, attempt=entry.attempt
        )
        self.handlings[entry.group][entry.id].append(handling)
        self._running[entry.by, entry.group, entry.id].append(handling)
        if "partition" in entry.figures:
            self.partitions[entry.id] = entry.figures["partition"]
        if entry.group == RESULTS:
            self.results[entry.id].add(entry.text)

    def _finished(self, entry: Entry) -> None:
        running = self._running[entry.by, entry.group, entry.id]
        if running:
            handling = running.pop(0)
            handling.ended, handling.how, handling.text = entry.at, entry.kind, entry.text

    def _strike(self, entry: Entry, over: float) -> None:
        del self._open[entry.id]
        figures = entry.figures
        self.struck.append(
            Struck(
                id=entry.id,
                fault=entry.text,
                victim=entry.key,
                began=entry.at,
                over=over,
                until=over + figures.get("shadow", 0.0),
                violent=bool(figures.get("violent", 1.0)),
                seconds=figures.get("seconds", 0.0),
                whole_group=self.whole_group and entry.key.startswith(CONSUMING),
                drops=bool(figures.get("drops")),
                moves_keys=bool(figures.get("moves keys")),
            )
        )

    def _lives(self, entry: Entry) -> None:
        if entry.kind == "started":
            self.lives[entry.id] = Life(entry.id, entry.at)
        elif entry.kind == "ready" and entry.by in self.lives:
            self.lives[entry.by].ready = entry.at
        elif entry.kind == "told" and entry.id in self.lives:
            self.lives[entry.id].told = entry.at
        elif entry.kind == "ended" and entry.id in self.lives:
            life = self.lives[entry.id]
            life.ended, life.code = entry.at, int(entry.figures["code"])
            life.killed = bool(entry.figures.get("killed"))
            for key in [key for key in self._running if key[0] == entry.id]:
                for handling in self._running.pop(key):
                    handling.ended = entry.at

    def cause(self, start: float, end: float, *processes: str) -> Struck | None:
        """A violent fault of this time that hit one of these processes, or all."""
        for struck in self.struck:
            if (
                struck.violent
                and struck.began <= end
                and struck.until >= start
                and struck.touches(*processes)
            ):
                return struck
        return None

    def dropped(self, id_: str) -> bool:
        """Whether a fault has taken away what was published at that time."""
        at = self.asked.get(id_, NEVER)
        return any(struck.drops and struck.began <= at <= struck.over for struck in self.struck)

    def apart(self, earlier: str, later: str) -> bool:
        """Whether two messages of a key are in two partitions, as some were added before the later one was published."""
        one, other = self.partitions.get(earlier), self.partitions.get(later)
        if one is None or other is None or one == other:
            return False
        at = self.asked.get(later, 0.0)
        return any(struck.moves_keys and struck.began <= at for struck in self.struck)

    def changes(self, start: float, end: float) -> bool:
        """Whether members came or went in this time, or anything was done to anybody."""
        return any(struck.began <= end and struck.until >= start for struck in self.struck) or any(
            _overlap(life.started, life.ready, start, end) or _overlap(life.told, life.ended, start, end)
            for life in self.lives.values()
            if not life.name.startswith("producer")
        )

    def hindered(self, start: float, end: float) -> float:
        """For how many seconds of this time something was being done to all."""
        return sum(
            max(0.0, min(struck.over, end) - max(struck.began, start))
            for struck in self.struck
            if not struck.victim
        )

    def keys(self, group: str) -> Mapping[str, list[Handling]]:
        """The handlings of each key in a group, in the order in which they began."""
        by_key: dict[str, list[Handling]] = defaultdict(list)
        for handlings in self.handlings[group].values():
            for handling in handlings:
                if handling.key:
                    by_key[handling.key].append(handling)
        for handlings in by_key.values():
            handlings.sort(key=lambda handling: handling.began)
        return by_key

    def of(self, kind: str) -> Iterator[Entry]:
        """The entries of a kind."""
        return (entry for entry in self.entries if entry.kind == kind)


def _overlap(began: float | None, ended: float | None, start: float, end: float) -> bool:
    return began is not None and began <= end and (NEVER if ended is None else ended) >= start
