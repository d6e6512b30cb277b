"""What in a Kafka cluster, a topic's settings or a group's state would lose messages or hold them up.

Nothing here changes anything at the broker. Settings are judged by functions of what was asked for, so that they can
be tried without a cluster that has them.
"""

import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)  # fmt: skip
from confluent_kafka.admin import (  # type: ignore[attr-defined] # no __all__
    AdminClient,
    ConfigResource,
    OffsetSpec,
)

from things_kit.brokers.kafka.options import Settings, error_of, possible_topic, translated, unknown
from things_kit.brokers.kafka.versions import Versions, ask
from things_kit.engine.diagnosis import Finding, Question
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.offsets import decode
from things_kit.engine.retry_topics import retry_topics

ANSWER: Final = 5.0
"""Seconds that the cluster may take to answer a question."""

REBALANCE: Final = 5.0
"""Seconds beyond which a rebalance takes long."""

LOOK: Final = 0.25
"""Seconds between two looks at a group that rebalances."""

REBALANCING: Final = frozenset({
    ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING,
})  # fmt: skip
MISSING: Final = frozenset({ConsumerGroupState.DEAD, ConsumerGroupState.UNKNOWN})

ADDRESS: Final = re.compile(r"(?:\w+://)?(\[[^]]+\]|[^:/]+)(?::(\d+))?")
"""An address as librdkafka takes it."""

_Spec: Any = OffsetSpec  # which has no annotations
_Type: Any = ConfigResource.Type


class Copies(msgspec.Struct, frozen=True):
    """Where a partition is: how many brokers are to have it, how many are up to date, and whether one leads."""

    number: int
    replicas: int
    in_sync: int
    led: bool = True


class Topic(msgspec.Struct, frozen=True):
    """A topic as it is: its partitions and its settings."""

    name: str
    partitions: Sequence[Copies]
    settings: Mapping[str, str]

    @property
    def subject(self) -> str:
        """What its findings are about."""
        return f"topic {self.name}"

    @property
    def policies(self) -> set[str]:
        """Of `delete` and `compact`, those by which old messages go."""
        return set(self.settings.get("cleanup.policy", "delete").replace(" ", "").split(","))

    @property
    def retention(self) -> float:
        """Seconds for which a message is kept at least."""
        milliseconds = int(self.settings.get("retention.ms", "-1"))
        return float("inf") if milliseconds < 0 or "delete" not in self.policies else milliseconds / 1000

    def number(self, setting: str, otherwise: int) -> int:
        """A setting that is a number."""
        return int(self.settings.get(setting, otherwise))


class Place(msgspec.Struct, frozen=True):
    """How far a group is in a partition: `committed` is None before its first commit."""

    partition: int
    start: int
    end: int
    committed: int | None = None
    metadata: str | None = None

    @property
    def waiting(self) -> int:
        """Offsets that are not finished and still there."""
        return self._unfinished(self.start, self.end)

    @property
    def lost(self) -> int:
        """Offsets that were not finished and are deleted."""
        return 0 if self.committed is None else self._unfinished(0, self.start)

    def _unfinished(self, start: int, end: int) -> int:
        begin = max(start, self.committed if self.committed is not None else self.start)
        finished = decode(begin if self.committed is None else self.committed, self.metadata)
        done = (max(0, min(stop, end) - max(first, begin)) for first, stop in finished)
        return max(0, end - begin - sum(done))


class Member(msgspec.Struct, frozen=True):
    """A member of a group, and which partitions of the topic it has; `idle` if it has none of any topic."""

    partitions: frozenset[int]
    idle: bool


class Group(msgspec.Struct, frozen=True):
    """A group's state at the broker."""

    name: str
    state: ConsumerGroupState
    members: Sequence[Member]

    @property
    def subject(self) -> str:
        """What its findings are about."""
        return f"group {self.name}"


def examine(admin: AdminClient, settings: Settings, question: Question) -> list[Finding]:
    """Everything there is to find. Blocks for some seconds, at most a few for each question to the cluster.

    Raises:
        KafkaException: The cluster is away.
    """
    return list(Examination(admin, settings, question).findings())


