"""How entities of Service Bus are: what loses messages there, hides them, or holds them up. Changes nothing."""

import math
from datetime import timedelta
from typing import Any, Final

from azure.servicebus.management import SqlRuleFilter

from things_kit.brokers.servicebus.admin import IDLE, Admin, collected, misfits, rule_of
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.engine.facts import Blocked, Facts, GroupFacts, Limit, Question, Retention, TopicFacts

FEW: Final = 100
"""Deliveries below which a message is soon put aside by the service: a killed process costs each message that it held one."""

ENDLESS: Final = timedelta(days=36_500)


async def facts_of(settings: Settings, admin: Admin, question: Question) -> Facts:
    """Everything there is to tell about a topic and its groups."""
    facts = Facts()
    if not admin.known:
        remedy = "Give ?admin_port=…; without it nothing can be declared, and lag is unknown."
        facts.find("warning", settings.url.display, "The emulator's management API is not known.", remedy)
        return facts
    for topic, group in question.wanted:
        with facts.looking(f"topic {topic}"):
            look = Look(facts, settings, admin, topic)
            await (look.at_queue(group) if settings.by_queue else look.at_topic(group))
    return facts


class Look:
    """Asks about a topic and its groups."""

    def __init__(self, facts: Facts, settings: Settings, admin: Admin, topic: str) -> None:
        self._facts = facts
        self._settings = settings
        self._admin = admin
        self._topic = topic
        self._entity = entity_of(topic)
        self._doing = f"asking about the topic {topic!r}"

    async def at_queue(self, group: str | None) -> None:
        """A topic that is a plain queue, which one group has to itself."""
        ask, client = self._admin.ask, self._admin.client
        found = await ask(client.get_queue(self._entity), self._doing)
        self._facts.topics.append(TopicFacts(name=self._topic, there=found is not None))
        if found is not None:
            counts = await ask(client.get_queue_runtime_properties(self._entity), self._doing)
            self._stored(found, counts)
            self._facts.groups.append(self._group(group or self._topic, "queue", found, counts))

    async def at_topic(self, group: str | None) -> None:
        """A topic, and its subscriptions."""
        ask, client = self._admin.ask, self._admin.client
        found = await ask(client.get_topic(self._entity), self._doing)
        if found is None:
            self._facts.topics.append(TopicFacts(name=self._topic, there=False))
            return
        self._stored(found, await ask(client.get_topic_runtime_properties(self._entity), self._doing))
        subscriptions = await ask(collected(client.list_subscriptions(self._entity)), self._doing) or []
        names = [each.name for each in subscriptions]
        self._facts.topics.append(TopicFacts(name=self._topic, groups=names))
        wanted = subscription_of(group).lower() if group is not None else None
        for each in subscriptions:
            asked = group if group is not None and each.name.lower() == wanted else each.name
            counted = client.get_subscription_runtime_properties(self._entity, each.name)
            about = self._group(asked, "subscription", each, await ask(counted, self._doing))
            about.blocked = [*about.blocked, *await self._ruled_out(each.name, asked)]
            self._facts.groups.append(about)
        if group is not None and wanted not in {name.lower() for name in names}:
            self._facts.groups.append(
                GroupFacts(name=group, topic=self._topic, there=False, place="subscription")
            )

    def _stored(self, found: Any, counts: Any) -> None:
        """What keeps messages."""
        subject = f"topic {self._topic}"
        if "Disabled" in str(found.status):
            self._facts.find(
                "error", subject, f"It is disabled ({found.status}).", "Enable it in the portal."
            )
        if found.max_size_in_megabytes:
            used, most = (counts and counts.size_in_bytes) or 0, found.max_size_in_megabytes * 2**20
            remedy = "Make it larger, or take messages faster."
            self._facts.limits.append(Limit(subject, used, most, "bytes", "it refuses messages", remedy))
        if found.enable_partitioning:
            what = "It is partitioned: it keeps order only for messages with the same session."
            remedy = "Use sessions (?sessions=true) where the order of a key matters."
            self._facts.find("warning", subject, what, remedy)

    def _group(self, name: str, kind: str, found: Any, counts: Any) -> GroupFacts:
        """What hands messages out: a subscription, or a queue."""
        if counts is not None and counts.dead_letter_message_count:
            what = f"Service Bus has moved {counts.dead_letter_message_count:,} messages to its own dead-letter queue."
            remedy = "Look at them in the portal: they were delivered too often, or expired."
            self._facts.find("warning", f"group {name}", what, remedy)
        ttl, idle = found.default_message_time_to_live, found.auto_delete_on_idle
        few = (found.max_delivery_count or 0) < FEW
        blocked = [*misfits(found, self._settings.options)]
        if getattr(found, "forward_to", None):
            blocked.append(("It forwards its messages, so its consumers get none.", "Remove the forwarding."))
        return GroupFacts(
            name=name,
            topic=self._topic,
            place=f"{kind} {found.name!r}",
            ready=None if counts is None else counts.active_message_count,
            retention=Retention(_seconds(ttl), "default time to live"),
            deliveries=found.max_delivery_count if few else None,
            goes_to="its own dead-letter queue",
            idle=_seconds(idle) if isinstance(idle, timedelta) and IDLE < idle < ENDLESS else None,
            blocked=[Blocked(*each) for each in blocked],
        )

    async def _ruled_out(self, name: str, group: str) -> list[Blocked]:
        """Whether a subscription lets in what is for all, and nothing that is for others."""
        listed = self._admin.client.list_rules(self._entity, name)
        rules = await self._admin.ask(collected(listed), self._doing) or []
        ours = rule_of(name).sql_expression
        remedy = f"Give it the rule: {ours}"
        if not rules:
            return [Blocked("Its subscription has no rule, so it gets nothing.", remedy)]
        if not any(
            isinstance(each.filter, SqlRuleFilter) and each.filter.sql_expression == ours for each in rules
        ):
            what = (
                "Its subscription has rules of somebody else: delayed and replayed messages of other groups may reach it, "
                "which its consumers skip, or its own may not."
            )
            self._facts.find("warning", f"group {group}", what, remedy)
        return []


def _seconds(duration: Any) -> float:
    endless = not isinstance(duration, timedelta) or duration >= ENDLESS
    return math.inf if endless else duration.total_seconds()
