"""What follows from the facts: which of them lose messages, hold them up, or will."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import Facts, Finding, GroupFacts, Limit, Question, Retention, Server, TopicFacts
from things_kit.engine.phrases import counted, duration, some
from things_kit.messaging.names import DEAD_LETTER_GROUP

NEARLY: Final = 0.9
"""The part of a limit from which on it is nearly reached."""

LARGE: Final = 10_000
"""Messages from which on a lag is worth a look, though it does not grow."""

WEEKEND: Final = 3 * 86_400.0
"""Seconds for which messages should be kept at least: nobody looks after consumers then."""


def conclude(
    facts: Facts, question: Question, capabilities: Capabilities, *, declares: bool
) -> Iterator[Finding]:
    """One finding after another.

    Args:
        facts: How things are.
        question: What was asked about.
        capabilities: Those of the driver.
        declares: Whether publish and start create what is missing.
    """
    for server in facts.servers:
        yield _server(server)
    for limit in facts.limits:
        yield from _limit(limit)
    asked = facts.topic(question.topic)
    for topic in facts.topics:
        if topic.name == question.dead_letter:
            yield from _dead_letter(topic, asked, facts, retained=capabilities.retained)
        else:
            yield from _topic(topic, question, capabilities, declares=declares)
    for group in facts.groups:
        if group.name == question.group:
            yield from _group(group, question, retained=capabilities.retained, declares=declares)
        elif group.name != DEAD_LETTER_GROUP:  # which is there to hold back, and nobody receives as it
            yield from _other(group, question)
    yield from facts.findings
    for subject, why in facts.unseen:
        remedy = "Ask as a user who may read the settings of the broker, its topics and groups."
        yield Finding("warning", subject, f"Not everything could be looked at: {why.rstrip('.')}.", remedy)


def _server(server: Server) -> Finding:
    version = tuple(int(number) for number in re.findall(r"\d+", server.version)[:2])
    name = f"{server.product} {server.version}"
    for need in server.needs:
        if version < need.version:
            newer = ".".join(map(str, need.version))
            return Finding(
                need.level, server.subject, f"It is {name}: {need.lacks}.", f"Use {newer} or newer."
            )
    return Finding("ok", server.subject, f"It is {name}.")


def _limit(limit: Limit) -> Iterator[Finding]:
    if limit.used >= NEARLY * limit.most:
        what = f"It has {limit.used:,.0f} of {limit.most:,.0f} {limit.of}; when that is full, {limit.then}."
        yield Finding("error" if limit.used >= limit.most else "warning", limit.subject, what, limit.remedy)


# --- topics


def _topic(
    topic: TopicFacts, question: Question, capabilities: Capabilities, *, declares: bool
) -> Iterator[Finding]:
    subject = f"topic {topic.name}"
    if topic.impossible:
        yield Finding("error", subject, topic.impossible, "Choose another name.")
        return
    if not topic.there:
        yield _missing(topic, declares=declares)
        return
    if topic.groups is not None and not topic.groups and not capabilities.retained:
        what = "It has no group, so the broker drops what is published; `publish` refuses it."
        yield Finding("warning", subject, what, "Declare its groups before anything is published.")
    elif topic.groups is not None:
        yield Finding("ok", subject, f"It has {counted(len(topic.groups), 'group')}.")
    if topic.retention is not None:
        yield from _retention(subject, topic.retention, question.retry_span)
    if topic.copies == 1:
        what = "There is one copy of each message: away with its server, and lost with its disk."
        yield Finding("warning", subject, what, "Have three copies where that matters.")
    promised = capabilities.max_message_bytes
    if topic.largest is not None and promised is not None and topic.largest < promised:
        what = f"It takes {topic.largest:,} bytes, less than max_message_bytes, {promised:,}."
        remedy = f"Raise its {topic.largest_setting}, or lower max_message_bytes."
        yield Finding("warning", subject, what, remedy)


def _missing(topic: TopicFacts, *, declares: bool) -> Finding:
    subject = f"topic {topic.name}"
    remedy = f"Check the spelling, or create it: `things-kit declare URL {topic.name}`."
    if not declares:
        what = "There is no such topic, and the URL forbids creating it (declare=false)."
        return Finding("error", subject, what, remedy)
    if topic.others:
        return Finding("warning", subject, f"There is no such topic; there are {some(topic.others)}.", remedy)
    what = "There is no such topic; who first publishes or consumes creates it."
    return Finding("warning", subject, what, remedy)


def _retention(subject: str, kept: Retention, span: float | None) -> Iterator[Finding]:
    if span is not None and kept.seconds < span:
        what = f"It keeps messages for {duration(kept.seconds)}, but they may be retried for {duration(span)}: some would be lost."
        remedy = f"Set {kept.setting} to more than {span * kept.scale:.0f}, or retry for less long."
        yield Finding("error", subject, what, remedy)
    elif kept.seconds < WEEKEND:
        what = f"It keeps messages for {duration(kept.seconds)}, handled or not."
        yield Finding("warning", subject, what, f"Raise its {kept.setting}.")
    else:
        yield Finding("ok", subject, f"It keeps messages for {duration(kept.seconds)}.")
    if kept.bound:
        what = f"Beyond {kept.bound} it deletes the oldest, handled or not."
        yield Finding(
            "warning", subject, what, "Lift that bound, or be sure that consumers are never so far behind."
        )


def _dead_letter(
    dead: TopicFacts, source: TopicFacts | None, facts: Facts, *, retained: bool
) -> Iterator[Finding]:
    """Whether it takes and keeps what its source has."""
    subject = f"dead letter {dead.name}"
    if source is None or not source.there:
        return
    if not dead.there:
        what = "It does not exist; a consumer creates it when it starts, unless it has declare=false or another name."
        yield Finding("warning", subject, what, f"Create it: `things-kit declare URL {dead.name}`.")
        return
    group = next((group for group in facts.groups if group.topic == dead.name), None)
    if group is not None and not group.there and not retained:
        what = f"It has no group {DEAD_LETTER_GROUP}, so the broker keeps no dead letter, and failed messages are tried for ever."
        remedy = f"Run `things-kit declare URL {dead.name} --group {DEAD_LETTER_GROUP}`, or start a consumer."
        yield Finding("error", subject, what, remedy)
    if _seconds(dead) < _seconds(source):
        what = f"It keeps dead letters for {duration(_seconds(dead))}, shorter than {source.name} ({duration(_seconds(source))})."
        setting = dead.retention.setting if dead.retention else "retention"
        yield Finding("warning", subject, what, f"Raise its {setting}.")
    if dead.largest is not None and (source.largest is None or dead.largest < source.largest):
        what = f"It takes smaller messages than {source.name}: large ones cannot be put there and hold up their key."
        yield Finding("warning", subject, what, f"Raise its {dead.largest_setting}.")
    if dead.copies is not None and source.copies is not None and dead.copies < source.copies:
        yield Finding("warning", subject, f"It has fewer copies than {source.name}.", "Give it as many.")


def _seconds(topic: TopicFacts) -> float:
    return (topic.retention or Retention()).seconds


# --- groups


def _group(group: GroupFacts, question: Question, *, retained: bool, declares: bool) -> Iterator[Finding]:
    subject = f"group {group.name}"
    if not group.there:
        yield _missing_group(group, retained=retained, declares=declares)
        return
    for blocked in group.blocked:
        yield Finding("error", subject, blocked.what, blocked.remedy)
    yield from _retained(group, question)
    yield from _losing(group)
    if not group.blocked:
        yield _receiving(group)


def _other(group: GroupFacts, question: Question) -> Iterator[Finding]:
    """Of a group that was not asked about: what is not well, and what holds back much that is never deleted."""
    for finding in (*_losing(group), *_retained(group, question)):
        if finding.level != "ok":
            yield finding
    if (group.ready or 0) >= LARGE and group.consumers == 0 and not group.held:
        yield msgspec.structs.replace(_receiving(group), level="warning")


def _retained(group: GroupFacts, question: Question) -> Iterator[Finding]:
    if group.retention is not None:
        yield from _retention(f"group {group.name}", group.retention, question.retry_span)


def _missing_group(group: GroupFacts, *, retained: bool, declares: bool) -> Finding:
    subject = f"group {group.name}"
    remedy = f"Check the spelling; start its consumers, or run `things-kit declare URL {group.topic} --group {group.name}`."
    if not retained:
        what = f"It has no {group.place or 'place'} in {group.topic}: what is published before it has one does not reach it."
        return Finding("error", subject, what, remedy)
    if not declares:
        what = f"There is no such group of {group.topic}, and the URL forbids creating it (declare=false)."
        return Finding("error", subject, what, remedy)
    waiting = counted(group.ready, "message") if group.ready else "messages"
    what = f"There is no such group; it will begin at the earliest of the {waiting} in {group.topic}, unless its first consumer says otherwise."
    return Finding("warning", subject, what, remedy)


def _losing(group: GroupFacts) -> Iterator[Finding]:
    subject = f"group {group.name}"
    if group.deliveries is not None:
        goes = f"moves it to {group.goes_to}, past the dead letter" if group.goes_to else "drops it"
        what = f"After {counted(group.deliveries, 'delivery', 'deliveries')} of a message the broker itself {goes}."
        remedy = "Lift that bound: the consumer's own policy decides how often a message is tried."
        yield Finding("warning" if group.goes_to else "error", subject, what, remedy)
    if group.idle is not None:
        what = f"It is deleted, with its messages, when nobody has received for {duration(group.idle)}."
        yield Finding("warning", subject, what, "Let it never expire.")
    if group.filter:
        what = f"It has a filter, and never gets what does not fit: {group.filter}."
        yield Finding("warning", subject, what, "Remove the filter, unless that is meant.")
    if group.largest is not None:
        what = f"It takes {group.largest:,} bytes, less than its topic: larger messages never reach it."
        yield Finding("error", subject, what, "Raise that bound.")


def _receiving(group: GroupFacts) -> Finding:
    subject, ready, held, consumers = f"group {group.name}", group.ready, group.held or 0, group.consumers
    if ready and consumers == 0 and not held:
        what = f"It is stuck: {counted(ready, 'message')} of {group.topic} wait, and nobody receives."
        return Finding("error", subject, what, "Start its consumers, or see why they stopped.")
    if consumers is None:
        place = f"It is the {group.place}." if group.place else f"It is there in {group.topic}."
        return Finding("ok", subject, place)
    what = f"It has {counted(consumers, 'consumer')} of {group.topic}"
    if ready is not None:
        what += f"; {counted(ready + held, 'message')} wait or are being handled"
    return Finding("ok", subject, f"{what}.")
