"""What is done to a soak's world, and how it is seen in what the processes wrote down that it had an effect."""

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from things_kit.testing.soak.plan import GROUPS, PARTITIONED, PLANNED
from things_kit.testing.soak.records import Entry
from things_kit.testing.soak.subjects import Subject

if TYPE_CHECKING:
    from things_kit.testing.soak.world import World

MEMBERS: Final = (
    "ordered-1",
    "ordered-2",
    "free-1",
    "free-2",
    "batch-1",
    "results-1",
    "carrier-1",
    "clerk-1",
    "producer-1",
    "producer-2",
)
MORTALS: Final = tuple(who for who in MEMBERS if who not in {"ordered-1", "free-1"})
"""Two live through it all, so that what grows slowly is seen. `ordered-3` is the one that is deployed."""

THIEF: Final = "ordered-9"

DELAY: Final = 0.3
"""Seconds that a slow network adds, each way."""

SLICE: Final = 4096
BROKEN_OFF: Final = 20_000

FILLING: Final = 1.0
"""Seconds for which messages come at full speed before their topic is deleted."""

ANEW: Final = 35.0
"""Seconds within which the loss of a connection must have been noticed by who uses it."""


class Strike(msgspec.Struct, frozen=True):
    """One fault of a run: what, to whom (empty: to all), and for how long."""

    fault: str
    victim: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        whom = f" {self.victim}" if self.victim else ""
        return f"{self.fault}{whom}" + (f" {self.seconds:.0f} s" if self.seconds else "")


Act: TypeAlias = Callable[["World", Strike], Awaitable[None]]
Span: TypeAlias = tuple[float, float]
"""From when to when."""

Seen: TypeAlias = Callable[[Sequence[Entry], Strike, Span], str]
"""What shows that a strike had an effect, in the entries of its time; empty if nothing does."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of fault.

    Attributes:
        act: Does it; returns when it is over.
        seen: Its effect.
        victims: Whom it may hit; none where it hits all.
        lasts: From how long to how long, in seconds, given the subject.
        shadow: Seconds after its end in which messages may still come again because of it.
        violent: Whether messages may come again because of it at all.
        drops: Whether what was published meanwhile, and not handled before, is lost by it.
        moves_keys: Whether the messages of a key may come from another partition afterwards.
        possible: Where it can be done.
    """

    act: Act
    seen: Seen
    victims: tuple[str, ...] = ()
    lasts: Callable[[Subject], Span] = lambda _: (0.0, 0.0)
    shadow: float = 5.0
    violent: bool = True
    drops: bool = False
    moves_keys: bool = False
    possible: Callable[[Subject], bool] = lambda _: True

    def strike(self, name: str, subject: Subject, chance: random.Random) -> Strike:
        """One of this kind."""
        victim = chance.choice(self.victims) if self.victims else ""
        return Strike(name, victim, round(chance.uniform(*self.lasts(subject)), 1))


# --- what is done


async def _kill(world: "World", strike: Strike) -> None:
    async with world.crew.lock(strike.victim):
        await world.crew.kill(strike.victim)
        await world.start(strike.victim)


async def _restart(world: "World", strike: Strike) -> None:
    async with world.crew.lock(strike.victim):
        await world.crew.stop(strike.victim)
        await world.start(strike.victim)


async def _freeze(world: "World", strike: Strike) -> None:
    async with world.crew.lock(strike.victim):
        world.crew.freeze(strike.victim)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            world.crew.thaw(strike.victim)


async def _steal(world: "World", strike: Strike) -> None:
    async with world.crew.lock(THIEF):
        await world.start(THIEF)
        await asyncio.sleep(strike.seconds)
        await world.crew.stop(THIEF)


def _broker_away(how: str) -> Act:
    async def act(world: "World", strike: Strike) -> None:
        server = world.subject.server
        assert server is not None
        await asyncio.to_thread(getattr(server, how))
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            await asyncio.to_thread(server.resume if how == "pause" else server.start)

    return act


def _network(how: str, value: float | int | None, usual: float | int | None) -> Act:
    async def act(world: "World", strike: Strike) -> None:
        relay = world.relay
        getattr(relay, how)(value)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            getattr(relay, how)(usual)

    return act


def _one_connection(how: str, value: float, usual: float | None) -> Act:
    async def act(world: "World", strike: Strike) -> None:
        connections = world.relay.connections
        if not connections:
            return
        connection = world.chance.choice(connections)
        passed = connection.passed
        getattr(connection, how)(value)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            getattr(connection, how)(usual)
        if more := connection.passed - passed:
            world.note_effect(f"{more:,} bytes passed on it")

    return act