class Examination:
    """Asks the cluster, and has the answers judged."""

    def __init__(self, admin: AdminClient, settings: Settings, question: Question) -> None:
        self._admin: Any = admin
        self._settings = settings
        self._question = question

    def findings(self) -> Iterator[Finding]:
        """One after another, as they are found."""
        question = self._question
        yield from self._guarded("the cluster", self._cluster)
        if question.topic is not None:
            yield from self._guarded(f"the topic {question.topic!r}", self._topics)
        if question.group is not None:
            yield from self._guarded(f"the group {question.group!r}", self._groups)

    def _guarded(self, what: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
        """What this user may not ask is a finding; only that the cluster is away ends the examination."""
        try:
            yield from look()
        except KafkaException as error:
            trouble = translated(error_of(error), f"asking for {what}")
            if isinstance(trouble, ConnectionLost):
                raise
            remedy = "Ask as a user with ACLs to describe the cluster, the topic and the group."
            yield Finding("warning", what, f"Not everything could be looked at: {trouble}.", remedy)

    # --- the cluster

    def _cluster(self) -> Iterator[Finding]:
        # Not describe_cluster(): librdkafka (2.16) ends the process if the answer of a fenced broker has no brokers
        brokers = self._admin.list_topics(timeout=ANSWER).brokers
        yield from self._releases(len(brokers))
        if not brokers:
            what = "It has no broker that takes part: they are starting, or cut off from their controller."
            yield Finding("error", "cluster", what, "Look into the brokers' logs, and at the controller.")
            return
        config = self._config(_Type.BROKER, str(min(brokers)))
        if config.get("auto.create.topics.enable") == "true":
            what = "It creates topics that anybody asks for (auto.create.topics.enable), misspelt ones too."
            remedy = "Switch that off, and declare topics: `things-kit declare URL TOPIC`."
            yield Finding("warning", "cluster", what, remedy)
        else:
            yield Finding("ok", "cluster", "It creates topics only where that is asked for.")

    def _releases(self, nodes: int) -> Iterator[Finding]:
        config = self._settings.common()
        for host, port in _addresses(config):
            try:
                versions = ask(host, port, _tls(config))
            except (OSError, ValueError) as error:
                remedy = "See whether this broker runs; without it, clients begin at the others of the URL."
                what = f"It could not be asked for its version: {error}."
                yield Finding("warning", f"broker {host}:{port}", what, remedy)
            else:
                yield from judge_versions(f"broker {host}:{port}", versions, nodes, self._settings)

    # --- topics

    def _topics(self) -> Iterator[Finding]:
        question, name = self._question, self._question.topic or ""
        topic = self._topic(name)
        if topic is None:
            yield missing_topic(name, created=self._settings.url.engine.declare)
            return
        yield from judge_topic(topic, question, self._settings)
        if question.group is not None:
            for retry in filter(None, map(self._topic, retry_topics(name, question.group))):
                yield from judge_retention(retry, question)
        if question.dead_letter is not None:
            yield from judge_dead_letter(question.dead_letter, self._topic(question.dead_letter), topic)

    def _topic(self, name: str) -> Topic | None:
        partitions = self._partitions(name)
        if not partitions:
            return None
        copies = [
            Copies(each.id, len(each.replicas), len(each.isr), each.leader is not None) for each in partitions
        ]
        return Topic(name, copies, self._config(_Type.TOPIC, name))

    def _partitions(self, topic: str) -> list[Any]:
        if not possible_topic(topic):
            return []
        try:
            asked = self._admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER)
            return list(_result(asked[topic]).partitions)
        except KafkaException as error:
            if unknown(error_of(error)):
                return []
            raise

    def _config(self, kind: Any, name: str) -> dict[str, str]:
        asked = self._admin.describe_configs([ConfigResource(kind, name)], request_timeout=ANSWER)
        (answer,) = asked.values()
        return {entry.name: entry.value for entry in _result(answer).values() if entry.value is not None}

    # --- groups

    def _groups(self) -> Iterator[Finding]:
        name, topic = self._question.group or "", self._question.topic or ""
        if self._settings.options.group_type == "share":
            what = "It is a share group, of which the client can ask neither members nor lag."
            remedy = "Look with Kafka's own `kafka-share-groups.sh --describe`."
            yield Finding("ok", f"group {name}", what, remedy)
            return
        group, rebalanced = self._settled_group(name, topic)
        if rebalanced is not None:
            yield judge_rebalance(group, rebalanced)
        partitions = [each.id for each in self._partitions(topic)]
        places = self._places(name, topic, partitions) if partitions else []
        yield from judge_places(group, topic, places)
        yield from judge_members(group, topic, places)

    def _settled_group(self, name: str, topic: str) -> tuple[Group, float | None]:
        """The group, and for how long it was seen to rebalance if that took longer than it should."""
        began = time.monotonic()
        while True:
            group = self._group(name, topic)
            if group.state not in REBALANCING:
                return group, None
            if (lasted := time.monotonic() - began) > REBALANCE:
                return group, lasted
            time.sleep(LOOK)

    def _group(self, name: str, topic: str) -> Group:
        try:
            asked = self._admin.describe_consumer_groups([name], request_timeout=ANSWER)
            found = _result(asked[name])
        except KafkaException as error:
            if error_of(error).code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise
            return Group(name, ConsumerGroupState.DEAD, [])
        members = []
        for member in found.members:
            assigned = member.assignment.topic_partitions if member.assignment else []
            ours = frozenset(each.partition for each in assigned if each.topic == topic)
            members.append(Member(ours, not assigned))
        return Group(name, found.state, members)

    def _places(self, group: str, topic: str, numbers: Sequence[int]) -> list[Place]:
        partitions = [TopicPartition(topic, number) for number in numbers]
        committed = self._committed(group, partitions)
        starts = self._offsets(partitions, _Spec.earliest())
        ends = self._offsets(partitions, _Spec.latest())
        return [Place(number, starts[number], ends[number], *committed.get(number, ())) for number in numbers]

    def _committed(self, group: str, partitions: list[TopicPartition]) -> dict[int, tuple[int, str | None]]:
        asked = ConsumerGroupTopicPartitions(group, partitions)
        try:
            answer = self._admin.list_consumer_group_offsets([asked], request_timeout=ANSWER)[group]
            found = _result(answer).topic_partitions
        except KafkaException as error:
            if error_of(error).code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise
            return {}
        return {
            each.partition: (each.offset, each.metadata) for each in found if each.offset != OFFSET_INVALID
        }

    def _offsets(self, partitions: list[TopicPartition], spec: Any) -> dict[int, int]:
        asked = self._admin.list_offsets(dict.fromkeys(partitions, spec), request_timeout=ANSWER)
        return {each.partition: _result(future).offset for each, future in asked.items()}


