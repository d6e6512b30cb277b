"""Topics, queues and subscriptions: made, found and removed.

A group's queue lets its topic send to it, and nobody else who could not anyway; its subscription delivers raw, so that a
message is the same with SNS as without.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.errors import ERRORS, EXISTS, FORBIDDEN, MISSING, ask, bare, code_of, find
from things_kit.brokers.sqs.options import Settings
from things_kit.brokers.sqs.policy import allowing, queue_arn
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.messaging.errors import ConfigError, UnsupportedError

GROUP_TAG: Final = "things-kit-group"
"""Tag of a queue that is a topic by itself: the one group that it has."""

ALIVE_TAG: Final = "things-kit-alive"
"""Tag of an ephemeral group's queue: when its consumer was last there, in seconds since 1970."""

HEARTBEAT: Final = 300.0
"""Seconds between two such signs of life."""

DEAD: Final = 6 * HEARTBEAT
"""Seconds without one after which a queue is left over from a process that died."""

COUNTS: Final = [
    "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed",
]  # fmt: skip
"""The attributes of a queue that together are its lag: what is ready, handed out, and delayed."""

RECENT: Final = 60.0
"""Seconds for which a queue that was just subscribed counts as a subscriber: AWS tells of it with some delay."""

AGAIN: Final = 1.0
"""Seconds for which the queues of a topic are taken for all that there are: AWS is asked for them 30 times a second at the most."""


