"""How a Kafka cluster, its topics and groups are. Nothing here changes anything at the broker."""

import math
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
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

from things_kit.brokers.kafka.errors import ERRORS, error_of, unknown
from things_kit.brokers.kafka.members import REBALANCING, Group, Member, Place, add_group
from things_kit.brokers.kafka.options import Settings, possible_topic
from things_kit.brokers.kafka.versions import Versions, ask
from things_kit.engine.facts import Facts, Question, Retention, TopicFacts
from things_kit.engine.phrases import some
from things_kit.engine.retry_topics import retry_topics

ANSWER: Final = 5.0
"""Seconds that the cluster may take to answer a question."""

REBALANCE: Final = 5.0
"""Seconds beyond which a rebalance takes long."""

LOOK: Final = 0.25
"""Seconds between two looks at a group that rebalances."""

_Spec: Any = OffsetSpec  # which has no annotations
_Type: Any = ConfigResource.Type


def facts_of(admin: AdminClient, settings: Settings, question: Question) -> Facts:
    """Everything there is to tell. Blocks for some seconds, at most a few for each question to the cluster.

    Raises:
        ConnectionLost: The cluster is away.
    """
    look = Look(admin, settings, question)
    look.at("the cluster", look.cluster)
    if question.topic is not None:
        look.at(f"the topic {question.topic!r}", look.topics)
    if question.group is not None:
        look.at(f"the group {question.group!r}", look.group)
    return look.facts


class Copies(msgspec.Struct, frozen=True):
    """Where a partition is: how many brokers are to have it, how many are up to date, and whether one leads."""

    number: int
    replicas: int
    in_sync: int
    led: bool = True


class Look:
    """Asks the cluster."""

    def __init__(self, admin: AdminClient, settings: Settings, question: Question) -> None:
        self.facts = Facts()
        self._admin: Any = admin
        self._settings = settings
        self._question = question

    def at(self, what: str, look: Callable[[], None]) -> None:
        """A part; what this user may not ask for ends only this part."""
        with self.facts.looking(what), ERRORS.during(f"asking for {what}"):
            look()

    # --- the cluster

    def cluster(self) -> None:
        """Its brokers, and whether it creates topics that nobody declared."""
        facts = self.facts
        # Not describe_cluster(): librdkafka (2.16) ends the process if the answer of a fenced broker has no brokers
        brokers = self._admin.list_topics(timeout=ANSWER).brokers
        self._releases(len(brokers))
        if not brokers:
            what = "It has no broker that takes part: they are starting, or cut off from their controller."
            facts.find("error", "cluster", what, "Look into the brokers' logs, and at the controller.")
            return
        config = self._config(_Type.BROKER, str(min(brokers)))
        if config.get("auto.create.topics.enable") == "true":
            what = "It creates topics that anybody asks for (auto.create.topics.enable), misspelt ones too."
            remedy = "Switch that off, and declare topics: `things-kit declare URL TOPIC`."
            facts.find("warning", "cluster", what, remedy)
        else:
            facts.find("ok", "cluster", "It creates topics only where that is asked for.")

    def _releases(self, nodes: int) -> None:
        config = self._settings.common()
        for each in self._settings.addresses:
            subject = f"broker {each}"
            try:
                versions = ask(each.host, each.port, _tls(config))
            except (OSError, ValueError) as error:
                remedy = "See whether this broker runs; without it, clients begin at the others of the URL."
                what = f"It could not be asked for its version: {error}."
                self.facts.find("warning", subject, what, remedy)
            else:
                add_versions(self.facts, subject, versions, nodes, self._settings)

    # --- topics

    def topics(self) -> None:
        """The topic, its dead letter, and those where its delayed retries wait."""
        question = self._question
        for name, _ in question.wanted:
            self._topic(name)
        if question.group is None or question.topic is None:
            return
        for name in retry_topics(question.topic, question.group):
            if self._partitions(name):
                retention = retention_of(self._config(_Type.TOPIC, name))
                self.facts.topics.append(TopicFacts(name=name, retention=retention))

    def _topic(self, name: str) -> None:
        if not possible_topic(name):
            impossible = (
                "Kafka cannot have a topic of that name: it is up to 249 letters, digits, '.', '_' and '-'."
            )
            self.facts.topics.append(TopicFacts(name=name, there=False, impossible=impossible))
        elif partitions := self._partitions(name):
            copies = [
                Copies(each.id, len(each.replicas), len(each.isr), each.leader is not None)
                for each in partitions
            ]
            config = self._config(_Type.TOPIC, name)
            add_topic(self.facts, name, copies, config, self._settings, self._question)
        else:
            self.facts.topics.append(TopicFacts(name=name, there=False))

    def _partitions(self, topic: str) -> list[Any]:
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

    def group(self) -> None:
        """The group that was asked about, as soon as it is settled."""
        name, topic = self._question.group or "", self._question.topic or ""
        if self._settings.options.group_type == "share":
            what = "It is a share group, of which the client can ask neither members nor lag."
            remedy = "Look with Kafka's own `kafka-share-groups.sh --describe`."
            self.facts.find("ok", f"group {name}", what, remedy)
            return
        group, rebalanced = self._settled_group(name, topic)
        if rebalanced is not None:
            what = f"It has been rebalancing for more than {rebalanced:.0f} s: a member does not let go of its partitions."
            remedy = "Look for a member that hangs or keeps restarting; one that is gone is struck off after session_timeout."
            self.facts.find("warning", f"group {name}", what, remedy)
        there = possible_topic(topic) and self._partitions(topic)
        places = self._places(name, topic, [each.id for each in there]) if there else []
        add_group(self.facts, group, topic, places)

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


def _result(future: Any) -> Any:
    return future.result(2 * ANSWER)


