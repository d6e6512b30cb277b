"""What in a server's limits, a stream's settings or a group's state would lose messages or hold them up.

Nothing here changes anything at the server. Settings are judged by functions of what was asked for, so that they can
be tried without a server that has them.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from things_kit.brokers.nats.attempts import STREAM as ATTEMPTS
from things_kit.brokers.nats.attempts import SUBJECT
from things_kit.brokers.nats.connection import Connection
from things_kit.brokers.nats.options import Settings, check_topic
from things_kit.brokers.nats.streams import SECOND, Info, Streams, wrong_kind
from things_kit.engine.diagnosis import Finding, Level, Question
from things_kit.messaging.errors import ConfigError

OLD: Final = (2, 9)
"""The oldest server that this driver is tested on."""

NEARLY: Final = 0.9
"""Share of a limit from which on it is nearly reached."""


async def examine(connection: Connection, settings: Settings, question: Question) -> Sequence[Finding]:
    """The server, then the topic, its dead letter and the group. Raises ConnectionLost."""
    streams = Streams(connection, settings.options)
    findings = [*judge_server(settings.url.display, connection.version, await streams.account())]
    if question.topic is None:
        return findings
    try:
        check_topic(question.topic)
    except ConfigError as error:
        remedy = "Choose another name."
        return [*findings, Finding("error", f"topic {question.topic}", f"{error}.", remedy)]
    create = settings.url.engine.declare
    name = await streams.find(question.topic)
    stream = None if name is None else await streams.stream(name)
    if name is None or stream is None:
        return [*findings, missing(f"topic {question.topic}", "stream", created=create)]
    findings += judge_stream(f"topic {question.topic}", stream, question.retry_span)
    if question.dead_letter is not None:
        dead = await streams.find(question.dead_letter)
        there = None if dead is None else await streams.stream(dead)
        findings += judge_dead_letter(f"dead letter {question.dead_letter}", there, stream)
    if question.group is not None:
        group = await streams.group(name, question.topic, question.group)
        info = None if group is None else group.info
        findings += judge_group(f"group {question.group}", info, question, created=create)
        if not create and await streams.stream(ATTEMPTS) is None:
            said = f"There is no stream {ATTEMPTS}, and the URL forbids creating one: what a stop gives back counts as an attempt."
            remedy = f"Create it, with the subjects '{SUBJECT}.>' and max_msgs_per_subject 1, or do without."
            findings.append(Finding("warning", f"group {question.group}", said, remedy))
    return findings


def judge_server(subject: str, version: str, account: Info) -> Iterator[Finding]:
    """Which server it is, and whether the account has room."""
    if tuple(map(int, version.split(".")[:2])) < OLD:
        remedy = "Upgrade the server to 2.9 or newer."
        yield Finding(
            "warning", subject, f"It is NATS {version}, which this driver is not tested on.", remedy
        )
    else:
        yield Finding("ok", subject, f"It is NATS {version}, with JetStream.")
    limits: dict[str, Any] = account.get("limits") or {}
    for used, limit, what in (
        ("storage", "max_storage", "bytes of file storage"),
        ("memory", "max_memory", "bytes of memory storage"),
        ("streams", "max_streams", "streams"),
        ("consumers", "max_consumers", "consumers"),
    ):
        most, now = limits.get(limit, -1), account.get(used, 0)
        if most > 0 and now >= NEARLY * most:
            level: Level = "error" if now >= most else "warning"
            remedy = "Raise the account's limit, or delete what is not needed."
            yield Finding(level, subject, f"The account has {now:,} of {most:,} {what}.", remedy)


def missing(subject: str, what: str, *, created: bool) -> Finding:
    """Something that is not there, which publishers and consumers may create."""
    remedy = "Check the spelling, or create it: `things-kit declare URL TOPIC`."
    if created:
        return Finding(
            "warning", subject, f"There is no {what} of it; who first uses it creates one.", remedy
        )
    said = f"There is no {what} of it, and the URL forbids creating one (declare=false)."
    return Finding("error", subject, said, remedy)


def judge_stream(subject: str, stream: Info, retry_span: float | None) -> Iterator[Finding]:
    """Whether it takes messages, and keeps them until they are handled."""
    config = stream["config"]
    findings = [*chain(_judge_taking(subject, stream), _judge_keeping(subject, config, retry_span))]
    yield from findings
    if not findings:
        yield Finding("ok", subject, f"The stream {config['name']} takes messages, and keeps them.")


def _judge_taking(subject: str, stream: Info) -> Iterator[Finding]:
    config, state = stream["config"], stream.get("state") or {}
    if config.get("no_ack"):
        remedy = "Set no_ack to false."
        yield Finding(
            "error", subject, "Its stream confirms nothing (no_ack), so each publish fails.", remedy
        )
    if config.get("sealed"):
        yield Finding(
            "error", subject, "Its stream is sealed: it takes no message any more.", "Make another stream."
        )
    for limit, used in (("max_bytes", "bytes"), ("max_msgs", "messages")):
        most, now = config.get(limit, -1), state.get(used, 0)
        if most > 0 and config.get("discard") == "new":
            level: Level = "error" if now >= most else "warning"
            remedy = f"Raise {limit}, or set max_age, so that old messages make room."
            said = f"Its stream has {now:,} of {most:,} {used}, and refuses new ones when it is full."
            yield Finding(level, subject, said, remedy)
    if config.get("num_replicas", 1) == 1 and (stream.get("cluster") or {}).get("name"):
        remedy = "Use 3 replicas where that matters (`?replicas=3` for new streams)."
        yield Finding("warning", subject, "There is one copy of each message, away with its server.", remedy)


def _judge_keeping(subject: str, config: Info, retry_span: float | None) -> Iterator[Finding]:
    if config.get("retention") == "workqueue":
        said = (
            "Its stream is a work queue: it takes one group, and a message is gone once that has handled it."
        )
        yield Finding("warning", subject, said, "Use a stream with retention 'limits' for several groups.")
    elif config.get("retention") == "interest":
        said = "Its stream keeps messages only for groups that exist (retention 'interest')."
        yield Finding("warning", subject, said, "Declare the groups before publishing: `things-kit declare`.")
    age = config.get("max_age", 0) / SECOND
    if age and retry_span is not None and age < retry_span:
        said = f"It keeps messages for {age:g} s, but they may be retried for {retry_span:g} s: some would be lost."
        yield Finding(
            "error", subject, said, f"Set max_age to more than {retry_span:g} s, or retry for less long."
        )
    if config.get("discard", "old") == "old":
        for limit in ("max_bytes", "max_msgs", "max_msgs_per_subject"):
            if config.get(limit, -1) > 0:
                said = (
                    f"When it is full ({limit} of {config[limit]:,}) it deletes the oldest, handled or not."
                )
                yield Finding(
                    "warning", subject, said, f"Set {limit} to -1, or be sure that consumers keep up."
                )
    if config.get("storage") == "memory":
        said = "Its stream is in memory: a server's restart loses it, unless others have copies."
        yield Finding("warning", subject, said, "Use a stream with storage 'file'.")


def judge_dead_letter(subject: str, dead: Info | None, source: Info) -> Iterator[Finding]:
    """Whether the dead letter takes and keeps what the source has."""
    if dead is None:
        said = "It does not exist; a consumer creates it when it starts, unless it has declare=false or another name."
        yield Finding("warning", subject, said, "Create it: `things-kit declare URL TOPIC-dlq`.")
        return
    kept, source_kept = (each["config"].get("max_age", 0) for each in (dead, source))
    if kept and (not source_kept or kept < source_kept):
        said = f"It keeps dead letters for {kept / SECOND:g} s, less long than its source."
        yield Finding("warning", subject, said, "Raise its max_age, or set it to 0.")
    yield from _judge_taking(subject, dead)


def judge_group(subject: str, group: Info | None, question: Question, *, created: bool) -> Iterator[Finding]:
    """Whether what waits is handed out, and to whom."""
    if group is None:
        yield missing(subject, "consumer", created=created)
        return
    config = group["config"]
    if trouble := wrong_kind(config, question.topic or ""):
        remedy = "Change or delete the consumer, or use another group."
        yield Finding("error", subject, f"Its consumer {trouble}.", remedy)
        return
    most = config.get("max_ack_pending", -1)
    if most > 0 and group["num_ack_pending"] >= most:
        said = f"{most:,} messages are unacknowledged, as many as max_ack_pending allows: no more are handed out."
        yield Finding("error", subject, said, "Raise max_ack_pending to more than all its consumers hold.")
    if group.get("paused"):
        yield Finding("error", subject, "It is paused at the server.", "Resume it: `nats consumer resume`.")
    waiting = group["num_pending"] + group["num_ack_pending"]
    if waiting and not group["num_waiting"] and not group["num_ack_pending"]:
        said = f"It is stuck: {waiting:,} messages wait, and nobody asks for them."
        yield Finding("error", subject, said, "Start its consumers.")
    else:
        yield Finding(
            "ok",
            subject,
            f"{group['num_ack_pending']:,} messages are being handled, {group['num_pending']:,} wait.",
        )
