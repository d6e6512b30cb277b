"""What a process of a soak is told when it starts, and what its handler does with which message."""

import zlib
from typing import Final, Literal, TypeAlias

import msgspec

from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

Role: TypeAlias = Literal["producer", "ordered", "free", "batch", "results", "carrier", "clerk"]

TOPIC: Final = "soak"
ORDERED: Final = "ordered"
FREE: Final = "free"
BATCH: Final = "batch"
BRIDGE: Final = "bridge"
FAR: Final = "far"
RESULTS: Final = "results"

GROUPS: Final = (ORDERED, FREE, BATCH, FAR, RESULTS)
"""What each confirmed message must reach; `far` is what the bridge brings to the broker beside, and `results` what the
handlers of `ordered` return, each noted down under the message that it was made of."""

PARTITIONED: Final = (ORDERED, FREE, BATCH)
"""Those whose members note down of which partition a message is."""

NEVER_FAILING: Final = (FAR, RESULTS)


def results_of(topic: str) -> str:
    """The topic to which handlers publish what they return."""
    stem = topic.removesuffix(".fifo")
    return f"{stem}-results{topic[len(stem) :]}"


def dead_letters_of(topic: str) -> str:
    """The topic of its dead letters."""
    stem = topic.removesuffix(".fifo")
    return f"{stem}-dlq{topic[len(stem) :]}"


DRAIN: Final = 8.0
"""Seconds of `drain_timeout` of every consumer."""

BEYOND: Final = 9.0
"""Seconds that stopping and closing may take beyond it."""

ATTEMPTS: Final = 3

PLACE: Final = "place"
CHECKSUM: Final = "crc"

Order: TypeAlias = Literal["steady", "rest", "burst"]
"""What producers are told to do."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is to do.

    Attributes:
        name: Its role and number, and how often it was started: `ordered-1.3`.
        role: What it does.
        url: The broker under test.
        beside: The broker to which the bridge carries.
        folder: Where its journal is.
        topic: The topic that all is about.
        prepare: `module:function` to be called before anything else, such as one that registers a driver.
        long: Seconds that the slowest handlings take: longer than a lease.
        rate: Messages that a producer publishes in a second.
        burst: Messages that it publishes as fast as it can when told to.
        concurrency: Handler calls at once.
        seed: Of the producer's choices.
    """

    name: str
    role: Role
    url: str
    beside: str
    folder: str
    topic: str = TOPIC
    prepare: str = ""
    long: float = 6.5
    rate: float = 10.0
    burst: int = 500
    concurrency: int = 4
    seed: int = 0


Fate: TypeAlias = Literal[
    "well", "takes a while", "outlasts a lease", "fails once", "asks again", "hopeless", "rejected"
]

SHARES: Final[tuple[tuple[int, Fate], ...]] = (
    (5, "rejected"), (10, "hopeless"), (35, "fails once"), (45, "asks again"), (47, "outlasts a lease"), (100, "takes a while"),
)  # fmt: skip
"""Of a thousand messages, up to which number each fate reaches; all others go well.

At 25 messages a second, two of a thousand that take 27 s (where a lease has 21 s) keep 1.4 of 4 workers busy; five of a
thousand kept nearly all, and a group of one member stood for a minute with nothing wrong.
"""

FATAL: Final = frozenset({"rejected", "hopeless"})


PLANNED: Final = ("Planted", "as planned", "asked for another attempt")
"""In what the library says of handlers that fail as they are meant to."""


class Result(msgspec.Struct, frozen=True):
    """What a handler of `ordered` returns: of which message it is, and the place of that among all of its key."""

    of: str
    place: int


class Planted(Exception):
    """A handler failed because the soak wanted it to."""


def fate_of(id_: str, group: str) -> Fate:
    """What the handler of a group does with a message: always the same, whoever handles it."""
    number = zlib.crc32(f"{group}/{id_}".encode()) % 1000
    return next((fate for up_to, fate in SHARES if number < up_to), "well")


def fate(message: Message, group: str) -> Fate:
    """The same; a dead letter that was brought back goes well now."""
    replayed = message.headers.get(REPLAY_GROUP) == group
    return "well" if replayed or group in NEVER_FAILING else fate_of(message.id or "", group)
