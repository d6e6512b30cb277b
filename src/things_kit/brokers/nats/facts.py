"""How a server's account, its streams and consumers are. Nothing here changes anything at the server."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from things_kit.brokers.nats.admin import SECOND, Info, Streams, wrong_kind
from things_kit.brokers.nats.connection import Connection
from things_kit.brokers.nats.marks import STREAM as MARKS
from things_kit.brokers.nats.marks import SUBJECT
from things_kit.brokers.nats.options import Settings, check_topic
from things_kit.engine.facts import (
    Blocked,
    Facts,
    GroupFacts,
    Limit,
    Need,
    Question,
    Retention,
    Server,
    TopicFacts,
)
from things_kit.messaging.errors import ConfigError

NEEDS: Final = (Need((2, 9), "this driver is not tested on it", "warning"),)


async def facts_of(connection: Connection, settings: Settings, question: Question) -> Facts:
    """The server, then the topic, its dead letter and the group. Raises ConnectionLost."""
    streams, subject = Streams(connection, settings.options, {}), settings.url.display
    facts = Facts(servers=[Server(subject, "NATS", connection.version, NEEDS)])
    with facts.looking("account"):
        facts.limits += limits_of(subject, await streams.account())
    for topic, group in question.wanted:
        with facts.looking(f"topic {topic}"):
            asked = topic == question.topic
            stream = await _topic(facts, streams, topic, asked=asked)
            if asked and stream is not None and group is not None:
                await _group(facts, streams, stream, topic, group, creates=question.creates)
    return facts


async def _topic(facts: Facts, streams: Streams, topic: str, *, asked: bool) -> str | None:
    try:
        check_topic(topic)
    except ConfigError as error:
        facts.topics.append(TopicFacts(name=topic, there=False, impossible=f"{error}."))
        return None
    name = await streams.find(topic)
    stream = None if name is None else await streams.stream(name)
    if stream is None:
        facts.topics.append(TopicFacts(name=topic, there=False))
        return None
    add_stream(facts, topic, stream, asked=asked)
    return name


async def _group(
    facts: Facts, streams: Streams, stream: str, topic: str, name: str, *, creates: bool
) -> None:
    group = await streams.group(stream, topic, name)
    if group is None:
        facts.groups.append(GroupFacts(name=name, topic=topic, there=False))
        return
    facts.groups.append(group_facts(name, topic, group.info))
    if not creates and await streams.stream(MARKS) is None:
        what = f"There is no stream {MARKS}, and the URL forbids creating one: a message that kills its process comes for ever."
        remedy = f"Create it, with the subjects '{SUBJECT}.>' and max_msgs_per_subject 1, or do without."
        facts.find("warning", f"group {name}", what, remedy)


def limits_of(subject: str, account: Info) -> Iterator[Limit]:
    """What the account may have."""
    limits: dict[str, Any] = account.get("limits") or {}
    for used, limit, what in (
        ("storage", "max_storage", "bytes of file storage"),
        ("memory", "max_memory", "bytes of memory storage"),
        ("streams", "max_streams", "streams"),
        ("consumers", "max_consumers", "consumers"),
    ):
        if limits.get(limit, -1) > 0:
            remedy = "Raise the account's limit, or delete what is not needed."
            yield Limit(subject, account.get(used, 0), limits[limit], what, "the server refuses more", remedy)


def add_stream(facts: Facts, topic: str, stream: Info, *, asked: bool) -> None:
    """Whether a topic's stream takes messages, and keeps them until they are handled."""
    config, state = stream["config"], stream.get("state") or {}
    subject = f"topic {topic}" if asked else f"dead letter {topic}"
    bounds = [
        (limit, of)
        for limit, of in (
            ("max_bytes", "bytes"),
            ("max_msgs", "messages"),
            ("max_msgs_per_subject", "messages of each subject"),
        )
        if config.get(limit, -1) > 0
    ]
    keeps_old = config.get("discard", "old") == "new"
    facts.topics.append(
        TopicFacts(
            name=topic,
            retention=Retention(
                config.get("max_age", 0) / SECOND or math.inf,
                "max_age",
                bound=""
                if keeps_old
                else " and ".join(f"{config[limit]:,} {of} ({limit})" for limit, of in bounds),
            ),
            copies=config.get("num_replicas", 1) if (stream.get("cluster") or {}).get("name") else None,
        )
    )
    if keeps_old:
        for limit, of in bounds:
            remedy = f"Raise {limit}, or set max_age, so that old messages make room."
            facts.limits.append(
                Limit(subject, state.get(of, 0), config[limit], of, "it refuses new messages", remedy)
            )
    if config.get("no_ack"):
        what = "Its stream confirms nothing (no_ack), so each publish fails."
        facts.find("error", subject, what, "Set no_ack to false.")
    if config.get("sealed"):
        what = "Its stream is sealed: it takes no message any more."
        facts.find("error", subject, what, "Make another stream.")
    if asked:
        _kind(facts, subject, config)


def _kind(facts: Facts, subject: str, config: Info) -> None:
    if config.get("retention") == "workqueue":
        what = (
            "Its stream is a work queue: it takes one group, and a message is gone once that has handled it."
        )
        facts.find("warning", subject, what, "Use a stream with retention 'limits' for several groups.")
    elif config.get("retention") == "interest":
        what = "Its stream keeps messages only for groups that exist (retention 'interest')."
        facts.find("warning", subject, what, "Declare the groups before publishing: `things-kit declare`.")
    if config.get("storage") == "memory":
        what = "Its stream is in memory: a server's restart loses it, unless others have copies."
        facts.find("warning", subject, what, "Use a stream with storage 'file'.")


def group_facts(name: str, topic: str, group: Info) -> GroupFacts:
    """A group by its consumer."""
    return GroupFacts(
        name=name,
        topic=topic,
        ready=group["num_pending"],
        held=group["num_ack_pending"],
        consumers=group["num_waiting"] or group["num_ack_pending"],
        blocked=_blocked(group, topic),
    )


def _blocked(group: Info, topic: str) -> Sequence[Blocked]:
    config, blocked = group["config"], []
    if trouble := wrong_kind(config, topic):
        return [Blocked(f"Its consumer {trouble}.", "Delete the consumer, or use another group.")]
    most = config.get("max_ack_pending", -1)
    if 0 < most <= group["num_ack_pending"]:
        what = f"{most:,} messages are unacknowledged, as many as max_ack_pending allows: no more are handed out."
        blocked.append(Blocked(what, "Raise max_ack_pending to more than all its consumers hold."))
    if group.get("paused"):
        blocked.append(Blocked("It is paused at the server.", "Resume it: `nats consumer resume`."))
    return blocked