# --- judging what was found


def judge_versions(subject: str, versions: Versions, nodes: int, settings: Settings) -> Iterator[Finding]:
    """Which Kafka it is, and whether it has what the URL asks for."""
    options, release = settings.options, versions.release
    if release is None:
        what = "Its release cannot be told: it is older than 3.3, or no Apache Kafka."
        yield Finding("ok", subject, what)
        return
    new, share = versions.active.get("group.version", 0) > 0, versions.active.get("share.version", 0) > 0
    offers = f"group_protocol=consumer is {_offered(new)}, group_type=share {_offered(share)}"
    yield Finding("ok", subject, f"Apache Kafka {release}, in a cluster of {nodes}: {offers}.")
    if options.group_type == "share" and not share:
        remedy = "Switch it on with `kafka-features.sh upgrade --feature share.version=1` (Kafka 4.2)."
        yield Finding("error", subject, "The URL asks for share groups, which are not switched on.", remedy)
    elif options.group_protocol == "consumer" and not new:
        what = "The URL asks for the new group protocol, which is not switched on."
        remedy = "Leave out `group_protocol=consumer`, or upgrade the feature group.version (Kafka 4.0)."
        yield Finding("error", subject, what, remedy)


def _offered(offered: bool) -> str:
    return "offered" if offered else "not offered"


def missing_topic(name: str, *, created: bool) -> Finding:
    """A topic that is not there, which publishers and consumers may create."""
    if not possible_topic(name):
        remedy = "A name is up to 249 letters, digits, '.', '_' and '-'."
        return Finding("error", f"topic {name}", "Kafka cannot have a topic of that name.", remedy)
    remedy = f"Check the spelling, or create it: `things-kit declare URL {name}`."
    if created:
        what = "There is no such topic; who first publishes or consumes creates it."
        return Finding("warning", f"topic {name}", what, remedy)
    what = "There is no such topic, and the URL forbids creating it (declare=false)."
    return Finding("error", f"topic {name}", what, remedy)


def judge_topic(topic: Topic, question: Question, settings: Settings) -> Iterator[Finding]:
    """A topic that is consumed."""
    judged = chain(
        judge_copies(topic, settings.options.acks),
        judge_retention(topic, question),
        judge_compaction(topic),
        judge_size(topic, settings.options.max_message_bytes),
    )
    findings = list(judged)
    count = len(topic.partitions)
    if question.concurrency is not None and count < question.concurrency:
        what = (
            f"It has {count} partitions for a concurrency of {question.concurrency}: more than {count} "
            "processes get nothing to do, and one that handles by partition runs no more than those at once."
        )
        remedy = (
            "Handle more at once in each process, or add partitions while nothing waits: "
            "keys move to other partitions, so their order holds only from there on."
        )
        findings.append(Finding("warning", topic.subject, what, remedy))
    yield from findings
    if not any(finding.level != "ok" for finding in findings):
        yield Finding("ok", topic.subject, f"Its {count} partitions have leaders, and copies as is set.")


