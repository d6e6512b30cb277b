"""How exchanges and queues at a RabbitMQ are, as far as AMQP tells. Reads only."""

from collections.abc import Mapping
from typing import Any, Final

from things_kit.brokers.rabbitmq.admin import Admin
from things_kit.brokers.rabbitmq.names import Names
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.brokers.rabbitmq.renewal import server_version
from things_kit.engine.facts import Facts, GroupFacts, Need, Question, Server, TopicFacts

NEEDS: Final = (Need((3, 10), "delayed retries can be lost when they are due"),)
"""Quorum queues hand on what expired without a loss, and limit the life of messages, from here on."""


async def facts_of(
    properties: Mapping[str, Any], admin: Admin, names: Names, settings: Settings, question: Question
) -> Facts:
    """All facts about the broker, by what it said of itself, and those of the topics and groups asked about."""
    facts = Facts()
    add_server(facts, settings.url.display, properties)
    for topic, group in question.wanted:
        exchange = names.exchange(topic)
        admin.forget(exchange)  # whatever was seen of it before
        there = await admin.has_exchange(exchange)
        facts.topics.append(TopicFacts(name=topic, there=there))
        if group is not None:
            facts.groups.append(await _group(admin, names.queue(topic, group), topic, group))
    asked = next((each for each in facts.groups if each.name == question.group), None)
    if asked is not None and (asked.consumers or 0) > 1 and not settings.options.exclusive:
        what = f"{asked.consumers} consumers share its {asked.place}: RabbitMQ keeps no order between them."
        remedy = (
            "If messages of a key must be in order across processes, use ?exclusive=true and a new group."
        )
        facts.find("ok", f"group {asked.name}", what, remedy)
    return facts


def add_server(facts: Facts, subject: str, properties: Mapping[str, Any]) -> None:
    """Which server it is, by what it says of itself."""
    product = str(properties.get("product", "an unknown broker"))
    version = str(properties.get("version", ""))
    if server_version(properties):
        facts.servers.append(Server(subject, product, version, NEEDS))
        return
    what = f"It is {product} {version}".rstrip() + "; only RabbitMQ has been tried."
    facts.find("warning", subject, what, "Run the conformance suite against it, or use RabbitMQ.")


async def _group(admin: Admin, queue: str, topic: str, group: str) -> GroupFacts:
    place, found = f"queue {queue!r}", await admin.counts(queue)
    if found is None:
        return GroupFacts(name=group, topic=topic, there=False, place=place)
    return GroupFacts(
        name=group, topic=topic, place=place, ready=found.message_count, consumers=found.consumer_count
    )
