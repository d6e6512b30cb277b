"""A topic as it is, and whether it takes, keeps and hands out what is asked of it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import msgspec

from things_kit.brokers.kafka.doctor.phrases import duration, partitions
from things_kit.brokers.kafka.options import Settings, possible_topic
from things_kit.engine.diagnosis import Finding, Question


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
        what = f"{partitions(leaderless)} has no leader: nothing can be published to it, nor read."
        yield Finding("error", subject, what, "Bring the brokers back that have its copies.")
    if needed > replicas:
        what = f"min.insync.replicas is {needed} with {replicas} copies: no message with acks=all is taken."
        remedy = f"Lower min.insync.replicas to {max(1, replicas - 1)}, or add copies."
        yield Finding("error", subject, what, remedy)
    elif behind := [each.number for each in copies if each.led and each.in_sync < needed]:
        what = f"{partitions(behind)} has fewer copies in sync than min.insync.replicas, {needed}: no message is taken."
        yield Finding("error", subject, what, "Bring the brokers back that have the other copies.")
    elif late := [each.number for each in copies if each.in_sync < each.replicas]:
        what = f"{partitions(late)} has copies that are not in sync."
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
        what = f"It keeps messages for {duration(kept)}, but they may be retried for {duration(span)}: some would be lost."
        remedy = f"Set retention.ms to more than {int(1000 * span)}, or retry for less long."
        yield Finding("error", topic.subject, what, remedy)
    else:
        yield Finding("ok", topic.subject, f"It keeps messages for {duration(kept)}.")
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
        kept = f"{duration(dead.retention)}, shorter than {source.name} ({duration(source.retention)})"
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
