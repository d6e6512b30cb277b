"""How a Kafka cluster, its topics and groups are. Nothing here changes anything at the broker."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined] # no __all__

from things_kit.brokers.kafka.admin import Admin, Place, assigned
from things_kit.brokers.kafka.options import Settings, possible_topic
from things_kit.engine.facts import Blocked, Facts, GroupFacts, Question, Retention, TopicFacts
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

REBALANCING: Final = frozenset({
    ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING,
})  # fmt: skip
MISSING: Final = frozenset({ConsumerGroupState.DEAD, ConsumerGroupState.UNKNOWN})

_Type: Any = ConfigResource.Type


class Copies(msgspec.Struct, frozen=True):
    """Where a partition is: how many brokers are to have it, how many are up to date, and whether one leads."""

    number: int
    replicas: int
    in_sync: int
    led: bool = True


class Group(msgspec.Struct, frozen=True):
    """A group: how many members it has, which partitions of the topic they have, and how many have none of any topic."""

    name: str
    state: ConsumerGroupState = ConsumerGroupState.DEAD
    members: int = 0
    taken: frozenset[int] = frozenset()
    idle: int = 0


async def facts_of(admin: Admin, settings: Settings, question: Question) -> Facts:
    """Everything there is to tell; what this user may not ask for ends only its part. Raises ConnectionLost."""
    facts = Facts()
    with facts.looking("the cluster"):
        await _cluster(facts, admin, settings)
    if question.topic is not None:
        with facts.looking(f"the topic {question.topic!r}"):
            await _topics(facts, admin, settings, question)
    if question.group is not None:
        with facts.looking(f"the group {question.group!r}"):
            await _group(facts, admin, settings, question.group, question.topic or "")
    return facts


# --- the cluster


async def _cluster(facts: Facts, admin: Admin, settings: Settings) -> None:
    addresses = settings.addresses if len(settings.addresses) > 1 else ()
    for each in addresses:  # one of several that is down is not missed, until the others are
        try:
            async with asyncio.timeout(ANSWER):
                _, writer = await asyncio.open_connection(each.host, each.port)
        except OSError as error:
            what = f"It could not be reached: {error or 'no answer'}."
            remedy = "See whether this broker runs; without it, clients begin at the others of the URL."
            facts.find("warning", f"broker {each}", what, remedy)
        else:
            writer.close()
    if brokers := await admin.brokers():
        config = await admin.settings(_Type.BROKER, str(brokers[0]))
        add_cluster(facts, len(brokers), config, settings)
        return
    what = "It has no broker that takes part: they are starting, or cut off from their controller."
    facts.find("error", "cluster", what, "Look into the brokers' logs, and at the controller.")


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


# --- topics


async def _topics(facts: Facts, admin: Admin, settings: Settings, question: Question) -> None:
    """The topic, its dead letter, and those where its delayed retries wait."""
    for name, _ in question.wanted:
        found = await admin.topic(name) if possible_topic(name) else None
        if found is None:
            names = "it is up to 249 letters, digits, '.', '_' and '-'."
            impossible = "" if possible_topic(name) else f"Kafka cannot have a topic of that name: {names}"
            facts.topics.append(TopicFacts(name=name, there=False, impossible=impossible))
            continue
        copies = [
            Copies(each.id, len(each.replicas), len(each.isr), each.leader is not None)
            for each in found.partitions
        ]
        add_topic(facts, name, copies, await admin.settings(_Type.TOPIC, name), settings, question)
    retries = retry_topics(question.topic or "", question.group) if question.group is not None else ()
    for name in retries:
        if await admin.topic(name) is not None:
            retention = retention_of(await admin.settings(_Type.TOPIC, name))
            facts.topics.append(TopicFacts(name=name, retention=retention))


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
    facts.topics.append(
        TopicFacts(
            name=name,
            retention=retention_of(config),
            copies=min(each.replicas for each in copies),
            largest=int(config["max.message.bytes"]) if "max.message.bytes" in config else None,
            largest_setting="max.message.bytes",
        )
    )
    subject = f"topic {name}" if asked else f"dead letter {name}"
    if "compact" in _policies(config):
        what = "It is compacted: of each key only the last message is sure to be handled, and messages without a key are refused."
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
    what = f"It has {count} partitions for a concurrency of {concurrency}: more than {count} processes get nothing to do, and one that handles by partition runs no more than those at once."
    remedy = "Handle more at once in each process, or add partitions while nothing waits: keys move to other partitions, so their order holds only from there on."
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


# --- groups


async def _group(facts: Facts, admin: Admin, settings: Settings, name: str, topic: str) -> None:
    """A group, as soon as it is settled."""
    if settings.options.group_type == "share":
        what = "It is a share group, of which the client can ask neither members nor lag."
        remedy = "Look with Kafka's own `kafka-share-groups.sh --describe`."
        facts.find("ok", f"group {name}", what, remedy)
        return
    loop = asyncio.get_running_loop()
    ends = loop.time() + REBALANCE
    group = await _described(admin, name, topic)
    while group.state in REBALANCING and loop.time() < ends:
        await asyncio.sleep(LOOK)
        group = await _described(admin, name, topic)
    if group.state in REBALANCING:
        what = f"It has been rebalancing for more than {REBALANCE:.0f} s: a member does not let go of its partitions."
        remedy = "Look for a member that hangs or keeps restarting; one that is gone is struck off after session_timeout."
        facts.find("warning", f"group {name}", what, remedy)
    places = await admin.places(topic, name) if possible_topic(topic) else ()
    add_group(facts, group, topic, places)


async def _described(admin: Admin, name: str, topic: str) -> Group:
    found = await admin.group(name)
    if found is None:
        return Group(name)
    held = [assigned(member) for member in found.members]
    taken = frozenset(each.partition for partitions in held for each in partitions if each.topic == topic)
    return Group(name, found.state, len(held), taken, sum(not partitions for partitions in held))


def add_group(facts: Facts, group: Group, topic: str, places: Sequence[Place]) -> None:
    """A group, and whether what it has yet to handle is still there and received."""
    settled = group.state not in REBALANCING
    stuck = [each.partition for each in places if each.waiting and each.partition not in group.taken]
    blocked: list[Blocked] = []
    if group.members and settled and stuck:
        what = f"It is stuck: none of its {group.members} members receives partition {some(stuck)} of {topic}, where messages wait."
        remedy = "Start a consumer of this topic in the group, and give all its consumers the same options."
        blocked.append(Blocked(what, remedy))
    facts.groups.append(
        GroupFacts(
            name=group.name,
            topic=topic,
            there=group.state not in MISSING,
            ready=sum(place.waiting for place in places),
            consumers=group.members,
            blocked=blocked,
        )
    )
    subject = f"group {group.name}"
    if lost := sum(place.lost for place in places):
        where = some([place.partition for place in places if place.lost])
        what = f"Up to {lost:,} messages of {topic} were deleted before the group handled them (partition {where})."
        remedy = (
            "Raise retention.ms, or run consumers more often; who has them still must publish them again."
        )
        facts.find("error", subject, what, remedy)
    if beyond := [each.partition for each in places if (each.committed or 0) > each.end]:
        what = f"Its committed offset lies beyond the end of {topic} (partition {some(beyond)}): the topic was made anew, or has lost messages."
        remedy = "Its consumers will begin at the earliest message; to choose another place, use `kafka-consumer-groups.sh --reset-offsets`."
        facts.find("warning", subject, what, remedy)
    if group.idle and settled:
        what = f"{group.idle} of its {group.members} members have no partition, and nothing to do."
        facts.find("warning", subject, what, "Stop them, or add partitions.")
