"""What is, at a broker: facts that a driver reports, of which `conclusions` says what follows.

A driver fills in what its broker can say and leaves the rest as it is. What one broker alone can suffer is a `Finding`
of the driver's own.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from things_kit.engine.dead_letter import dead_letter_topic
from things_kit.engine.naming import check_name
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.names import DEAD_LETTER_GROUP

Level: TypeAlias = Literal["ok", "warning", "error"]

DEAD_LETTER: Final = "{topic}-dlq"
"""Where consumers put dead letters unless they are told otherwise."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        level: "error": messages are lost or stuck, or it takes none. "warning": that may come, or something
            works otherwise than it seems. "ok": it is well, or good to know.
        subject: What it is about, such as `topic orders`.
        what: What was found, a sentence.
        remedy: What to do about it, a sentence; empty where there is nothing to do.
    """

    level: Level
    subject: str
    what: str
    remedy: str = ""


class Question(msgspec.Struct, frozen=True):
    """What the findings are to be about, beside the broker itself.

    Attributes:
        topic: A topic that is consumed.
        group: The group that consumes it.
        concurrency: Handler calls at once, over all its processes.
        retry_span: Seconds from the first to the last attempt at a message; for so long it must not be deleted.
        dead_letter_group: The group that keeps dead letters.
        creates: Whether those who consume create what is missing.
    """

    topic: str | None = None
    group: str | None = None
    concurrency: int | None = None
    retry_span: float | None = None
    dead_letter_group: str = DEAD_LETTER_GROUP
    creates: bool = True

    def check(self) -> None:
        """Raises ConfigError for what cannot be the name of a topic or group."""
        for what, name in (("topic", self.topic), ("group", self.group)):
            if name is not None:
                check_name(what, name)

    @property
    def dead_letter(self) -> str | None:
        """The dead letter's topic, unless the topic is one itself."""
        if self.topic is None or self.topic.removesuffix(".fifo").endswith("-dlq"):
            return None
        return dead_letter_topic(DEAD_LETTER, self.topic, self.group or "")

    @property
    def wanted(self) -> Sequence[tuple[str, str | None]]:
        """The topics to look at, each with its group: the topic itself, and its dead letter."""
        pairs = ((self.topic, self.group), (self.dead_letter, self.dead_letter_group))
        return [(topic, group) for topic, group in pairs if topic is not None]


class Need(msgspec.Struct, frozen=True):
    """From which version on a server has something: what an older one lacks, a sentence, and how bad that is."""

    version: tuple[int, int]
    lacks: str
    level: Level = "error"


class Server(msgspec.Struct, frozen=True):
    """A server, by its address or part, with its product, version and what that must be; the worst need first."""

    subject: str
    product: str
    version: str
    needs: Sequence[Need] = ()


class Limit(msgspec.Struct, frozen=True):
    """Something that may run full.

    Attributes:
        subject: What has the limit.
        used: How much is used.
        most: How much there may be.
        of: Of what, such as "bytes of file storage".
        then: What happens when it is full, the end of a sentence: "it takes no messages".
        remedy: What to do about it.
    """

    subject: str
    used: float
    most: float
    of: str
    then: str
    remedy: str


class Retention(msgspec.Struct, frozen=True):
    """For how long messages are kept that were not handled.

    Attributes:
        seconds: At least for so long.
        setting: Of the broker, that says so.
        scale: Its unit, in parts of a second.
        bound: How many are kept at most, handled or not: "1,000 bytes of each partition (retention.bytes)".
    """

    seconds: float = math.inf
    setting: str = ""
    scale: int = 1
    bound: str = ""


class TopicFacts(msgspec.Struct, kw_only=True):
    """A topic as it is.

    Attributes:
        name: Its name.
        there: Whether it exists.
        impossible: Why the broker cannot have one of that name, a sentence; empty where it can.
        others: Names of topics that exist, where this one does not and that tells a misspelling.
        groups: Its groups; None where the broker has none of its own.
        retention: How long it keeps messages.
        copies: Of each message; None where that is not the topic's to say.
        largest: The largest message that it takes; None where it has no bound of its own.
        largest_setting: The broker's setting that says so.
    """

    name: str
    there: bool = True
    impossible: str = ""
    others: Sequence[str] = ()
    groups: Sequence[str] | None = None
    retention: Retention | None = None
    copies: int | None = None
    largest: int | None = None
    largest_setting: str = ""


class Blocked(msgspec.Struct, frozen=True):
    """Why nothing is handed out, a sentence, and what to do about it."""

    what: str
    remedy: str


class GroupFacts(msgspec.Struct, kw_only=True):
    """A group of a topic as it is.

    Attributes:
        name: Its name.
        topic: Of which topic.
        there: Whether it exists.
        place: What it is at the broker, such as "queue 'billing.orders'".
        ready: Messages that could be received now; None where the broker cannot say.
        held: Messages that were received and are not settled.
        consumers: Who receives; None where the broker cannot say.
        retention: How long its messages are kept, where that is the group's to say.
        largest: The largest message that it takes from its topic.
        deliveries: After so many the broker gives a message up; None where it does not, or not soon.
        goes_to: Where such a message goes; empty where it is lost.
        idle: After so many seconds without a consumer it is deleted with its messages.
        filter: What it lets in, where that is not everything.
        blocked: Why nothing is handed out.
    """

    name: str
    topic: str
    there: bool = True
    place: str = ""
    ready: int | None = None
    held: int | None = None
    consumers: int | None = None
    retention: Retention | None = None
    largest: int | None = None
    deliveries: int | None = None
    goes_to: str = ""
    idle: float | None = None
    filter: str = ""
    blocked: Sequence[Blocked] = ()


class Facts(msgspec.Struct, kw_only=True):
    """What a driver reports.

    Attributes:
        servers: Those that were asked.
        limits: What may run full.
        topics: Those that were asked about, and those that the engine keeps for them.
        groups: Those that were asked about, and others worth a look.
        findings: What only this broker can suffer.
        unseen: What could not be looked at, and why.
    """

    servers: list[Server] = []
    limits: list[Limit] = []
    topics: list[TopicFacts] = []
    groups: list[GroupFacts] = []
    findings: list[Finding] = []
    unseen: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def looking(self, subject: str) -> Iterator[None]:
        """A part of the look: that this user may not ask for it (a ConfigError) is a fact too, and ends only this part."""
        try:
            yield
        except ConfigError as error:
            self.unseen.append((subject, str(error)))

    def find(self, level: Level, subject: str, what: str, remedy: str = "") -> None:
        """Note what only this broker can suffer."""
        self.findings.append(Finding(level, subject, what, remedy))

    def topic(self, name: str | None) -> TopicFacts | None:
        """What is known of a topic."""
        return next((topic for topic in self.topics if topic.name == name), None)


@runtime_checkable
class Factual(Protocol):
    """What a driver may have beside the contract, if it can tell how things are at its broker."""

    async def facts(self, question: Question) -> Facts:
        """How things are; called while it is open. Changes nothing at the broker.

        What this user may not ask for is left out by `Facts.looking`, no reason to leave out the rest.

        Raises:
            ConnectionLost: The broker went away.
        """
