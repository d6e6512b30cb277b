"""What in a Kafka cluster, a topic's settings or a group's state would lose messages or hold them up.

Nothing here changes anything at the broker. Settings are judged by functions of what was asked for, so that they can
be tried without a cluster that has them.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

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

from things_kit.brokers.kafka.doctor.cluster import addresses, judge_versions, tls
from things_kit.brokers.kafka.doctor.groups import (
    REBALANCING,
    Group,
    Member,
    Place,
    judge_members,
    judge_places,
    judge_rebalance,
)
from things_kit.brokers.kafka.doctor.topics import (
    Copies,
    Topic,
    judge_dead_letter,
    judge_retention,
    judge_topic,
    missing_topic,
)
from things_kit.brokers.kafka.errors import error_of, translated, unknown
from things_kit.brokers.kafka.options import Settings, possible_topic
from things_kit.brokers.kafka.versions import ask
from things_kit.engine.diagnosis import Finding, Question
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.retry_topics import retry_topics

ANSWER: Final = 5.0
"""Seconds that the cluster may take to answer a question."""

REBALANCE: Final = 5.0
"""Seconds beyond which a rebalance takes long."""

LOOK: Final = 0.25
"""Seconds between two looks at a group that rebalances."""


_Spec: Any = OffsetSpec  # which has no annotations
_Type: Any = ConfigResource.Type


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
        for host, port in addresses(config):
            try:
                versions = ask(host, port, tls(config))
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


def _result(future: Any) -> Any:
    return future.result(2 * ANSWER)
