"""What `things-kit doctor` finds out about a RabbitMQ: read-only, each finding with its remedy."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from things_kit.brokers.rabbitmq.link import Channel, Link
from things_kit.brokers.rabbitmq.names import Names
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.brokers.rabbitmq.patience import server_version
from things_kit.engine.dead_letter import dead_letter_topic
from things_kit.engine.diagnosis import DEAD_LETTER, Finding, Question
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.names import DEAD_LETTER_GROUP

Ask: TypeAlias = Callable[[Callable[[Channel], Awaitable[Any]]], Awaitable[Any]]

OLDEST: Final = (3, 10)
"""Quorum queues hand on what expired without a loss, and limit the life of messages, from here on."""


async def examine(
    link: Link, ask: Ask, names: Names, settings: Settings, question: Question
) -> Sequence[Finding]:
    """All findings about the broker, and the topic and group if there is a question about them."""
    findings = [*_version(link, settings)]
    if question.topic is None:
        return findings
    topic = question.topic
    findings.append(await _exchange(ask, names, topic))
    if question.group is not None:
        findings.append(await _group(ask, names, settings, topic, question.group))
        dead = question.dead_letter and dead_letter_topic(DEAD_LETTER, topic, question.group)
        if dead:
            findings.append(await _dead_letters(ask, names, dead))
    return findings


def _version(link: Link, settings: Settings) -> list[Finding]:
    subject = settings.url.display
    told = str(link.properties.get("version", ""))
    numbers = server_version(link.properties)
    product = str(link.properties.get("product", "an unknown broker"))
    if not numbers:
        what = f"It is {product} {told}".rstrip() + "; only RabbitMQ has been tried."
        return [Finding("warning", subject, what, "Run the conformance suite against it, or use RabbitMQ.")]
    if numbers < OLDEST:
        what = f"It is RabbitMQ {told}: delayed retries can be lost when they are due."
        return [Finding("error", subject, what, "Use RabbitMQ 3.10 or newer.")]
    return [Finding("ok", subject, f"It is RabbitMQ {told}.")]


async def _exchange(ask: Ask, names: Names, topic: str) -> Finding:
    exchange = names.exchange(topic)

    async def look(channel: Channel) -> None:
        await channel.ask(channel.raw.exchange_declare, exchange, passive=True)

    subject = f"topic {topic}"
    try:
        await ask(look)
    except ConfigError as error:
        remedy = f"Start a consumer, or run `things-kit declare URL {topic}`; check the name."
        return Finding("warning", subject, f"It has no exchange {exchange!r}: {error}.", remedy)
    return Finding("ok", subject, f"It is the exchange {exchange!r}.")


async def _group(ask: Ask, names: Names, settings: Settings, topic: str, group: str) -> Finding:
    queue, subject = names.queue(topic, group), f"group {group}"
    found = await _queue(ask, queue)
    if found is None:
        what = f"There is no queue {queue!r}: what is published meanwhile never reaches this group."
        return Finding("error", subject, what, "Start its consumer, or declare the group before publishing.")
    if found.message_count and not found.consumer_count:
        what = f"{found.message_count:,} messages wait in {queue!r}, and nobody consumes it."
        return Finding("error", subject, what, "Start its consumer, or look why it stopped.")
    if found.consumer_count > 1 and not settings.options.exclusive:
        what = f"{found.consumer_count} consumers share {queue!r}: RabbitMQ keeps no order between them."
        remedy = (
            "If messages of a key must be in order across processes, use ?exclusive=true and a new group."
        )
        return Finding("ok", subject, what, remedy)
    return Finding("ok", subject, f"Its queue {queue!r} has {found.consumer_count} consumers.")


async def _dead_letters(ask: Ask, names: Names, topic: str) -> Finding:
    queue, subject = names.queue(topic, DEAD_LETTER_GROUP), f"dead letter {topic}"
    if await _queue(ask, queue) is None:
        what = "Its group is missing, so dead letters cannot be published and failed messages are tried for ever."
        remedy = f"A consumer declares it at start; or run `things-kit declare URL {topic} --group {DEAD_LETTER_GROUP}`."
        return Finding("warning", subject, what, remedy)
    return Finding("ok", subject, "It has its group.")


async def _queue(ask: Ask, queue: str) -> Any:
    async def look(channel: Channel) -> Any:
        return await channel.ask(channel.raw.queue_declare, queue, passive=True)

    try:
        return await ask(look)
    except ConfigError:
        return None