class Admin:
    """What there is at AWS, as far as this connection has asked."""

    def __init__(self, settings: Settings, clients: Clients) -> None:
        self._settings = settings
        self._clients = clients
        self._topics: dict[str, str] = {}
        self._queues: dict[tuple[str, str], str] = {}
        self._groups: dict[str, str] = {}
        self._subscribed: dict[
            str, dict[str, float]
        ] = {}  # of each topic the names of queues, and since when
        self._members: dict[
            str, tuple[float, dict[str, str]]
        ] = {}  # the URLs of queues by their names, and as of when

    # --- topics

    async def declare_topic(self, topic: str) -> str:
        """Create the topic where it is missing; returns its ARN, or its queue's URL where there is no SNS."""
        if self._settings.by_queue:
            return await self._declare_queue(names.only_queue_name(topic), topic)
        name = names.topic_name(topic)
        attributes = self._settings.attributes_of_topic(name)
        make = self._clients.sns.create_topic(Name=name, Attributes=attributes)
        self._topics[topic] = (await ask(make, f"declaring {topic!r}"))["TopicArn"]
        return self._topics[topic]

    async def topic_arn(self, topic: str) -> str | None:
        """The ARN of a topic that exists as far as is known; None if there is none."""
        if topic not in self._topics:
            found = await self._look_for(names.topic_name(topic))
            if found is None:
                return None
            self._topics[topic] = found
        return self._topics[topic]

    async def _look_for(self, name: str) -> str | None:
        sns, doing = self._clients.sns, f"looking for the topic {name!r}"
        if self._settings.options.account is not None:
            region = sns.meta.region_name
            arn = f"arn:{sns.meta.partition}:sns:{region}:{self._settings.options.account}:{name}"
            return None if await find(sns.get_topic_attributes(TopicArn=arn), doing) is None else arn
        async for page in _pages(sns.list_topics, doing):
            for entry in page.get("Topics", ()):
                if entry["TopicArn"].rpartition(":")[2] == name:
                    return str(entry["TopicArn"])
        return None

    async def topics(self) -> list[str]:
        """All topics of the account; where each is a queue by itself, all queues."""
        doing = "asking for all topics"
        if self._settings.by_queue:
            pages = _pages(self._clients.sqs.list_queues, doing, MaxResults=1000)
            found = [url.rpartition("/")[2] async for page in pages for url in page.get("QueueUrls", ())]
        else:
            pages = _pages(self._clients.sns.list_topics, doing)
            found = [
                each["TopicArn"].rpartition(":")[2] async for page in pages for each in page.get("Topics", ())
            ]
        return [names.unescaped(each) for each in found]

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic, by the names of their queues."""
        if self._settings.by_queue:
            url = await self._url_of(names.only_queue_name(topic))
            group = None if url is None else await self._noted_group(url)
            return [] if group is None else [group]
        queues = [queue async for _, queue in self.subscriptions(topic) if not names.is_ephemeral(queue)]
        return [names.group_of(queue, topic) for queue in queues]

    def forget(self, topic: str) -> None:
        """The topic, or a queue of it, turned out to be gone."""
        self._topics.pop(topic, None)
        self._subscribed.pop(topic, None)
        self._members.pop(topic, None)
        for known in [key for key in self._queues if key[0] == topic]:
            del self._queues[known]

    # --- groups

    def queue_of(self, topic: str, group: str) -> str:
        """The name of a group's queue."""
        if self._settings.by_queue:
            return names.only_queue_name(topic)
        return names.queue_name(topic, group)

    async def queue_url(self, topic: str, group: str) -> str | None:
        """The URL of a group's queue; None if there is none."""
        known = self._queues.get((topic, group))
        if known is None:
            known = await self._url_of(self.queue_of(topic, group))
            if known is not None:
                self._queues[topic, group] = known
        return known

    async def _url_of(self, name: str) -> str | None:
        found = await find(self._clients.sqs.get_queue_url(QueueName=name), f"looking for the queue {name!r}")
        return None if found is None else str(found["QueueUrl"])

    async def declare_group(self, topic: str, group: str) -> str:
        """Create a group's queue and its subscription where they are missing; returns the queue's URL."""
        if self._settings.by_queue:
            url = await self._declare_queue(names.only_queue_name(topic), topic)
            await self.check_only_group(topic, group, url, note=True)
        else:
            url = await self._declare_subscribed(topic, names.queue_name(topic, group), {})
        self._queues[topic, group] = url
        return url

    async def join(self, subscription: Subscription) -> str:
        """The URL of the queue of a subscription, made where it is missing. Raises ConfigError if it may not be."""
        topic, group = subscription.topic, subscription.group
        if subscription.ephemeral:
            if not subscription.create and await self.topic_arn(topic) is None:
                raise ConfigError(f"there is no topic {topic!r}: declare it first")
            return await self.declare_ephemeral(topic)
        if subscription.create:
            return await self.declare_group(topic, group)
        url = await self.queue_url(topic, group)
        if url is None:
            raise ConfigError(
                f"there is no queue {self.queue_of(topic, group)!r} for the group {group!r} of {topic!r}: "
                "declare it first"
            )
        if self._settings.by_queue:
            await self.check_only_group(topic, group, url, note=False)
        return url

    async def declare_ephemeral(self, topic: str) -> str:
        """A queue for a group without a name, which begins now; those that nobody uses any more are removed."""
        if self._settings.by_queue:
            raise UnsupportedError(
                f"{self._settings.url.display}: with mode=queue a topic has one group, so a consumer needs its name"
            )
        url = await self._declare_subscribed(topic, names.ephemeral_queue_name(topic), self.sign_of_life())
        await self._reap(topic)
        return url

    async def _declare_subscribed(self, topic: str, queue: str, tags: dict[str, str]) -> str:
        return await self._subscribe(
            topic, self._topics.get(topic) or await self.declare_topic(topic), queue, tags
        )

    async def _subscribe(self, topic: str, arn: str, queue: str, tags: dict[str, str]) -> str:
        url = await self._declare_queue(queue, topic, policy=(arn, queue_arn(arn, queue)), tags=tags)
        asked = self._clients.sns.subscribe(
            TopicArn=arn,
            Protocol="sqs",
            Endpoint=queue_arn(arn, queue),
            Attributes={"RawMessageDelivery": "true"},
            ReturnSubscriptionArn=True,
        )
        try:
            await ask(asked, f"subscribing {queue!r} to {topic!r}")
        except ConnectionLost:
            self.forget(topic)  # it may be gone
            raise
        self._subscribed.setdefault(topic, {})[queue] = time.monotonic()
        self._members.pop(topic, None)
        return url

    async def queues(self, topic: str) -> list[str] | None:
        """The URLs of the queues of all groups that there are, as of a second ago; None if there is no such topic."""
        if self._settings.by_queue:
            url = await self.queue_url(topic, "")
            return None if url is None else [url]
        asked, known = self._members.get(topic, (-math.inf, {}))
        now = time.monotonic()
        if now - asked > AGAIN:
            if await self.topic_arn(topic) is None:
                return None
            found = [queue async for _, queue in self.subscriptions(topic) if names.belongs(queue, topic)]
            urls = [
                (queue, known.get(queue) or await self._url_of(queue))
                for queue in {*found, *self._recent(topic)}
            ]
            known = {queue: url for queue, url in urls if url is not None}
            self._members[topic] = now, known
        return list(known.values())

    def _recent(self, topic: str) -> list[str]:
        """The names of the queues that we have just subscribed."""
        now = time.monotonic()
        return [queue for queue, since in self._subscribed.get(topic, {}).items() if now - since < RECENT]

    async def keep_subscribed(self, topic: str, url: str) -> None:
        """Make a queue and its subscription anew where either was removed, as it is with its topic.

        Raises:
            ConnectionLost: There is no such topic any more.
        """
        if self._settings.by_queue:
            return
        arn = await self.topic_arn(topic)
        if arn is None:
            raise ConnectionLost(f"the topic {topic!r} was removed")
        queue = url.rpartition("/")[2]
        await self._subscribe(topic, arn, queue, self.sign_of_life() if names.is_ephemeral(queue) else {})

    async def has_subscribers(self, topic: str) -> bool | None:
        """Whether anybody is subscribed to a topic, by any protocol; None if we may not ask."""
        if self._recent(topic):
            return True
        try:
            arn = await self.topic_arn(topic)
            if arn is None:
                return False
            doing = f"asking who is subscribed to {topic!r}"
            found = await bare(self._clients.sns.list_subscriptions_by_topic(TopicArn=arn), doing)
        except ClientError as error:
            if code_of(error) in MISSING:
                self.forget(topic)
                return False
            if code_of(error) in FORBIDDEN:
                return None
            raise ERRORS.translate(error, doing) from error
        return bool(found.get("Subscriptions"))

    async def _declare_queue(
        self,
        name: str,
        what: str,
        policy: tuple[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> str:
        attributes = self._settings.attributes_of_queue(name)
        if policy is not None:
            attributes["Policy"] = json.dumps(allowing({}, *policy))
        try:
            made = await bare(
                self._clients.sqs.create_queue(QueueName=name, Attributes=attributes, tags=tags or {}),
                f"declaring the queue {name!r}",
            )
            return str(made["QueueUrl"])
        except ClientError as error:
            if code_of(error) not in EXISTS:
                raise ERRORS.translate(error, f"declaring the queue {name!r} of {what!r}") from error
        return await self._adopt(name, policy)

    async def _adopt(self, name: str, policy: tuple[str, str] | None) -> str:
        """A queue with other attributes is as good, if only its topic may send to it."""
        url = await self._url_of(name)
        if url is None:
            raise ConnectionLost(f"the queue {name!r} was removed while it was declared")
        if policy is not None:
            doing = f"letting a topic send to the queue {name!r}"
            found = await ask(
                self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"]), doing
            )
            before = json.loads(found.get("Attributes", {}).get("Policy") or "{}")
            after = allowing(before, *policy)
            if after != before:
                setting = {"Policy": json.dumps(after)}
                await ask(self._clients.sqs.set_queue_attributes(QueueUrl=url, Attributes=setting), doing)
        return url

    async def check_only_group(self, topic: str, group: str, url: str, *, note: bool) -> None:
        """A queue without SNS has one group, whose name is noted at the queue. Raises UnsupportedError for another."""
        own = names.escaped(group)[:256]
        known = self._groups.get(topic) or await self._noted_group(url)
        if known is None and note:
            tags = self._clients.sqs.tag_queue(QueueUrl=url, Tags={GROUP_TAG: own})
            await ask(tags, f"noting the group of {topic!r}")
        known = self._groups[topic] = known or own
        if known != own:
            raise UnsupportedError(
                f"{self._settings.url.display}: with mode=queue a topic has one group; that of {topic!r} is {known!r}, "
                f"so there can be none {group!r}"
            )

    async def _noted_group(self, url: str) -> str | None:
        try:
            found = await bare(
                self._clients.sqs.list_queue_tags(QueueUrl=url), "asking for the group of a queue"
            )
        except ClientError:
            return None  # who may not ask has to know
        return (found.get("Tags") or {}).get(GROUP_TAG)

    # --- what is in a queue

    async def lag(self, topic: str, group: str) -> int:
        """What is in the group's queue: ready, handed out, or delayed. AWS counts approximately."""
        try:
            url = await self.queue_url(topic, group)
        except ConfigError:
            return 0  # what cannot be has nothing
        found = None if url is None else await find(self._counting(url), f"asking for the lag of {topic!r}")
        if found is None:
            self.forget(topic)
        return sum(_counts(found))

    async def ready(self, url: str) -> int | None:
        """What is in a queue for whoever asks; None if we may not ask, or if its order may be held up by what others have."""
        try:
            ready, held, _ = _counts(await bare(self._counting(url), "asking what is in a queue"))
        except ClientError as error:
            if code_of(error) in FORBIDDEN:
                return None
            raise ERRORS.translate(error, "asking what is in a queue") from error
        return None if held and names.is_fifo(url) else ready

    def _counting(self, url: str) -> Any:
        return self._clients.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=COUNTS)

    # --- ephemeral groups

    async def give_sign_of_life(self, url: str) -> None:
        """Say at the queue that its consumer is there."""
        with contextlib.suppress(ClientError):  # who may not tag has to remove queues by hand
            await bare(
                self._clients.sqs.tag_queue(QueueUrl=url, Tags=self.sign_of_life()), "giving a sign of life"
            )

    def sign_of_life(self) -> dict[str, str]:
        """The tag of a queue whose consumer is there."""
        return {ALIVE_TAG: str(int(time.time()))}

    async def _reap(self, topic: str) -> None:
        """Remove the queues of ephemeral groups whose processes died."""
        for subscription, queue in [pair async for pair in self.subscriptions(topic)]:
            if names.is_ephemeral(queue) and names.belongs(queue, topic) and await self.is_dead(queue):
                await self._unsubscribe(subscription)
                await self.delete_queue(await self._url_of(queue))

    async def is_dead(self, queue: str) -> bool:
        """Whether the consumer of an ephemeral group has given no sign of life for long."""
        url = await self._url_of(queue)
        if url is None:
            return True
        try:
            found = await bare(
                self._clients.sqs.list_queue_tags(QueueUrl=url), f"asking for the tags of {queue!r}"
            )
        except ClientError:
            return False
        alive = (found.get("Tags") or {}).get(ALIVE_TAG, "")
        return alive.isdecimal() and time.time() - int(alive) > DEAD

    # --- removing

    async def remove(self, topic: str) -> None:
        """Delete a topic with the queues of its groups."""
        try:
            name = names.only_queue_name(topic) if self._settings.by_queue else names.topic_name(topic)
        except ConfigError:
            return  # what cannot be is not there
        self._groups.pop(topic, None)
        if self._settings.by_queue:
            await self.delete_queue(await self._url_of(name))
        else:
            await self._remove_topic(topic)
        self.forget(topic)

    async def _remove_topic(self, topic: str) -> None:
        arn = await self.topic_arn(topic)
        if arn is None:
            return
        found = [pair async for pair in self.subscriptions(topic)]
        ours = [(subscription, queue) for subscription, queue in found if names.belongs(queue, topic)]
        await asyncio.gather(*(self._unsubscribe(subscription) for subscription, _ in ours))
        await find(self._clients.sns.delete_topic(TopicArn=arn), f"removing {topic!r}")
        for _, queue in ours:
            await self.delete_queue(await self._url_of(queue))

    async def subscriptions(self, topic: str) -> AsyncIterator[tuple[str, str]]:
        """The subscriptions of a topic that are queues: ARN of the subscription, and name of the queue."""
        arn = await self.topic_arn(topic)
        if arn is not None:
            list_them, doing = (
                self._clients.sns.list_subscriptions_by_topic,
                f"asking for the subscriptions of {topic!r}",
            )
            async for page in _pages(list_them, doing, TopicArn=arn):
                for entry in page.get("Subscriptions", ()):
                    if entry["Protocol"] == "sqs":
                        yield entry["SubscriptionArn"], entry["Endpoint"].rpartition(":")[2]

    async def _unsubscribe(self, subscription: str) -> None:
        await find(self._clients.sns.unsubscribe(SubscriptionArn=subscription), "removing a subscription")

    async def delete_queue(self, url: str | None) -> None:
        """Delete a queue; one that is missing is fine."""
        if url is not None:
            await find(self._clients.sqs.delete_queue(QueueUrl=url), "removing a queue")

    async def remove_group(self, topic: str, group: str) -> None:
        """Delete a group's queue, and its subscription.

        Raises:
            UnsupportedError: The group is the whole topic.
        """
        if self._settings.by_queue:
            raise UnsupportedError(
                f"{self._settings.url.display}: with mode=queue the queue {topic!r} is its group: remove the topic"
            )
        try:
            url = await self.queue_url(topic, group)
        except ConfigError:
            return  # what cannot be is not there
        if url is not None:
            await self.delete_subscribed(topic, url)
        self._queues.pop((topic, group), None)

    async def delete_subscribed(self, topic: str, url: str) -> None:
        """Delete a queue and its subscription, such as those of an ephemeral group."""
        queue = url.rpartition("/")[2]
        for subscription, name in [pair async for pair in self.subscriptions(topic)]:
            if name == queue:
                await self._unsubscribe(subscription)
        await self.delete_queue(url)
        self._subscribed.get(topic, {}).pop(queue, None)
        self._members.pop(topic, None)


def _counts(found: Any) -> Sequence[int]:
    attributes = (found or {}).get("Attributes") or {}
    return [int(attributes.get(name, 0)) for name in COUNTS]


async def _pages(call: Callable[..., Any], doing: str, **asked: Any) -> AsyncIterator[Any]:
    """All pages of a list; none where what it is of is missing."""
    while True:
        page = await find(call(**asked), doing) or {}
        yield page
        if not page.get("NextToken"):
            return
        asked["NextToken"] = page["NextToken"]