def judge_copies(topic: Topic, acks: str) -> Iterator[Finding]:
    """Whether it takes messages, and whether the loss of a broker loses some."""
    subject, copies = topic.subject, topic.partitions
    replicas = min(each.replicas for each in copies)
    needed = topic.number("min.insync.replicas", 1)
    if leaderless := [each.number for each in copies if not each.led]:
        what = f"{_partitions(leaderless)} has no leader: nothing can be published to it, nor read."
        yield Finding("error", subject, what, "Bring the brokers back that have its copies.")
    if needed > replicas:
        what = f"min.insync.replicas is {needed} with {replicas} copies: no message with acks=all is taken."
        remedy = f"Lower min.insync.replicas to {max(1, replicas - 1)}, or add copies."
        yield Finding("error", subject, what, remedy)
    elif behind := [each.number for each in copies if each.led and each.in_sync < needed]:
        what = f"{_partitions(behind)} has fewer copies in sync than min.insync.replicas, {needed}: no message is taken."
        yield Finding("error", subject, what, "Bring the brokers back that have the other copies.")
    elif late := [each.number for each in copies if each.in_sync < each.replicas]:
        what = f"{_partitions(late)} has copies that are not in sync."
        yield Finding("warning", subject, what, "See which broker is down or slow.")
    if replicas == 1:
        remedy = "Use a replication factor of 3 where that matters (`?replication=3` for new topics)."
        what = (
            "There is one copy of each message: it is lost with its broker's disk, and away with its broker."
        )
        yield Finding("warning", subject, what, remedy)
    elif needed == replicas:
        what = f"min.insync.replicas is {needed} with {replicas} copies: one broker down, and no message is taken."
        yield Finding("warning", subject, what, f"Lower min.insync.replicas to {needed - 1}, or add a copy.")
    elif needed == 1 and acks == "all":
        what = "min.insync.replicas is 1: a message may be confirmed while only one broker has it."
        yield Finding("warning", subject, what, "Set min.insync.replicas to 2.")


def judge_retention(topic: Topic, question: Question) -> Iterator[Finding]:
    """Whether messages are deleted while they may still be tried again."""
    kept, span = topic.retention, question.retry_span
    if span is not None and kept < span:
        what = f"It keeps messages for {_duration(kept)}, but they may be retried for {_duration(span)}: some would be lost."
        remedy = f"Set retention.ms to more than {int(1000 * span)}, or retry for less long."
        yield Finding("error", topic.subject, what, remedy)
    else:
        yield Finding("ok", topic.subject, f"It keeps messages for {_duration(kept)}.")
    size = topic.number("retention.bytes", -1)
    if size >= 0 and "delete" in topic.policies:
        what = f"It keeps {size:,} bytes of each partition at most, whatever was not handled yet."
        remedy = "Set retention.bytes to -1, or be sure that consumers are never so far behind."
        yield Finding("warning", topic.subject, what, remedy)


def judge_compaction(topic: Topic) -> Iterator[Finding]:
    """Whether messages disappear because a later one has their key."""
    if "compact" in topic.policies:
        what = (
            "It is compacted: of each key only the last message is sure to be handled, "
            "and messages without a key are refused."
        )
        remedy = "Set cleanup.policy to delete, unless only the latest of each key matters."
        yield Finding("warning", topic.subject, what, remedy)


def judge_size(topic: Topic, promised: int) -> Iterator[Finding]:
    """Whether the broker takes what the URL says it does."""
    taken = topic.number("max.message.bytes", promised)
    if taken < promised:
        what = f"It takes batches of {taken:,} bytes, less than max_message_bytes, {promised:,}."
        remedy = f"Raise the topic's max.message.bytes, or lower the URL's option to less than {taken}."
        yield Finding("warning", topic.subject, what, remedy)


def judge_dead_letter(name: str, dead: Topic | None, source: Topic) -> Iterator[Finding]:
    """Whether the dead letter takes and keeps what the source has."""
    if dead is None:
        what = "It does not exist; a consumer creates it when it starts, unless it has declare=false or another name."
        remedy = f"Create it: `things-kit declare URL {name}`."
        yield Finding("warning", f"dead letter {name}", what, remedy)
        return
    subject = f"dead letter {name}"
    if dead.retention < source.retention:
        kept = f"{_duration(dead.retention)}, shorter than {source.name} ({_duration(source.retention)})"
        remedy = f"Set its retention.ms to {source.settings.get('retention.ms', '-1')} or more, or to -1."
        yield Finding("warning", subject, f"It keeps dead letters for {kept}.", remedy)
    if dead.number("max.message.bytes", 0) < source.number("max.message.bytes", 0):
        what = f"It takes smaller messages than {source.name}: large ones cannot be put there and hold up their key."
        yield Finding("warning", subject, what, "Raise its max.message.bytes.")
    for finding in judge_compaction(dead):
        yield Finding("warning", subject, finding.what, "Set its cleanup.policy to delete.")
    if min(each.replicas for each in dead.partitions) < min(each.replicas for each in source.partitions):
        what = f"It has fewer copies than {source.name}."
        yield Finding("warning", subject, what, "Give it as many.")


