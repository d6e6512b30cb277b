"""How topics, queues and subscriptions at AWS are. Nothing here changes anything."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.admin import Admin
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.errors import ask, find
from things_kit.brokers.sqs.options import ROOM, SNS_BYTES, SQS_BYTES, Settings
from things_kit.brokers.sqs.policy import lets_in
from things_kit.engine.facts import Blocked, Facts, GroupFacts, Limit, Question, Retention, TopicFacts

Attributes = Mapping[str, str]

LIMIT: Final = {False: 120_000, True: 20_000}
"""Messages that may be in flight in a queue, by whether it is FIFO."""


async def facts_of(settings: Settings, clients: Clients, admin: Admin, question: Question) -> Facts:
    """Everything there is to tell. Raises ConnectionLost."""
    facts = Facts()
    for topic, group in question.wanted:
        with facts.looking(f"topic {topic}"):
            look = Look(facts, settings, clients, admin, topic)
            if settings.by_queue:
                await look.at_queue_alone(group)
            else:
                await look.at_topic(group)
    return facts


class Look:
    """Asks AWS about a topic and a group of it."""

    def __init__(self, facts: Facts, settings: Settings, clients: Clients, admin: Admin, topic: str) -> None:
        self._facts = facts
        self._settings = settings
        self._clients = clients
        self._admin = admin
        self._topic = topic

    async def at_queue_alone(self, group: str | None) -> None:
        """A topic that is a queue, without SNS, which some group has to itself."""
        attributes = await self._queue(group or "")
        self._facts.topics.append(TopicFacts(name=self._topic, there=attributes is not None))
        if group is not None and attributes is not None:
            self._group(group, attributes)

    async def at_topic(self, group: str | None) -> None:
        """A topic, and the group's queue that is subscribed to it."""
        topic, admin = self._topic, self._admin
        arn = await admin.topic_arn(topic)
        if arn is None:
            self._facts.topics.append(TopicFacts(name=topic, there=False))
            return
        subscriptions = [pair async for pair in admin.subscriptions(topic)]
        await self._about_topic(arn, [queue for _, queue in subscriptions])
        if group is None:
            return
        attributes, place = await self._queue(group), admin.queue_of(topic, group)
        subscription = next((each for each, queue in subscriptions if queue == place), None)
        if attributes is None:
            self._facts.groups.append(
                GroupFacts(name=group, topic=topic, there=False, place=f"queue {place!r}")
            )
            return
        found = self._group(group, attributes)
        found.blocked = [
            *self._unsent(arn, attributes),
            *(() if subscription else (self._unsubscribed(group, place),)),
        ]
        if subscription is not None:
            asked = self._clients.sns.get_subscription_attributes(SubscriptionArn=subscription)
            said = (await ask(asked, "asking for a subscription")).get("Attributes") or {}
            self._about_subscription(found, said)

    async def _about_topic(self, arn: str, queues: Sequence[str]) -> None:
        topic, facts = self._topic, self._facts
        asked = self._clients.sns.get_topic_attributes(TopicArn=arn)
        attributes = (await ask(asked, "asking for a topic")).get("Attributes") or {}
        others = int(attributes.get("SubscriptionsConfirmed", 0))
        facts.topics.append(
            TopicFacts(
                name=topic,
                groups=queues or ["of another kind"] * others,
                largest=int(attributes.get("MaximumMessageSize", SNS_BYTES)) - ROOM,
                largest_setting="MaximumMessageSize",
            )
        )
        for queue in queues:
            left = names.is_ephemeral(queue) and names.belongs(queue, topic)
            if left and await self._admin.is_dead(queue):
                what = f"The queue {queue!r} is left over from a consumer without a group whose process died."
                remedy = "The next such consumer of the topic removes it; or delete it with its subscription."
                facts.find("warning", f"topic {topic}", what, remedy)

    async def _queue(self, group: str) -> Attributes | None:
        """What SQS says of a group's queue; None where it is missing."""
        url = await self._admin.queue_url(self._topic, group)
        if url is None:
            return None
        asked = self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        found = await find(asked, "asking for a queue")
        if found is None:
            self._admin.forget(self._topic)
        return None if found is None else found.get("Attributes") or {}

    def _group(self, group: str, attributes: Attributes) -> GroupFacts:
        name, subject = attributes.get("QueueArn", "").rpartition(":")[2], f"group {group}"
        held = int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0))
        largest = int(attributes.get("MaximumMessageSize", SQS_BYTES))
        redrive = json.loads(attributes.get("RedrivePolicy") or "{}")
        kept = float(attributes.get("MessageRetentionPeriod", 345_600))
        found = GroupFacts(
            name=group,
            topic=self._topic,
            place=f"queue {name!r}",
            ready=int(attributes.get("ApproximateNumberOfMessages", 0)),
            held=held,
            retention=Retention(kept, "MessageRetentionPeriod"),
            largest=largest if largest < self._settings.bytes_at_once else None,
            deliveries=redrive.get("maxReceiveCount"),
            goes_to="the queue of its RedrivePolicy",
        )
        self._facts.groups.append(found)
        remedy = "Lower max_in_flight, and look for consumers that settle nothing."
        most = LIMIT[names.is_fifo(name)]
        self._facts.limits.append(
            Limit(subject, held, most, "messages in flight", "SQS hands out no more", remedy)
        )
        if int(attributes.get("DelaySeconds", 0)):
            what = (
                f"Every message waits {attributes['DelaySeconds']} s before it is handed out (DelaySeconds)."
            )
            self._facts.find("warning", subject, what, "Set its DelaySeconds to 0, unless that is meant.")
        return found

    def _unsent(self, topic_arn: str, attributes: Attributes) -> Sequence[Blocked]:
        if lets_in(attributes.get("Policy", ""), topic_arn):
            return ()
        what = "Its policy does not let the topic send to it: SNS drops what it may not deliver."
        return [Blocked(what, "Declare the group again, which adds the statement to the policy.")]

    def _unsubscribed(self, group: str, place: str) -> Blocked:
        what = (
            f"Its queue {place!r} is not subscribed: nothing that is published to {self._topic} reaches it."
        )
        remedy = f"Declare it: `things-kit declare URL {self._topic} --group {group}`, or start its consumer."
        return Blocked(what, remedy)

    def _about_subscription(self, found: GroupFacts, attributes: Attributes) -> None:
        if attributes.get("RawMessageDelivery") != "true":
            what = "Its subscription is not raw: messages arrive wrapped in JSON of SNS, without key, id and headers."
            remedy = "Set the subscription's RawMessageDelivery to true."
            self._facts.find("error", f"group {found.name}", what, remedy)
        if attributes.get("FilterPolicy") not in {None, "", "{}"}:
            found.filter = attributes["FilterPolicy"]
