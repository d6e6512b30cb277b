"""Topics and subscriptions, and the calls of Google's API that concern them."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf import empty_pb2
from google.pubsub_v1 import types

from things_kit.testing.servers.pubsub_service.backlog import Subscribed, Taker
from things_kit.testing.servers.pubsub_service.journal import Journal
from things_kit.testing.servers.pubsub_service.protocol import (
    DAY,
    MESSAGE,
    PUBLISHED,
    PULLED,
    SOUGHT,
    STREAMED,
    SUBSCRIPTION,
    TOPIC,
    TOPIC_SUBSCRIPTIONS,
    TOPICS,
    Code,
    Proto,
    Refusal,
    check_message,
    check_name,
    check_settings,
    update,
)  # fmt: skip

DELETED: Final = "_deleted-topic_"
PULL: Final = 0.2
"""Seconds that a pull waits for a first message; how many the service waits it does not say."""


class Service:
    """Topics and subscriptions, and the calls that concern them."""

    def __init__(self, journal: Journal) -> None:
        self.topics: dict[str, Proto] = {}
        self.subscriptions: dict[str, Subscribed] = {}
        self.retained: dict[str, list[tuple[int, Proto]]] = {}
        self.numbers = itertools.count(1)
        self._journal = journal
        for what, name, content in list(journal.read()):
            self._replay(what, name, content)

    def _replay(self, what: str, name: str, content: Any) -> None:
        if what == "topic":
            self._add_topic(TOPIC.FromString(content))
        elif what == "remove topic":
            self._remove_topic(name)
        elif what == "subscription":
            self._add_subscription(SUBSCRIPTION.FromString(content))
        elif what == "remove subscription":
            self.subscriptions.pop(name, None)
        elif what == "publish":
            self._publish(name, [MESSAGE.FromString(each) for each in content])
        elif what == "done":
            for number in content:
                if (entry := self.subscriptions[name].entries.get(number)) is not None:
                    self.subscriptions[name].drop(entry)
        elif what == "seek":
            self._seek(name, content)

    def _add_topic(self, settings: Proto) -> None:
        self.topics[settings.name] = settings

    def _remove_topic(self, name: str) -> None:
        del self.topics[name]
        self.retained.pop(name, None)
        for subscribed in self.subscriptions.values():
            if subscribed.settings.topic == name:
                subscribed.settings.topic = DELETED

    def _add_subscription(self, settings: Proto) -> None:
        known = self.subscriptions.get(settings.name)
        if known is None:
            self.subscriptions[settings.name] = Subscribed(settings)
        else:
            known.settings = settings

    def _publish(self, topic: str, messages: list[Proto]) -> list[str]:
        subscribed = [each for each in self.subscriptions.values() if each.settings.topic == topic]
        retains = self.topics[topic].message_retention_duration.seconds > 0
        for message in messages:
            number = next(self.numbers)
            message.message_id = str(number)
            for each in subscribed:
                each.add(number, message)
            if retains:
                self.retained.setdefault(topic, []).append((number, message))
        return [message.message_id for message in messages]

    def _seek(self, name: str, since: float) -> None:
        subscribed = self.subscriptions[name]
        for number, message in self.retained.get(subscribed.settings.topic, ()):
            published = message.publish_time.ToNanoseconds() / 1e9
            entry = subscribed.entries.get(number)
            if published < since and entry is not None:
                subscribed.drop(entry)
            elif published >= since and entry is None:
                subscribed.add(number, message)

    # --- topics

    async def create_topic(self, request: Proto) -> Proto:
        """As the service's CreateTopic."""
        check_name(request.name)
        if request.name in self.topics:
            raise Refusal(Code.ALREADY_EXISTS, "Topic already exists")
        self._journal.write("topic", request.name, request.SerializeToString())
        self._add_topic(request)
        return request

    async def update_topic(self, request: Proto) -> Proto:
        """As the service's UpdateTopic."""
        topic = self._topic(request.topic.name)
        update(topic, request.topic, request.update_mask.paths)
        self._journal.write("topic", topic.name, topic.SerializeToString())
        return topic

    async def get_topic(self, request: Proto) -> Proto:
        """As the service's GetTopic."""
        return self._topic(request.topic)

    async def list_topics(self, request: Proto) -> Proto:
        """As the service's ListTopics, in one page."""
        inside = [topic for name, topic in self.topics.items() if name.startswith(f"{request.project}/")]
        return TOPICS(topics=inside)

    async def list_topic_subscriptions(self, request: Proto) -> Proto:
        """As the service's ListTopicSubscriptions, in one page."""
        self._topic(request.topic)
        names = [name for name, each in self.subscriptions.items() if each.settings.topic == request.topic]
        return TOPIC_SUBSCRIPTIONS(subscriptions=names)

    async def delete_topic(self, request: Proto) -> Proto:
        """As the service's DeleteTopic."""
        self._topic(request.topic)
        self._journal.write("remove topic", request.topic, None)
        self._remove_topic(request.topic)
        return empty_pb2.Empty()

    async def publish(self, request: Proto) -> Proto:
        """As the service's Publish."""
        topic = self._topic(request.topic)
        _obey_fault(topic)
        if not 1 <= len(request.messages) <= 1000:
            raise Refusal(Code.INVALID_ARGUMENT, "The value for message_count is too large.")
        if request.ByteSize() > 10_000_000:
            raise Refusal(Code.INVALID_ARGUMENT, "Request payload size exceeds the limit: 10000000 bytes.")
        if len({message.ordering_key for message in request.messages}) > 1:
            raise Refusal(Code.FAILED_PRECONDITION, "All messages must have the same ordering key, or none.")
        refused = topic.labels.get("schema", "\0").encode()
        for message in request.messages:
            check_message(message)
            if message.data == refused:
                raise Refusal(Code.INVALID_ARGUMENT, "Request contains an invalid argument: schema.")
        messages = list(request.messages)
        for message in messages:
            message.publish_time.GetCurrentTime()
        written = [message.SerializeToString() for message in messages]
        self._journal.write("publish", request.topic, written)
        ids = self._publish(request.topic, messages)
        for subscribed in self.subscriptions.values():
            if subscribed.settings.topic == request.topic:
                subscribed.deliver()
        return PUBLISHED(message_ids=ids)

    def _topic(self, name: str) -> Proto:
        topic = self.topics.get(name)
        if topic is None:
            check_name(name)
            raise Refusal(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return topic

    # --- subscriptions

    async def create_subscription(self, request: Proto) -> Proto:
        """As the service's CreateSubscription."""
        check_name(request.name)
        if request.name in self.subscriptions:
            raise Refusal(Code.ALREADY_EXISTS, "Subscription already exists")
        self._topic(request.topic)
        check_settings(request)
        request.ack_deadline_seconds = request.ack_deadline_seconds or 10
        if not request.HasField("message_retention_duration"):
            request.message_retention_duration.seconds = 7 * DAY
        if not request.HasField("expiration_policy"):
            request.expiration_policy.ttl.seconds = 31 * DAY
        request.state = types.Subscription.State.ACTIVE
        self._journal.write("subscription", request.name, request.SerializeToString())
        self._add_subscription(request)
        return request

    async def get_subscription(self, request: Proto) -> Proto:
        """As the service's GetSubscription."""
        return self._subscription(request.subscription).settings

    async def update_subscription(self, request: Proto) -> Proto:
        """As the service's UpdateSubscription."""
        settings = self._subscription(request.subscription.name).settings
        if "enable_message_ordering" in request.update_mask.paths:
            raise Refusal(Code.INVALID_ARGUMENT, "Message ordering cannot be changed.")
        update(settings, request.subscription, request.update_mask.paths)
        self._journal.write("subscription", settings.name, settings.SerializeToString())
        return settings

    async def delete_subscription(self, request: Proto) -> Proto:
        """As the service's DeleteSubscription."""
        subscribed = self._subscription(request.subscription)
        self._journal.write("remove subscription", request.subscription, None)
        del self.subscriptions[request.subscription]
        for taker in subscribed.takers:
            taker.woken.set()
        return empty_pb2.Empty()

    async def seek(self, request: Proto) -> Proto:
        """As the service's Seek, to a time."""
        subscribed = self._subscription(request.subscription)
        since = request.time.ToNanoseconds() / 1e9
        self._journal.write("seek", request.subscription, since)
        self._seek(request.subscription, since)
        subscribed.deliver()
        return SOUGHT()

    async def acknowledge(self, request: Proto) -> Proto:
        """As the service's Acknowledge."""
        subscribed = self._settling(request)
        done, failures = subscribed.acknowledge(request.ack_ids)
        self._journal.write("done", request.subscription, done)
        subscribed.deliver()
        return _answer(failures)

    async def modify_ack_deadline(self, request: Proto) -> Proto:
        """As the service's ModifyAckDeadline."""
        subscribed = self._settling(request)
        if not 0 <= request.ack_deadline_seconds <= 600:
            raise Refusal(Code.INVALID_ARGUMENT, "The ack deadline must be from 0 to 600 seconds.")
        failures = subscribed.modify(request.ack_ids, request.ack_deadline_seconds)
        subscribed.deliver()
        return _answer(failures)

    def _settling(self, request: Proto) -> Subscribed:
        subscribed = self._subscription(request.subscription)
        _obey_fault(subscribed.settings)
        if not request.ack_ids or request.ByteSize() > 512 * 1024:
            raise Refusal(Code.INVALID_ARGUMENT, "Request payload size exceeds the limit: 524288 bytes.")
        return subscribed

    def _subscription(self, name: str) -> Subscribed:
        subscribed = self.subscriptions.get(name)
        if subscribed is None:
            raise Refusal(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        return subscribed

    async def pull(self, request: Proto) -> Proto:
        """As the service's Pull."""
        subscribed = self._subscription(request.subscription)
        _obey_fault(subscribed.settings)
        taker = Taker(min(request.max_messages, 1000), 0)
        subscribed.join(taker)
        try:
            subscribed.deliver()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if request.return_immediately else PULL):
                    await taker.woken.wait()
        finally:
            subscribed.leave(taker)
        return PULLED(received_messages=taker.take())

    async def streaming_pull(self, requests: AsyncIterator[Proto]) -> AsyncIterator[Proto]:
        """As the service's StreamingPull. Acknowledgements come by calls of their own."""
        first = await anext(requests)
        name = first.subscription
        subscribed = self._subscription(name)
        _obey_fault(subscribed.settings)
        if subscribed.settings.push_config.push_endpoint:
            raise Refusal(Code.FAILED_PRECONDITION, "Subscription is configured for push.")
        if not 1 <= first.stream_ack_deadline_seconds <= 600:
            raise Refusal(Code.INVALID_ARGUMENT, "The ack deadline must be from 10 to 600 seconds.")
        capacity = first.max_outstanding_messages or 1000
        taker = Taker(capacity, first.stream_ack_deadline_seconds, first.client_id)
        subscribed.join(taker)
        ended = asyncio.create_task(_end(requests, taker))
        try:
            subscribed.deliver()
            while self.subscriptions.get(name) is subscribed:
                if taken := taker.take():
                    yield STREAMED(received_messages=taken)
                elif ended.done() or taker.followed:
                    return
                else:
                    await taker.woken.wait()
            raise Refusal(Code.NOT_FOUND, f"Resource not found (resource={name.rpartition('/')[2]}).")
        finally:
            subscribed.leave(taker)
            ended.cancel()
            subscribed.deliver()


async def _end(requests: AsyncIterator[Proto], taker: Taker) -> None:
    async for _ in requests:
        pass
    taker.capacity = 0
    taker.woken.set()


def _answer(failures: dict[str, str]) -> Proto:
    if failures:
        raise Refusal(Code.FAILED_PRECONDITION, "Some acknowledgement ids were invalid.", failures)
    return empty_pb2.Empty()


def _obey_fault(resource: Proto) -> None:
    fault = resource.labels.get("fault", "").upper()
    if fault in Code.__members__:
        raise Refusal(Code[fault], "as the test wanted")
