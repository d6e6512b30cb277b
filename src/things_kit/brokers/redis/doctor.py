"""What in a Redis would lose messages or hold them up."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from things_kit.brokers.redis.errors import CLIENT_ERRORS, sentence
from things_kit.brokers.redis.options import RedisOptions
from things_kit.engine.diagnosis import Finding, Question

OLDEST: Final = (6, 2)

NEARLY_FULL: Final = 0.9
"""The part of `maxmemory` from which on it is worth a warning."""


async def examine(client: Any, options: RedisOptions, question: Question) -> list[Finding]:
    """Everything there is to find; reads only. Raises the client's errors if the server goes away."""
    findings: list[Finding] = []
    for name, info in (await _infos(client)).items():
        findings += [*judge_version(name, info), *judge_persistence(name, info), *judge_memory(name, info)]
        findings += judge_replicas(name, info, options)
    findings += judge_limit(options)
    if question.topic is not None:
        findings += await _topic(client, question.topic, question.group)
    return findings


async def _infos(client: Any) -> dict[str, dict[str, Any]]:
    """What every server says of itself, by what it is to be called."""
    found = await client.info("everything")
    if "redis_version" in found:
        return {"server": found}
    return {f"node {name}": info for name, info in found.items()}


def judge_version(subject: str, info: dict[str, Any]) -> Iterator[Finding]:
    """Whether it knows the commands that are used."""
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        what = f"It is Redis {version}; XAUTOCLAIM and NOMKSTREAM came with 6.2."
        yield Finding("error", subject, what, "Upgrade it to 6.2 or newer, better to 7 or Valkey.")
    elif numbers < (7, 0):
        what = f"It is Redis {version}, which counts a lag by reading the stream."
        yield Finding("warning", subject, what, "Upgrade it to 7 or newer.")
    else:
        yield Finding("ok", subject, f"It is {info.get('server_name', 'redis')} {version}.")


def judge_persistence(subject: str, info: dict[str, Any]) -> Iterator[Finding]:
    """Whether a confirmed message outlives the process."""
    if not info.get("aof_enabled"):
        what = "It keeps no append-only file: a crash loses what came since the last snapshot, or everything."
        yield Finding("warning", subject, what, "Set appendonly yes, with appendfsync everysec or always.")
    elif info.get("aof_last_write_status", "ok") != "ok":
        what = "It could not write its append-only file, and takes no messages."
        yield Finding("error", subject, what, "Make room on its disk, and look into its log.")
    else:
        yield Finding("ok", subject, "It keeps an append-only file.")
    if info.get("loading"):
        yield Finding("error", subject, "It is still loading its data.", "Wait until it has.")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        what = "Its last snapshot failed; it refuses writes then, unless stop-writes-on-bgsave-error is no."
        yield Finding("warning", subject, what, "Make room on its disk and in its memory.")


def judge_memory(subject: str, info: dict[str, Any]) -> Iterator[Finding]:
    """Whether it throws streams away, or is about to take nothing more."""
    limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "noeviction"))
    if limit and policy.startswith("allkeys"):
        what = f"It evicts any key when its memory is full (maxmemory-policy {policy}): whole topics vanish."
        yield Finding("error", subject, what, "Set maxmemory-policy noeviction.")
    elif limit and policy != "noeviction":
        what = f"It evicts keys that expire when its memory is full (maxmemory-policy {policy})."
        yield Finding("warning", subject, what, "Set maxmemory-policy noeviction, and no expiry on a stream.")
    used = int(info.get("used_memory", 0))
    if limit and used > NEARLY_FULL * limit:
        what = f"It uses {used / limit:.0%} of its memory; when that is full it takes no messages."
        yield Finding(
            "warning",
            subject,
            what,
            "Raise maxmemory, lower retain, or look for a group that does not consume.",
        )


def judge_replicas(subject: str, info: dict[str, Any], options: RedisOptions) -> Iterator[Finding]:
    """Whether those that the URL waits for are there."""
    there = int(info.get("connected_slaves", 0))
    if info.get("role") == "slave" and not options.cluster:
        yield Finding(
            "error",
            subject,
            "It is a replica and takes no messages.",
            "Connect with its master, or by sentinels.",
        )
    elif there < options.wait_replicas:
        what = f"It has {there} replicas, and wait_replicas={options.wait_replicas}: nothing is confirmed."
        yield Finding("error", subject, what, "Start replicas, or ask for fewer.")


def judge_limit(options: RedisOptions) -> Iterator[Finding]:
    """Whether messages may be deleted before they were read."""
    if options.maxlen:
        what = f"A topic keeps about {options.maxlen:,} messages (maxlen): a group that is further behind loses the oldest."
        yield Finding(
            "warning",
            "maxlen",
            what,
            "Leave maxlen out; retain deletes only what every group has acknowledged.",
        )
    if options.retain < 0:
        what = "Acknowledged messages are never deleted (retain=-1): streams grow until the memory is full."
        yield Finding("warning", "retain", what, "Give retain a number of seconds.")


async def _topic(client: Any, topic: str, group: str | None) -> Sequence[Finding]:
    subject = f"topic {topic}"
    kind = await client.type(topic)
    if kind == b"none":
        remedy = f"Declare it: things-kit declare URL {topic}"
        return [Finding("warning", subject, "It does not exist yet.", remedy)]
    if kind != b"stream":
        what = f"The key of this name is a {kind.decode()}, no stream."
        return [Finding("error", subject, what, "Use another name, or another database.")]
    findings = []
    if await client.ttl(topic) >= 0:
        what = "Its key expires: then all its messages are gone."
        findings.append(Finding("error", subject, what, "PERSIST it, and look for who sets the expiry."))
    try:
        groups = await client.xinfo_groups(topic)
    except CLIENT_ERRORS as error:
        return [
            *findings,
            Finding(
                "warning", subject, f"Its groups cannot be seen: {sentence(error)}.", "Let this user XINFO."
            ),
        ]
    findings += judge_groups(topic, group, groups)
    return findings


def judge_groups(topic: str, group: str | None, groups: Sequence[Any]) -> Iterator[Finding]:
    """Whether there is who consumes."""
    subject = f"topic {topic}"
    if not groups:
        what = "It has no group: its messages are kept until one has acknowledged them."
        yield Finding("warning", subject, what, "Declare a group, or delete the topic.")
    found = {each["name"]: each for each in groups}
    if group is None:
        return
    own = found.get(group.encode())
    if own is None:
        yield Finding(
            "warning", f"group {group}", f"{topic} has no such group yet.", "Start a consumer, or declare it."
        )
    elif not own["consumers"] and (own["pending"] or own.get("lag")):
        what = "Messages wait, and it has no consumer."
        yield Finding("error", f"group {group}", what, "Start a consumer.")