def _connections(how: str, *arguments: int, one: bool = False) -> Act:
    async def act(world: "World", strike: Strike) -> None:
        before = world.relay.connections
        struck = [world.chance.choice(before)] if one and before else before
        for connection in struck:
            getattr(connection, how)(*arguments)
        await world.until(lambda: not set(struck) & set(world.relay.connections), ANEW)
        gone = set(struck) - set(world.relay.connections)
        new = set(world.relay.connections) - set(before)
        if gone:
            world.note_effect(f"{len(gone)} of {len(struck)} connections given up, {len(new)} new ones")
        for connection in set(struck) - gone:
            connection.cut()  # nobody has used it: it is not to surprise anybody later

    return act


def _switched(name: str) -> Act:
    async def act(world: "World", strike: Strike) -> None:
        do, undo = world.subject.faults[name]
        await asyncio.to_thread(do)
        try:
            await asyncio.sleep(strike.seconds)
        finally:
            await asyncio.to_thread(undo)

    return act


async def _delete_topic(world: "World", strike: Strike) -> None:
    """Only once all is handled that was published before: so nothing is excused that was lost otherwise."""
    if await world.catch_up():
        await asyncio.sleep(FILLING)
        await world.delete_topic(strike.seconds)


async def _add_partitions(world: "World", strike: Strike) -> None:
    add, groups = world.subject.add_partitions, world.tally.partitions
    assert add is not None
    groups.clear()
    first = await asyncio.to_thread(add)
    await world.until(lambda: all(max(groups[group], default=0) >= first for group in PARTITIONED), ANEW)
    reached = [group for group in PARTITIONED if max(groups[group], default=0) >= first]
    if reached:
        world.note_effect(f"{', '.join(reached)} had messages of new partitions, from {first} on")


# --- what is seen of it


def within(entries: Sequence[Entry], span: Span) -> Iterator[Entry]:
    """Those of this time."""
    return (entry for entry in entries if span[0] <= entry.at <= span[1])