def _tls(config: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What librdkafka is told of TLS, as Python has it."""
    if "ssl" not in str(config.get("security.protocol", "")).lower():
        return None
    context = ssl.create_default_context(cafile=config.get("ssl.ca.location"))
    if config.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    certificate = config.get("ssl.certificate.location")
    if certificate is not None:
        password = config.get("ssl.key.password") or ""
        context.load_cert_chain(certificate, config.get("ssl.key.location"), password)
    return context


def add_versions(facts: Facts, subject: str, versions: Versions, nodes: int, settings: Settings) -> None:
    """Which Kafka it is, and whether it has what the URL asks for."""
    options, release = settings.options, versions.release
    if release is None:
        facts.find("ok", subject, "Its release cannot be told: it is older than 3.3, or no Apache Kafka.")
        return
    new, share = versions.active.get("group.version", 0) > 0, versions.active.get("share.version", 0) > 0
    offers = f"group_protocol=consumer is {_offered(new)}, group_type=share {_offered(share)}"
    facts.find("ok", subject, f"Apache Kafka {release}, in a cluster of {nodes}: {offers}.")
    if options.group_type == "share" and not share:
        remedy = "Switch it on with `kafka-features.sh upgrade --feature share.version=1` (Kafka 4.2)."
        facts.find("error", subject, "The URL asks for share groups, which are not switched on.", remedy)
    elif options.group_protocol == "consumer" and not new:
        what = "The URL asks for the new group protocol, which is not switched on."
        remedy = "Leave out `group_protocol=consumer`, or upgrade the feature group.version (Kafka 4.0)."
        facts.find("error", subject, what, remedy)


def _offered(offered: bool) -> str:
    return "offered" if offered else "not offered"


# --- topics, by their settings


def add_topic(
    facts: Facts,
    name: str,
    copies: Sequence[Copies],
    config: Mapping[str, str],
    settings: Settings,
    question: Question,
) -> None:
    """A topic that is consumed, or its dead letter."""
    asked = name == question.topic
    replicas = min(each.replicas for each in copies)
    facts.topics.append(
        TopicFacts(
            name=name,
            retention=retention_of(config),
            copies=replicas,
            largest=int(config["max.message.bytes"]) if "max.message.bytes" in config else None,
            largest_setting="max.message.bytes",
        )
    )
    subject = f"topic {name}" if asked else f"dead letter {name}"
    if "compact" in _policies(config):
        what = (
            "It is compacted: of each key only the last message is sure to be handled, "
            "and messages without a key are refused."
        )
        remedy = "Set cleanup.policy to delete, unless only the latest of each key matters."
        facts.find("warning", subject, what, remedy)
    if asked:
        _copies(facts, subject, copies, int(config.get("min.insync.replicas", 1)), settings.options.acks)
        _concurrency(facts, subject, len(copies), question.concurrency)


def _policies(config: Mapping[str, str]) -> set[str]:
    """Of `delete` and `compact`, those by which old messages go."""
    return set(config.get("cleanup.policy", "delete").replace(" ", "").split(","))


def retention_of(config: Mapping[str, str]) -> Retention:
    """For how long a topic keeps its messages, by its settings."""
    deletes = "delete" in _policies(config)
    kept, size = int(config.get("retention.ms", -1)), int(config.get("retention.bytes", -1))
    return Retention(
        kept / 1000 if deletes and kept >= 0 else math.inf,
        "retention.ms",
        1000,
        bound=f"{size:,} bytes of each partition (retention.bytes)" if deletes and size >= 0 else "",
    )


def _concurrency(facts: Facts, subject: str, count: int, concurrency: int | None) -> None:
    if concurrency is None or count >= concurrency:
        return
    what = (
        f"It has {count} partitions for a concurrency of {concurrency}: more than {count} "
        "processes get nothing to do, and one that handles by partition runs no more than those at once."
    )
    remedy = (
        "Handle more at once in each process, or add partitions while nothing waits: "
        "keys move to other partitions, so their order holds only from there on."
    )
    facts.find("warning", subject, what, remedy)


def _copies(facts: Facts, subject: str, copies: Sequence[Copies], needed: int, acks: str) -> None:
    """Whether it takes messages, and whether the loss of a broker loses some."""
    replicas = min(each.replicas for each in copies)
    if leaderless := [each.number for each in copies if not each.led]:
        what = f"Partition {some(leaderless)} has no leader: nothing can be published to it, nor read."
        facts.find("error", subject, what, "Bring the brokers back that have its copies.")
    if needed > replicas:
        what = f"min.insync.replicas is {needed} with {replicas} copies: no message with acks=all is taken."
        remedy = f"Lower min.insync.replicas to {max(1, replicas - 1)}, or add copies."
        facts.find("error", subject, what, remedy)
    elif behind := [each.number for each in copies if each.led and each.in_sync < needed]:
        what = f"Partition {some(behind)} has fewer copies in sync than min.insync.replicas, {needed}: no message is taken."
        facts.find("error", subject, what, "Bring the brokers back that have the other copies.")
    elif late := [each.number for each in copies if each.in_sync < each.replicas]:
        what = f"Partition {some(late)} has copies that are not in sync."
        facts.find("warning", subject, what, "See which broker is down or slow.")
    if needed == replicas > 1:
        what = f"min.insync.replicas is {needed} with {replicas} copies: one broker down, and no message is taken."
        remedy = f"Lower min.insync.replicas to {needed - 1}, or add a copy."
        facts.find("warning", subject, what, remedy)
    elif needed == 1 < replicas and acks == "all":
        what = "min.insync.replicas is 1: a message may be confirmed while only one broker has it."
        facts.find("warning", subject, what, "Set min.insync.replicas to 2.")