def judge_places(group: Group, topic: str, places: Sequence[Place]) -> Iterator[Finding]:
    """Whether what the group has yet to handle is still there."""
    if lost := sum(place.lost for place in places):
        numbers = [place.partition for place in places if place.lost]
        what = f"Up to {lost:,} messages of {topic} were deleted before the group handled them ({_partitions(numbers)})."
        remedy = (
            "Raise retention.ms, or run consumers more often; who has them still must publish them again."
        )
        yield Finding("error", group.subject, what, remedy)
    beyond = [p.partition for p in places if p.committed is not None and p.committed > p.end]
    if beyond:
        what = f"Its committed offset lies beyond the end of {topic} ({_partitions(beyond)}): the topic was made anew, or has lost messages."
        remedy = "Its consumers will begin at the earliest message; to choose another place, use `kafka-consumer-groups.sh --reset-offsets`."
        yield Finding("warning", group.subject, what, remedy)


def judge_members(group: Group, topic: str, places: Sequence[Place]) -> Iterator[Finding]:
    """Whether somebody receives what waits."""
    waiting = sum(place.waiting for place in places)
    if group.state in MISSING:
        where = f" It will begin at the earliest of the {waiting:,} messages in {topic}." if waiting else ""
        remedy = "Check the spelling, and that its consumers were started; offsets of a group without members are forgotten after offsets.retention.minutes."
        yield Finding("warning", group.subject, f"There is no such group.{where}", remedy)
    elif not group.members and waiting:
        what = f"It is stuck: {waiting:,} messages of {topic} wait, and it has no member."
        yield Finding("error", group.subject, what, "Start its consumers.")
    elif not group.members:
        yield Finding("ok", group.subject, "It has no member, and nothing waits for it.")
    elif group.state not in REBALANCING:
        yield from _judge_assignment(group, topic, places)


def _judge_assignment(group: Group, topic: str, places: Sequence[Place]) -> Iterator[Finding]:
    taken = frozenset(chain.from_iterable(member.partitions for member in group.members))
    idle = sum(member.idle for member in group.members)
    if stuck := [place.partition for place in places if place.waiting and place.partition not in taken]:
        what = f"It is stuck: none of its {len(group.members)} members receives {_partitions(stuck)} of {topic}, where messages wait."
        remedy = "Start a consumer of this topic in the group, and give all its consumers the same options."
        yield Finding("error", group.subject, what, remedy)
    if idle:
        what = f"{idle} of its {len(group.members)} members have no partition, and nothing to do."
        yield Finding("warning", group.subject, what, "Stop them, or add partitions.")
    elif not stuck:
        yield Finding(
            "ok", group.subject, f"Its members are {len(group.members)}, and what waits is received."
        )


def judge_rebalance(group: Group, lasted: float) -> Finding:
    """A group that does not come to rest."""
    what = (
        f"It has been rebalancing for more than {lasted:.0f} s: a member does not let go of its partitions."
    )
    remedy = "Look for a member that hangs or keeps restarting; one that is gone is struck off after session_timeout."
    return Finding("warning", group.subject, what, remedy)


# --- small things


def _partitions(numbers: Sequence[int]) -> str:
    named = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"partition {named}" if len(numbers) == 1 else f"each of the partitions {named}"


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "ever"
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def _addresses(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for address in str(config["bootstrap.servers"]).split(","):
        found = ADDRESS.fullmatch(address.strip())
        if found:
            yield found[1].strip("[]"), int(found[2] or 9092)


def _tls(config: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What librdkafka is told of TLS, as Python has it."""
    if "ssl" not in str(config.get("security.protocol", "")).lower():
        return None
    context = ssl.create_default_context(cafile=config.get("ssl.ca.location"))
    if config.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    certificate = config.get("ssl.certificate.location")
    if certificate is not None:
        context.load_cert_chain(
            certificate, config.get("ssl.key.location"), config.get("ssl.key.password") or ""
        )
    return context


def _result(future: Any) -> Any:
    return future.result(2 * ANSWER)