def seen_dying(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """The victim ended by a signal."""
    for entry in within(entries, span):
        if entry.kind == "ended" and entry.id.startswith(f"{strike.victim}.") and entry.figures["code"] < 0:
            return f"{entry.id} ended by signal {-entry.figures['code']:.0f}"
    return ""


def seen_ending(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """The victim said that it ends."""
    for entry in within(entries, span):
        if entry.kind == "ending" and entry.by.startswith(f"{strike.victim}."):
            return f"{entry.by} ended"
    return ""


def seen_standing(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """The victim's pulse stood still for most of that time."""
    beats: dict[str, float] = {}
    for entry in within(entries, (span[0] - 5, span[1] + 5)):
        if entry.kind == "pulse" and entry.by.startswith(f"{strike.victim}."):
            gap = entry.at - beats.get(entry.by, entry.at)
            if gap >= 0.8 * strike.seconds:
                return f"{entry.by} had no pulse for {gap:.1f} s"
            beats[entry.by] = entry.at
    return ""


def seen_trouble(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """A process was ill, a publish failed or took long, or the library warned."""
    asked: dict[str, float] = {}
    for entry in within(entries, (span[0] - 30, span[1] + 35)):
        if entry.kind == "publishing":
            asked[entry.id] = entry.at
        elif entry.at < span[0]:
            continue
        elif entry.kind in {"ill", "unpublished"}:
            return f"{entry.by}: {entry.text}"[:150]
        elif entry.kind == "said" and _is_complaint(entry.text):
            return f"{entry.by}: {entry.text.splitlines()[0]}"[:150]
        elif entry.kind == "published" and (took := entry.at - asked.get(entry.id, entry.at)) > 1.0:
            return f"a publish took {took:.1f} s"
    return ""


def seen_slowness(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """Publishes took as long as the network made them."""
    asked = {entry.id: entry.at for entry in within(entries, span) if entry.kind == "publishing"}
    took = [e.at - asked[e.id] for e in within(entries, span) if e.kind == "published" and e.id in asked]
    if took and (median := statistics.median(took)) >= DELAY:
        return f"a publish took {median:.2f} s"
    return ""


def seen_traffic(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """Messages were confirmed through it."""
    number = sum(entry.kind == "published" for entry in within(entries, span))
    return f"{number} messages confirmed in slices" if number else ""


def seen_stealing(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """The thief handled something."""
    number = sum(e.kind == "began" and e.by.startswith(f"{THIEF}.") for e in within(entries, span))
    return f"{THIEF} began {number} messages" if number else ""


def seen_dropping(entries: Sequence[Entry], strike: Strike, span: Span) -> str:
    """Something was confirmed in this time that a group never handled."""
    confirmed = {entry.id for entry in within(entries, span) if entry.kind == "published"}
    done = {group: {e.id for e in entries if e.kind == "done" and e.group == group} for group in GROUPS}
    dropped = {group: len(confirmed - ids) for group, ids in done.items() if confirmed - ids}
    return "never handled: " + ", ".join(f"{group} {n}" for group, n in dropped.items()) if dropped else ""


def _is_complaint(text: str) -> bool:
    return text.startswith(("WARNING", "ERROR")) and not any(words in text for words in PLANNED)


# --- the list


def _server(subject: Subject) -> bool:
    return subject.server is not None


def _durable_server(subject: Subject) -> bool:
    return subject.server is not None and subject.durable


def _relay(subject: Subject) -> bool:
    return subject.relay is not None


def _longer(subject: Subject) -> Span:
    return 1.2 * subject.lease, 1.5 * subject.lease


NOTICED: Final = 35.0
"""Seconds until a connection that fell silent is given up, and what was lost on it comes again."""

FAULTS: Final[dict[str, Fault]] = {
    "kill": Fault(act=_kill, seen=seen_dying, victims=MORTALS, shadow=10.0),
    "freeze": Fault(act=_freeze, seen=seen_standing, victims=MEMBERS, lasts=_longer, shadow=10.0),
    "restart": Fault(act=_restart, seen=seen_ending, victims=MORTALS, violent=False),
    "thief": Fault(act=_steal, seen=seen_stealing, lasts=lambda _: (8.0, 12.0), violent=False),
    "broker killed": Fault(act=_broker_away("kill"), seen=seen_trouble, lasts=lambda _: (1.0, 6.0), shadow=20.0, possible=_durable_server),
    "broker stopped": Fault(act=_broker_away("stop"), seen=seen_trouble, lasts=lambda _: (0.0, 3.0), shadow=20.0, possible=_server),
    "broker frozen": Fault(act=_broker_away("pause"), seen=seen_trouble, lasts=lambda _: (2.0, 4.0), shadow=15.0, possible=_server),
    "broker frozen for long": Fault(act=_broker_away("pause"), seen=seen_trouble, lasts=_longer, shadow=20.0, possible=_server),
    "all cut": Fault(act=_connections("cut"), seen=seen_trouble, shadow=15.0, possible=_relay),
    "one cut": Fault(act=_connections("cut", one=True), seen=seen_trouble, shadow=15.0, possible=_relay),
    "all broken off": Fault(act=_connections("cut_after", BROKEN_OFF), seen=seen_trouble, shadow=15.0, possible=_relay),
    "all half-open": Fault(act=_connections("half_open"), seen=seen_trouble, shadow=NOTICED, possible=_relay),
    "one half-open": Fault(act=_connections("half_open", one=True), seen=seen_trouble, shadow=NOTICED, possible=_relay),
    "topic deleted": Fault(
        act=_delete_topic, seen=seen_dropping, lasts=lambda _: (0.0, 4.0), shadow=20.0, drops=True,
        possible=lambda subject: subject.deletes,
    ),
    "partitions added": Fault(
        act=_add_partitions, seen=seen_trouble, shadow=15.0, moves_keys=True,
        possible=lambda subject: subject.add_partitions is not None,
    ),
    "slow": Fault(act=_network("slow", DELAY, 0.0), seen=seen_slowness, lasts=lambda _: (8.0, 12.0), violent=False, possible=_relay),
    "one slow": Fault(act=_one_connection("slow", DELAY, 0.0), seen=seen_trouble, lasts=lambda _: (8.0, 12.0), violent=False, possible=_relay),
    "one in slices": Fault(act=_one_connection("sliced", SLICE, None), seen=seen_trouble, lasts=lambda _: (5.0, 8.0), shadow=10.0, possible=_relay),
    "in slices": Fault(act=_network("sliced", SLICE, None), seen=seen_traffic, lasts=lambda _: (5.0, 8.0), shadow=10.0, possible=_relay),
}  # fmt: skip


def faults_of(subject: Subject) -> dict[str, Fault]:
    """All that can be done to this subject, what is its own included."""
    own = {
        name: Fault(act=_switched(name), seen=seen_trouble, lasts=_longer, shadow=15.0)
        for name in subject.faults
    }
    return {name: fault for name, fault in FAULTS.items() if fault.possible(subject)} | own


class Step(msgspec.Struct, frozen=True):
    """A part of a run: quiet for so many seconds, at full speed if it is so, and then a strike if there is one."""

    quiet: float
    strike: Strike | None = None
    burst: bool = False
    idle: bool = False


def steps(subject: Subject, seed: int) -> Iterator[Step]:
    """The run, without end: always the same for the same subject and seed.

    All faults come once in a random order before any comes again; between two rounds nothing is published for a while,
    and then all at once.
    """
    chance = random.Random(f"{subject.name}/{seed}")  # noqa: S311 - to be repeated
    faults = faults_of(subject)
    while True:
        names = sorted(faults)
        chance.shuffle(names)
        for number, name in enumerate(names):
            strike = faults[name].strike(name, subject, chance)
            yield Step(round(chance.uniform(2.0, 8.0), 1), strike, burst=number % 4 == 3)
        yield Step(subject.quiet, idle=True)
