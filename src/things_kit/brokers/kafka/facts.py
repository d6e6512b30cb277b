"""How a Kafka cluster, its topics and groups are. Nothing here changes anything at the broker."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined] # no __all__

from things_kit.brokers.kafka.admin import Admin
from things_kit.brokers.kafka.members import REBALANCING, Group, Member, Place, add_group
from things_kit.brokers.kafka.options import Settings, possible_topic
from things_kit.engine.facts import Facts, Question, Retention, TopicFacts
from things_kit.engine.phrases import some
from things_kit.engine.retry_topics import retry_topics

ANSWER: Final = 5.0
"""Seconds that a broker of the URL may take to be reached."""

REBALANCE: Final = 5.0
"""Seconds beyond which a rebalance takes long."""

LOOK: Final = 0.25
"""Seconds between two looks at a group that rebalances."""

PROTOCOLS: Final = "group.coordinator.rebalance.protocols"
"""The broker's setting that says by which protocols groups may be kept; older ones than Kafka 3.7 have none."""

_Type: Any = ConfigResource.Type


async def facts_of(admin: Admin, settings: Settings, question: Question) -> Facts:
    """Everything there is to tell. Raises ConnectionLost."""
    look = Look(admin, settings, question)
    await look.at("the cluster", look.cluster)
    if question.topic is not None:
        await look.at(f"the topic {question.topic!r}", look.topics)
    if question.group is not None:
        await look.at(f"the group {question.group!r}", look.group)
    return look.facts


class Copies(msgspec.Struct, frozen=True):
    """Where a partition is: how many brokers are to have it, how many are up to date, and whether one leads."""

    number: int
    replicas: int
    in_sync: int
    led: bool = True


class Look:
    """Asks the cluster."""

    def __init__(self, admin: Admin, settings: Settings, question: Question) -> None:
        self.facts = Facts()
        self._admin = admin
        self._settings = settings
        self._question = question

    async def at(self, what: str, look: Callable[[], Awaitable[None]]) -> None:
        """A part; what this user may not ask for ends only this part."""
        with self.facts.looking(what):
            await look()

    # --- the cluster

    async def cluster(self) -> None:
        """Its brokers, and whether it creates topics that nobody declared."""
        await self._addresses()
        brokers = await self._admin.brokers()
        if not brokers:
            what = "It has no broker that takes part: they are starting, or cut off from their controller."
            remedy = "Look into the brokers' logs, and at the controller."
            self.facts.find("error", "cluster", what, remedy)
        else:
            config = await self._admin.settings(_Type.BROKER, str(brokers[0]))
            add_cluster(self.facts, len(brokers), config, self._settings)

    async def _addresses(self) -> None:
        """One of several that is down is not missed, until the others are."""
        addresses = self._settings.addresses
        for each in addresses if len(addresses) > 1 else ():
            try:
                async with asyncio.timeout(ANSWER):
                    _, writer = await asyncio.open_connection(each.host, each.port)
            except OSError as error:
                what = f"It could not be reached: {error or 'no answer'}."
                remedy = "See whether this broker runs; without it, clients begin at the others of the URL."
                self.facts.find("warning", f"broker {each}", what, remedy)
            else:
                writer.close()

    # --- topics

    async def topics(self) -> None:
        """The topic, its dead letter, and those where its delayed retries wait."""
        question = self._question
        for name, _ in question.wanted:
            await self._topic(name)
        if question.group is None or question.topic is None:
            return
        for name in retry_topics(question.topic, question.group):
            if await self._admin.topic(name) is not None:
                retention = retention_of(await self._admin.settings(_Type.TOPIC, name))
                self.facts.topics.append(TopicFacts(name=name, retention=retention))

    async def _topic(self, name: str) -> None:
        if not possible_topic(name):
            impossible = (
                "Kafka cannot have a topic of that name: it is up to 249 letters, digits, '.', '_' and '-'."
            )
            self.facts.topics.append(TopicFacts(name=name, there=False, impossible=impossible))
        elif (found := await self._admin.topic(name)) is not None:
            copies = [
                Copies(each.id, len(each.replicas), len(each.isr), each.leader is not None)
                for each in found.partitions
            ]
            config = await self._admin.settings(_Type.TOPIC, name)
            add_topic(self.facts, name, copies, config, self._settings, self._question)
        else:
            self.facts.topics.append(TopicFacts(name=name, there=False))

    # --- groups

    async def group(self) -> None:
        """The group that was asked about, as soon as it is settled."""
        name, topic = self._question.group or "", self._question.topic or ""
        if self._settings.options.group_type == "share":
            what = "It is a share group, of which the client can ask neither members nor lag."
            remedy = "Look with Kafka's own `kafka-share-groups.sh --describe`."
            self.facts.find("ok", f"group {name}", what, remedy)
            return
        group, rebalanced = await self._settled_group(name, topic)
        if rebalanced is not None:
            what = f"It has been rebalancing for more than {rebalanced:.0f} s: a member does not let go of its partitions."
            remedy = "Look for a member that hangs or keeps restarting; one that is gone is struck off after session_timeout."
            self.facts.find("warning", f"group {name}", what, remedy)
        add_group(self.facts, group, topic, await self._places(name, topic))

    async def _settled_group(self, name: str, topic: str) -> tuple[Group, float | None]:
        """The group, and for how long it was seen to rebalance if that took longer than it should."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            group = await self._group(name, topic)
            if group.state not in REBALANCING:
                return group, None
            if (lasted := loop.time() - began) > REBALANCE:
                return group, lasted
            await asyncio.sleep(LOOK)

    async def _group(self, name: str, topic: str) -> Group:
        found = await self._admin.group(name)
        if found is None:
            return Group(name, ConsumerGroupState.DEAD, [])
        members = []
        for member in found.members:
            assigned = member.assignment.topic_partitions if member.assignment else []
            ours = frozenset(each.partition for each in assigned if each.topic == topic)
            members.append(Member(ours, not assigned))
        return Group(name, found.state, members)

    async def _places(self, group: str, topic: str) -> list[Place]:
        found = await self._admin.topic(topic) if possible_topic(topic) else None
        if found is None:
            return []
        numbers = [each.id for each in found.partitions]
        committed = {
            number: (each.offset, each.metadata)
            for number, each in (await self._admin.committed(group, topic, numbers)).items()
        }
        starts = await self._admin.starts(topic, numbers)
        ends = await self._admin.ends(topic, numbers)
        return [Place(number, starts[number], ends[number], *committed.get(number, ())) for number in numbers]


def add_cluster(facts: Facts, nodes: int, config: Mapping[str, str], settings: Settings) -> None:
    """How many brokers it has, whether it has the protocol that the URL asks for, and who may create topics."""
    facts.find("ok", "cluster", f"It has {nodes} broker{'s' if nodes > 1 else ''}.")
    protocols = config.get(PROTOCOLS, "").split(",")
    if settings.options.group_protocol == "consumer" and "consumer" not in map(str.strip, protocols):
        what = "The URL asks for the new group protocol, which is not switched on."
        remedy = f"Leave out `group_protocol=consumer`, or add it to {PROTOCOLS} (Kafka 4.0)."
        facts.find("error", "cluster", what, remedy)
    if config.get("auto.create.topics.enable") == "true":
        what = "It creates topics that anybody asks for (auto.create.topics.enable), misspelt ones too."
        remedy = "Switch that off, and declare topics: `things-kit declare URL TOPIC`."
        facts.find("warning", "cluster", what, remedy)
    else:
        facts.find("ok", "cluster", "It creates topics only where that is asked for.")


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
