"""What in Service Bus would lose messages, hide them, or hold them up."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Final

from azure.servicebus.management import SqlRuleFilter

from things_kit.brokers.servicebus.admin import IDLE, Admin, rule_of
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.engine.diagnosis import Finding, Question
from things_kit.messaging.errors import ConfigError

FEW: Final = 100
"""Deliveries below which a message is soon put aside by the service: a killed process costs each message that it held one."""

FULL: Final = 0.8
"""The part of its largest size from which on an entity will soon refuse messages."""


async def examine(settings: Settings, admin: Admin, question: Question) -> Sequence[Finding]:
    """Everything there is to find about a topic and its groups; changes nothing."""
    if not admin.known:
        remedy = "Give ?admin_port=…; without it nothing can be declared, and lag is unknown."
        return [Finding("warning", settings.display, "The emulator's management API is not known.", remedy)]
    try:
        if question.topic is None:
            return []
        if settings.by_queue:
            return await _queue(settings, admin, question.topic, question)
        return await _topic(settings, admin, question.topic, question)
    except ConfigError as error:
        remedy = "Use a key or role with the right to manage, or declare topics and groups elsewhere (?declare=false)."
        return [
            Finding("warning", settings.display, f"The management API could not be asked: {error}.", remedy)
        ]


async def _queue(settings: Settings, admin: Admin, topic: str, question: Question) -> list[Finding]:
    name, subject = entity_of(topic), f"queue {topic}"
    found = await admin.ask(admin.client.get_queue(name), f"asking about {subject}")
    if found is None:
        return [_missing(subject)]
    counts = await admin.ask(admin.client.get_queue_runtime_properties(name), f"asking about {subject}")
    return [
        *_stored(subject, found, counts),
        *_received(subject, found, counts, question),
        *_locked(subject, found, settings),
    ]


async def _topic(settings: Settings, admin: Admin, topic: str, question: Question) -> list[Finding]:
    name, subject = entity_of(topic), f"topic {topic}"
    found = await admin.ask(admin.client.get_topic(name), f"asking about {subject}")
    if found is None:
        return [_missing(subject)]
    counts = await admin.ask(admin.client.get_topic_runtime_properties(name), f"asking about {subject}")
    findings = list(_stored(subject, found, counts))
    groups = [each async for each in admin.client.list_subscriptions(name)]
    if not groups:
        remedy = "Declare a group (things-kit declare), or start its consumers, before anything is published."
        findings.append(
            Finding("error", subject, "It has no subscription: what is published is lost.", remedy)
        )
    for group in groups:
        about = await admin.ask(
            admin.client.get_subscription_runtime_properties(name, group.name), f"asking about {subject}"
        )
        findings += _received(f"group {group.name}", group, about, question)
        if question.group is None or group.name.lower() == subscription_of(question.group).lower():
            findings += _locked(f"group {group.name}", group, settings)
        findings += await _rules(admin, name, group.name)
    if question.group is not None and subscription_of(question.group).lower() not in {
        g.name.lower() for g in groups
    }:
        remedy = "Declare it, or start its consumers: what is published before is not for it."
        findings.append(
            Finding("warning", f"group {question.group}", f"It has no subscription to {topic}.", remedy)
        )
    return findings


async def _rules(admin: Admin, topic: str, name: str) -> list[Finding]:
    """Whether a subscription lets in what is for all, and nothing that is for others."""
    rules = [each async for each in admin.client.list_rules(topic, name)]
    ours = rule_of(name).sql_expression
    if any(isinstance(each.filter, SqlRuleFilter) and each.filter.sql_expression == ours for each in rules):
        return []
    remedy = f"Give it the rule: {ours}"
    if not rules:
        return [
            Finding("error", f"group {name}", "Its subscription has no rule, so it gets nothing.", remedy)
        ]
    what = (
        "Its subscription has rules of somebody else: delayed and replayed messages of other groups may reach it, which "
        "its consumers skip, or its own may not."
    )
    return [Finding("warning", f"group {name}", what, remedy)]


def _missing(subject: str) -> Finding:
    return Finding(
        "error", subject, "It does not exist.", "Declare it (things-kit declare), or check its name."
    )


def _stored(subject: str, found: Any, counts: Any) -> Iterator[Finding]:
    """What keeps messages."""
    if "Disabled" in str(found.status):
        yield Finding("error", subject, f"It is disabled ({found.status}).", "Enable it in the portal.")
    largest, size = (found.max_size_in_megabytes or 0) * 2**20, (counts and counts.size_in_bytes) or 0
    if largest and size > FULL * largest:
        what = f"It holds {size // 2**20:,} MiB of at most {found.max_size_in_megabytes:,}: then it refuses messages."
        yield Finding("warning", subject, what, "Make it larger, or take messages faster.")
    if found.enable_partitioning:
        what = "It is partitioned: it keeps order only for messages with the same session."
        yield Finding(
            "warning", subject, what, "Use sessions (?sessions=true) where the order of a key matters."
        )


def _locked(subject: str, found: Any, settings: Settings) -> Iterator[Finding]:
    """What keeps a consumer with these options from receiving."""
    if bool(found.requires_session) is not settings.options.sessions:
        has, say = ("has", "true") if found.requires_session else ("has no", "false")
        yield Finding(
            "error",
            subject,
            f"It {has} sessions, so nothing can be received.",
            f"Connect with ?sessions={say}.",
        )
    lock = found.lock_duration
    if isinstance(lock, timedelta) and lock < settings.lease / 2:
        what = f"Its locks last {lock.total_seconds():g} s, and are renewed each {settings.options.lease / 3:g} s."
        yield Finding("error", subject, what, f"Connect with ?lease={max(5, int(lock.total_seconds()))}.")


def _received(subject: str, found: Any, counts: Any, question: Question) -> Iterator[Finding]:
    """What hands messages out."""
    if (found.max_delivery_count or 0) < FEW:
        what = (
            f"After {found.max_delivery_count} deliveries Service Bus moves a message to its own dead-letter queue, "
            "where neither retries nor `things-kit dlq` find it."
        )
        yield Finding("warning", subject, what, "Set its maximum delivery count to 2000.")
    if counts is not None and counts.dead_letter_message_count:
        what = f"Service Bus has moved {counts.dead_letter_message_count:,} messages to its own dead-letter queue."
        yield Finding(
            "warning", subject, what, "Look at them in the portal: they were delivered too often, or expired."
        )
    ttl, span = found.default_message_time_to_live, timedelta(seconds=question.retry_span or 0)
    if isinstance(ttl, timedelta) and span and ttl < span:
        what = f"Messages expire after {ttl.total_seconds():,.0f} s, before their last attempt."
        yield Finding("error", subject, what, "Let them live for longer than all attempts take.")
    idle = found.auto_delete_on_idle
    if isinstance(idle, timedelta) and IDLE < idle < timedelta(days=36_500):
        what = f"It is deleted, with its messages, when nobody has used it for {idle}."
        yield Finding("warning", subject, what, "Set auto-delete on idle to never.")
    if getattr(found, "forward_to", None):
        yield Finding(
            "error", subject, "It forwards its messages, so its consumers get none.", "Remove the forwarding."
        )
