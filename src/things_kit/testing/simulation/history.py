"""What happened in one history: the trace, what was published and handled, and checks that most worlds need."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from things_kit.codecs.contract import contract_decoder
from things_kit.messaging.message import Message
from things_kit.messaging.names import ERROR_TYPE, ORIGINAL_TOPIC
from things_kit.messaging.topic import Topic

UNSHOWN: Final = ("delivered", "joins", "acknowledged", "comes again", "all is healed")
"""What is part of the trace, and tells a reader nothing that other lines do not."""


class Row(msgspec.Struct, frozen=True):
    """One line of the history.

    Attributes:
        process: "process 1", "workload" or "broker".
        at: Seconds since it began.
        what: What happened.
        message: Which message, by its id and value; "" where it was none.
    """

    process: str
    at: float
    what: str
    message: str


class Handling(msgspec.Struct, eq=False):
    """One call of a handler for one message.

    Attributes:
        ended: When it returned or raised; None while it runs, and for ever where its process died.
        failed: Whether it raised.
    """

    message: Message
    group: str | None
    process: int
    began: float
    ended: float | None = None
    failed: bool = False


class Messages(Sequence[Message]):
    """Messages in their order. Equal to any collection of the same ones, in any order.

    It may name them as a test has them at hand: as messages, by id or key (`str`), by value (`bytes`), or by payload,
    decoded with the type of their topic.
    """

    def __init__(self, messages: Sequence[Message], decode: Callable[[Message], Any] | None = None) -> None:
        self._messages = list(messages)
        self._decode = decode

    def __getitem__(self, index: Any) -> Any:
        return self._messages[index]

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    def __repr__(self) -> str:
        return f"[{', '.join(map(_shown, self._messages))}]"

    __hash__ = None  # type: ignore[assignment] # as of every list

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return [message.id or "" for message in self._messages]

    @property
    def keys(self) -> list[str | None]:
        """Their keys as text."""
        return [None if m.key is None else m.key.decode("utf-8", "replace") for m in self._messages]

    @property
    def payloads(self) -> list[Any]:
        """What is in them."""
        return [
            message.value if self._decode is None else self._decode(message) for message in self._messages
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Collection) or isinstance(other, str | bytes):
            return NotImplemented
        theirs = list(other.keys() if isinstance(other, Mapping) else other)
        if not theirs or not self._messages:
            return len(theirs) == len(self._messages)
        return any(_same(theirs, ours) for ours in self._names(theirs[0]))

    def _names(self, like: object) -> list[list[Any]]:
        if isinstance(like, Message):
            return [self.ids]
        if isinstance(like, str):
            return [self.ids, self.keys]
        if isinstance(like, bytes):
            return [[message.value for message in self._messages]]
        return [self.payloads]


def _same(theirs: list[Any], ours: list[Any]) -> bool:
    left = [each.id if isinstance(each, Message) else each for each in theirs]
    for each in ours:
        if each not in left:
            return False
        left.remove(each)
    return not left


class History:
    """What happened so far; `World.history`.

    Attributes:
        rows: The trace.
        handlings: Every call of a handler, in order.
        reached: What `reached` was told.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.handlings: list[Handling] = []
        self.reached: set[str] = set()
        self.decoders: dict[str, Callable[[Message], Any]] = {}
        self._published: dict[str, dict[str | None, Message]] = defaultdict(dict)
        self._dead: dict[str | None, Message] = {}
        self._groups: dict[str, set[str]] = defaultdict(set)
        self._trace: list[str] = []

    @property
    def hash(self) -> str:
        """Of all that the broker has seen: the same seed has the same."""
        return hashlib.sha256("".join(self._trace).encode()).hexdigest()[:16]

    # --- what is noted

    def note(self, process: str, at: float, what: str, message: Message | None) -> None:
        """One more line."""
        shown = "" if message is None else _shown(message)
        if not what.startswith(UNSHOWN):
            self.rows.append(Row(process, at, what, shown))
        self._trace.append(f"{process}|{at:.6f}|{what}|{shown}\n")
        if message is not None and what == "published":
            self._published[message.topic].setdefault(message.id, message)
            if ORIGINAL_TOPIC in message.headers and ERROR_TYPE in message.headers:
                self._dead[message.id] = message

    def joined(self, topic: str, group: str) -> None:
        """A consumer of this group has this topic."""
        self._groups[topic].add(group)

    # --- what is asked

    def published(self, topic: Any) -> Messages:
        """What was published to a topic for good, each message once, in the order of the broker."""
        name = getattr(topic, "name", topic)
        if isinstance(topic, Topic):
            self.decoders.setdefault(name, contract_decoder(topic, object, "the history"))
        return Messages(list(self._published[name].values()), self.decoders.get(name))

    def handled(self, *, key: str | bytes | None = None, group: str | None = None) -> Messages:
        """What handlers returned from, in the order of their ends; of one key, or one group, where it is given."""
        wanted = key.encode() if isinstance(key, str) else key
        done = [
            each
            for each in self.handlings
            if each.ended is not None
            and not each.failed
            and (wanted is None or each.message.key == wanted)
            and (group is None or each.group == group)
        ]
        done.sort(key=lambda each: each.ended or 0.0)
        return Messages([each.message for each in done])

    def times_handled(self, id: str) -> int:  # noqa: A002 - the name that api has
        """How often a handler returned for the message with this id."""
        return sum(message.id == id for message in self.handled())

    @property
    def dead_letters(self) -> Messages:
        """What was given up."""
        return Messages(list(self._dead.values()))

    # --- ready checks: each raises AssertionError with a sentence

    def nothing_lost(self) -> None:
        """Every message was handled by each group that has a consumer, or is a dead letter."""
        done = {(each.group, each.message.id) for each in self.handlings if each.ended and not each.failed}
        for topic, groups in self._groups.items():
            for message in self._published[topic].values():
                for group in sorted(groups):
                    lost = (group, message.id) not in done and message.id not in self._dead
                    assert not lost, f"{group} has lost {_shown(message)}"

    def order_by_key(self) -> None:
        """The first deliveries of each key's messages, in each group, came in the order of their publishing."""
        last: dict[tuple[str | None, str, bytes], tuple[int, Message]] = {}
        seen: set[tuple[str | None, str | None]] = set()
        place = {
            (topic, id_): number
            for topic, messages in self._published.items()
            for number, id_ in enumerate(messages)
        }
        for each in self.handlings:
            message = each.message
            number = place.get((message.topic, message.id))
            if message.key is None or number is None or (each.group, message.id) in seen:
                continue
            seen.add((each.group, message.id))
            lane = (each.group, message.topic, message.key)
            before = last.get(lane)
            assert before is None or before[0] < number, (
                f"{each.group} got {_shown(message)} after {_shown(before[1]) if before else ''}"
            )
            last[lane] = (number, message)

    def at_most(self, times: int) -> None:
        """No group handled a message to its end more often than this."""
        counts = Counter(
            (each.group, each.message.id) for each in self.handlings if each.ended and not each.failed
        )
        for (group, id_), count in counts.items():
            assert count <= times, f"{group} handled {id_} {count} times"

    def effect_once(self, effects: Collection[Any]) -> None:
        """Of every message that was handled there is one effect: a list of ids, or a mapping of ids to how often."""
        counts = Counter(effects)
        for id_, count in counts.items():
            assert count == 1, f"{id_} took effect {count} times"
        for id_ in {message.id for message in self.handled()}:
            assert counts[id_] == 1, f"{id_} was handled and took no effect"


def _shown(message: Message) -> str:
    text = message.value[:40].decode("utf-8", "replace")
    key = "" if message.key is None else f" key {message.key.decode('utf-8', 'replace')}"
    return f"{message.topic}{key} {text}{'…' if len(message.value) > 40 else ''} ({(message.id or '')[-6:]})"
