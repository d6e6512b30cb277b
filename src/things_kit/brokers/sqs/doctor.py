"""What in the topics, queues and subscriptions at AWS would lose messages or hold them up.

Nothing here changes anything. Attributes are judged by functions of what they say, so that they can be tried without a
queue that has them.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.errors import MISSING, bare, code_of, translated
from things_kit.brokers.sqs.options import SNS_BYTES, SQS_BYTES, Settings
from things_kit.brokers.sqs.topology import Topology
from things_kit.engine.diagnosis import Finding, Question
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.names import DEAD_LETTER_GROUP

Attributes = Mapping[str, str]

LIMIT: Final = {False: 120_000, True: 20_000}
"""Messages that may be in flight in a queue, by whether it is FIFO."""

WEEK: Final = 604_800
"""Seconds for which messages should be kept at least: a weekend must not lose any."""


async def examine(
    settings: Settings, clients: Clients, topology: Topology, question: Question
) -> Sequence[Finding]:
    """Everything there is to find. Raises ConnectionLost."""
    return [finding async for finding in Examination(settings, clients, topology, question).findings()]


class Examination:
    """Asks AWS, and has the answers judged."""

    def __init__(self, settings: Settings, clients: Clients, topology: Topology, question: Question) -> None:
        self._settings = settings
        self._clients = clients
        self._topology = topology
        self._question = question

    async def findings(self) -> AsyncIterator[Finding]:
        """One after another, as they are found."""
        question = self._question
        wanted = [(question.topic, question.group), (question.dead_letter, DEAD_LETTER_GROUP)]
        for topic, group in wanted:
            if topic is None:
                continue
            try:
                async for finding in self._topic(topic, group, missing=topic == question.topic):
                    yield finding
            except (ClientError, ConfigError) as error:
                trouble = translated(error, "asking AWS") if isinstance(error, ClientError) else error
                if isinstance(trouble, ConnectionLost):
                    raise trouble from error
                remedy = (
                    "Ask with credentials that may read the attributes of topics, subscriptions and queues."
                )
                what = f"Not everything could be looked at: {trouble}."
                yield Finding("warning", f"topic {topic}", what, remedy)

    async def _topic(self, topic: str, group: str | None, *, missing: bool) -> AsyncIterator[Finding]:
        arn = None
        if not self._settings.by_queue:
            arn = await self._topology.topic_arn(topic)
            if arn is None:
                if missing:
                    yield missing_topic(topic, created=self._settings.url.engine.declare)
                return
            async for finding in self._subscriptions(topic, arn, group):
                yield finding
        if group is not None:
            async for finding in self._queue(topic, group, arn):
                yield finding

    async def _subscriptions(self, topic: str, arn: str, group: str | None) -> AsyncIterator[Finding]:
        found = [pair async for pair in self._topology.subscriptions(topic)]
        attributes = await self._topic_attributes(arn)
        for finding in judge_topic(topic, attributes, found, self._settings):
            yield finding
        wanted = None if group is None else self._topology.queue_of(topic, group)
        for subscription, queue in found:
            if queue == wanted:
                for finding in judge_subscription(queue, await self._subscription_attributes(subscription)):
                    yield finding
            elif (
                names.is_ephemeral(queue)
                and names.belongs(queue, topic)
                and await self._topology.is_dead(queue)
            ):
                what = f"The queue {queue!r} is left over from a consumer without a group whose process died."
                remedy = "The next such consumer of the topic removes it; or delete it with its subscription."
                yield Finding("warning", f"topic {topic}", what, remedy)
        if wanted is not None and wanted not in {queue for _, queue in found}:
            what = f"Its queue {wanted!r} is not subscribed: nothing that is published to {topic} reaches it."
            remedy = f"Declare it: `things-kit declare URL {topic} --group {group}`, or start its consumer."
            yield Finding("error", f"group {group}", what, remedy)

    async def _topic_attributes(self, arn: str) -> Attributes:
        found = await bare(self._clients.sns.get_topic_attributes(TopicArn=arn), "asking for a topic")
        return found.get("Attributes") or {}

    async def _subscription_attributes(self, arn: str) -> Attributes:
        asked = self._clients.sns.get_subscription_attributes(SubscriptionArn=arn)
        return (await bare(asked, "asking for a subscription")).get("Attributes") or {}

    async def _queue(self, topic: str, group: str, topic_arn: str | None) -> AsyncIterator[Finding]:
        url = await self._topology.queue_url(topic, group)
        if url is None:
            return
        asked = self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        try:
            attributes = (await bare(asked, "asking for a queue")).get("Attributes") or {}
        except ClientError as error:
            if code_of(error) not in MISSING:
                raise
            self._topology.forget(topic)
            return
        for finding in judge_queue(attributes, topic_arn, self._settings, self._question):
            yield finding


def missing_topic(topic: str, *, created: bool) -> Finding:
    """There is no such topic."""
    if created:
        remedy = "Check the region and the spelling; who first publishes or consumes creates it."
        return Finding("warning", f"topic {topic}", "There is no such topic at SNS.", remedy)
    what = "There is no such topic at SNS, and declare=false creates none."
    return Finding("error", f"topic {topic}", what, f"Create it: `things-kit declare URL {topic}`.")


def judge_topic(
    topic: str, attributes: Attributes, subscriptions: Sequence[tuple[str, str]], settings: Settings
) -> Iterator[Finding]:
    """Whether what is published to a topic reaches anybody, and is taken at all."""
    subject = f"topic {topic}"
    others = int(attributes.get("SubscriptionsConfirmed", 0))
    if not subscriptions and not others:
        what = "Nobody is subscribed: what is published is confirmed by SNS, and gone."
        yield Finding("warning", subject, what, "Declare the groups before anything is published.")
    else:
        yield Finding("ok", subject, f"It has {max(len(subscriptions), others)} subscriptions.")
    taken = int(attributes.get("MaximumMessageSize", SNS_BYTES))
    if taken < settings.bytes_at_once:
        what = f"It takes {taken:,} bytes, and the URL promises {settings.bytes_at_once:,}: larger messages are refused."
        remedy = "Raise the topic's MaximumMessageSize, or lower max_message_bytes."
        yield Finding("warning", subject, what, remedy)


def judge_subscription(queue: str, attributes: Attributes) -> Iterator[Finding]:
    """Whether a queue gets all messages of its topic, as they are."""
    subject = f"queue {queue}"
    if attributes.get("RawMessageDelivery") != "true":
        what = "Its subscription is not raw: messages arrive wrapped in JSON of SNS, without key, id and headers."
        yield Finding("error", subject, what, "Set the subscription's RawMessageDelivery to true.")
    if attributes.get("FilterPolicy") not in {None, "", "{}"}:
        what = "Its subscription has a filter policy: what does not pass never arrives."
        yield Finding("warning", subject, what, "Remove the filter policy, unless that is meant.")


def judge_queue(
    attributes: Attributes, topic_arn: str | None, settings: Settings, question: Question
) -> Iterator[Finding]:
    """Whether a queue takes what its topic sends, keeps it for long enough, and hands it out."""
    name = attributes.get("QueueArn", "").rpartition(":")[2]
    subject = f"queue {name}"
    if topic_arn is not None and not lets_in(attributes.get("Policy", ""), topic_arn):
        what = "Its policy does not let the topic send to it: SNS drops what it may not deliver."
        yield Finding(
            "error", subject, what, "Declare the group again, which adds the statement to the policy."
        )
    kept = int(attributes.get("MessageRetentionPeriod", 345_600))
    if question.retry_span is not None and kept < question.retry_span:
        what = f"It deletes messages after {kept:,} s, while retries go on for {question.retry_span:,.0f} s."
        yield Finding("error", subject, what, "Raise its MessageRetentionPeriod, up to 14 days.")
    elif kept < WEEK:
        what = f"It deletes messages after {kept / 86_400:.1f} days, handled or not."
        yield Finding("warning", subject, what, "Raise its MessageRetentionPeriod, up to 14 days.")
    else:
        yield Finding("ok", subject, f"It keeps messages for {kept / 86_400:.0f} days.")
    if int(attributes.get("MaximumMessageSize", SQS_BYTES)) < settings.bytes_at_once:
        what = "It takes smaller messages than its topic: SNS drops the larger ones."
        yield Finding("error", subject, what, f"Raise its MaximumMessageSize to {settings.bytes_at_once}.")
    if redrive := attributes.get("RedrivePolicy"):
        count = json.loads(redrive).get("maxReceiveCount")
        what = f"SQS itself moves a message away after {count} deliveries, past this program's dead letter."
        remedy = "Remove its RedrivePolicy, or be sure to look there too."
        yield Finding("warning", subject, what, remedy)
    if int(attributes.get("DelaySeconds", 0)):
        what = f"Every message waits {attributes['DelaySeconds']} s before it is handed out (DelaySeconds)."
        yield Finding("warning", subject, what, "Set its DelaySeconds to 0, unless that is meant.")
    flying = int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0))
    limit = LIMIT[names.is_fifo(name)]
    if flying > 0.8 * limit:
        what = f"{flying:,} of its messages are in flight; SQS hands out nothing beyond {limit:,}."
        yield Finding(
            "error", subject, what, "Lower max_in_flight, and look for consumers that settle nothing."
        )


def lets_in(policy: str, topic_arn: str) -> bool:
    """Whether a policy has a statement that lets SNS send, at least from this topic."""
    try:
        statements: Any = json.loads(policy or "{}").get("Statement", [])
    except ValueError:
        return False
    statements = [statements] if isinstance(statements, dict) else statements
    return any(_allows(statement, topic_arn) for statement in statements)


def _allows(statement: Mapping[str, Any], topic_arn: str) -> bool:
    if statement.get("Effect") != "Allow":
        return False
    actions = statement.get("Action")
    actions = [actions] if isinstance(actions, str) else actions or []
    if not {str(action).lower() for action in actions} & {"sqs:sendmessage", "sqs:*", "*"}:
        return False
    conditions: Mapping[str, Any] = statement.get("Condition") or {}
    sources = [
        source
        for condition in conditions.values()
        for name, value in condition.items()
        if name.lower() == "aws:sourcearn"
        for source in ([value] if isinstance(value, str) else value)
    ]
    return not sources or any(_matches(source, topic_arn) for source in sources)


def _matches(pattern: str, arn: str) -> bool:
    start, star, _ = pattern.partition("*")
    return arn.startswith(start) if star else arn == pattern
