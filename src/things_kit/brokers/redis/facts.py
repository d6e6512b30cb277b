"""How a Redis, a topic's stream and its groups are. Reads only."""

import time
from collections.abc import Sequence
from typing import Any, Final

from things_kit.brokers.redis.errors import ERRORS
from things_kit.brokers.redis.keys import topic_keys
from things_kit.brokers.redis.options import RedisOptions
from things_kit.engine.facts import Facts, GroupFacts, Limit, Need, Question, Retention, Server, TopicFacts
from things_kit.engine.phrases import counted

NEEDS: Final = (
    Need((6, 2), "it has neither XAUTOCLAIM nor NOMKSTREAM"),
    Need((7, 0), "it counts a lag by reading the stream", "warning"),
)


async def facts_of(client: Any, options: RedisOptions, question: Question) -> Facts:
    """Everything there is to tell. Raises the client's errors if the server goes away."""
    facts = Facts()
    for name, info in (await _infos(client)).items():
        add_server(facts, name, info, options)
    if options.retain < 0:
        what = "Acknowledged messages are never deleted (retain=-1): streams grow until the memory is full."
        facts.find("warning", "retain", what, "Give retain a number of seconds.")
    for topic, group in question.wanted:
        with facts.looking(f"topic {topic}"):
            await _topic(facts, client, options, topic, group)
    return facts


async def _infos(client: Any) -> dict[str, dict[str, Any]]:
    """What every server says of itself, by what it is to be called."""
    found = await client.info("everything")
    if "redis_version" in found:
        return {"server": found}
    return {f"node {name}": info for name, info in found.items()}


def add_server(facts: Facts, subject: str, info: dict[str, Any], options: RedisOptions) -> None:
    """What one server says of itself."""
    product, version = str(info.get("server_name", "redis")), str(info.get("redis_version", "0"))
    facts.servers.append(Server(subject, product, version, NEEDS))
    _persistence(facts, subject, info)
    _memory(facts, subject, info)
    there = int(info.get("connected_slaves", 0))
    if info.get("role") == "slave" and not options.cluster:
        what, remedy = "It is a replica and takes no messages.", "Connect with its master, or by sentinels."
        facts.find("error", subject, what, remedy)
    elif there < options.wait_replicas:
        what = f"It has {there} replicas, and wait_replicas={options.wait_replicas}: nothing is confirmed."
        facts.find("error", subject, what, "Start replicas, or ask for fewer.")


def _persistence(facts: Facts, subject: str, info: dict[str, Any]) -> None:
    """Whether a confirmed message outlives the process."""
    if not info.get("aof_enabled"):
        what = "It keeps no append-only file: a crash loses what came since the last snapshot, or everything."
        facts.find("warning", subject, what, "Set appendonly yes, with appendfsync everysec or always.")
    elif info.get("aof_last_write_status", "ok") != "ok":
        what = "It could not write its append-only file, and takes no messages."
        facts.find("error", subject, what, "Make room on its disk, and look into its log.")
    else:
        facts.find("ok", subject, "It keeps an append-only file.")
    if info.get("loading"):
        facts.find("error", subject, "It is still loading its data.", "Wait until it has.")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        what = "Its last snapshot failed; it refuses writes then, unless stop-writes-on-bgsave-error is no."
        facts.find("warning", subject, what, "Make room on its disk and in its memory.")


def _memory(facts: Facts, subject: str, info: dict[str, Any]) -> None:
    """Whether it throws streams away, or is about to take nothing more."""
    limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "noeviction"))
    if not limit:
        return
    if policy.startswith("allkeys"):
        what = f"It evicts any key when its memory is full (maxmemory-policy {policy}): whole topics vanish."
        facts.find("error", subject, what, "Set maxmemory-policy noeviction.")
    elif policy != "noeviction":
        what = f"It evicts keys that expire when its memory is full (maxmemory-policy {policy})."
        facts.find("warning", subject, what, "Set maxmemory-policy noeviction, and no expiry on a stream.")
    remedy = "Raise maxmemory, lower retain, or look for a group that does not consume."
    used = int(info.get("used_memory", 0))
    facts.limits.append(Limit(subject, used, limit, "bytes of memory", "it takes no messages", remedy))


async def _topic(facts: Facts, client: Any, options: RedisOptions, topic: str, group: str | None) -> None:
    subject = f"topic {topic}"
    kind = await client.type(topic)
    if kind not in {b"none", b"stream"}:
        what = f"The key of this name is a {kind.decode()}, no stream."
        facts.topics.append(TopicFacts(name=topic, there=False, impossible=what))
        return
    bound = f"about {options.maxlen:,} messages (maxlen)" if options.maxlen else ""
    found = TopicFacts(name=topic, there=kind == b"stream", retention=Retention(bound=bound))
    facts.topics.append(found)
    _, scheduled, _ = topic_keys(topic)
    if not found.there:
        if count := await client.zcard(scheduled):
            what = f"It is missing, with {counted(count, 'message')} scheduled for it."
            facts.find("warning", subject, what, "Declare it: they come when they are due.")
        return
    if await client.ttl(topic) >= 0:
        what = "Its key expires: then all its messages are gone."
        facts.find("error", subject, what, "PERSIST it, and look for who sets the expiry.")
    with ERRORS.during("its groups cannot be seen"):
        groups = await client.xinfo_groups(topic)
    found.groups = [each["name"].decode(errors="backslashreplace") for each in groups]
    if not groups:
        what = "It has no group: its messages are kept until one has acknowledged them."
        facts.find("warning", subject, what, "Declare a group, or delete the topic.")
    if group is not None:
        due = await client.zcount(scheduled, "-inf", round(time.time() * 1_000_000))
        facts.groups.append(_group(topic, group, groups, due))


def _group(topic: str, name: str, groups: Sequence[Any], due: int) -> GroupFacts:
    own = next((each for each in groups if each["name"] == name.encode()), None)
    if own is None:
        return GroupFacts(name=name, topic=topic, there=False)
    waiting = own["pending"] + (own.get("lag") or 0) + due
    return GroupFacts(name=name, topic=topic, ready=waiting, consumers=own["consumers"])
