"""Topics and subscriptions at the service: looked at, created, removed."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from google.api_core import exceptions
from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2
from google.pubsub_v1 import types

from things_kit.brokers.pubsub.connection import BRIEFLY, Connection
from things_kit.brokers.pubsub.names import BETWEEN, group_of, subscription_id, topic_id, topic_of
from things_kit.brokers.pubsub.options import DAY, SHORTEST_LEASE, Settings
from things_kit.engine.driver import Subscription
from things_kit.engine.wait_topics import is_wait_topic, lease_for
from things_kit.messaging.errors import ConfigError

DELETED: Final = "_deleted-topic_"
"""What the service calls the topic of a subscription whose topic was deleted."""

WAITING: Final = 7 * DAY
"""Seconds at least for which what waits to be carried on is kept; the longest wait is a day."""

ORDERED: Final = (
    "delete the subscription, so that it is created anew, as this cannot be changed afterwards; or "
    'consume with ordering="none"'
)

_MISSING: Final = exceptions.NotFound


class Admin:
    """What the admin calls of both services are needed for."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._bounds: dict[str, Any] = {"retry": BRIEFLY, "timeout": settings.patience}

    def topic_path(self, topic: str) -> str:
        """The topic's full name."""
        return f"projects/{self._settings.project}/topics/{topic_id(topic)}"

    def subscription_path(self, topic: str, group: str) -> str:
        """The full name of a group's subscription."""
        return f"projects/{self._settings.project}/subscriptions/{subscription_id(topic, group)}"

    # --- topics

    async def declare_topic(self, topic: str) -> None:
        """Create the topic if it is missing."""
        if await self.find_topic(topic) is None:
            await self._create_topic(self.topic_path(topic), f"declaring {topic!r}")

    async def _create_topic(self, path: str, doing: str) -> None:
        wanted = types.Topic(name=path)
        if retain := self._settings.options.retain:
            wanted.message_retention_duration = duration_pb2.Duration(seconds=retain)
        with suppress(exceptions.AlreadyExists), self._during(doing, exceptions.AlreadyExists):
            await self._connection.publisher.create_topic(wanted, **self._bounds)

    async def find_topic(self, topic: str, *through: type[Exception]) -> types.Topic | None:
        """The topic as it is; None if it is missing."""
        doing = f"looking for the topic {topic!r}"
        with suppress(exceptions.NotFound), self._during(doing, _MISSING, *through):
            return await self._connection.publisher.get_topic(topic=self.topic_path(topic), **self._bounds)
        return None

    async def topics(self) -> list[str]:
        """All topics of the project."""
        asked = {"project": f"projects/{self._settings.project}"}
        with self._during("asking for all topics"):
            listed = await self._connection.publisher.list_topics(asked, **self._bounds)
            return [topic_of(each.name.rpartition("/")[2]) async for each in listed]

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic, by the names of their subscriptions; others by those that they have."""
        names = [name.rpartition("/")[2] for name in await self.subscriptions(topic)]
        return [group_of(topic, name) for name in names]

    async def remove_topic(self, topic: str) -> None:
        """Delete the topic and its groups, whether created by us or by others under these names."""
        path = self.topic_path(topic)
        prefix = path.replace("/topics/", "/subscriptions/") + BETWEEN
        with suppress(exceptions.NotFound):
            for name in await self.subscriptions(topic, _MISSING):
                if name.startswith(prefix):
                    await self.remove_subscription(name)
            with self._during(f"removing {topic!r}", _MISSING):
                await self._connection.publisher.delete_topic(topic=path, **self._bounds)

    async def subscriptions(self, topic: str, *through: type[Exception]) -> Sequence[str]:
        """The full names of all subscriptions of a topic, of groups and others."""
        path = self.topic_path(topic)
        with self._during(f"asking who is subscribed to {topic!r}", *through):
            listed = await self._connection.publisher.list_topic_subscriptions(topic=path, **self._bounds)
            return [name async for name in listed]

    async def has_subscriptions(self, topic: str) -> bool | None:
        """Whether a topic has any, or keeps what is published for those to come; None if we may not ask."""
        try:
            if await self.subscriptions(topic, exceptions.NotFound, exceptions.PermissionDenied):
                return True
            found = await self.find_topic(topic, exceptions.PermissionDenied)
        except exceptions.NotFound:
            return False
        except exceptions.PermissionDenied:
            return None
        return found is not None and bool(found.message_retention_duration)

    def _during(self, doing: str, *through: type[Exception]) -> AbstractContextManager[None]:
        return self._connection.during(doing, through=through)

    # --- subscriptions

    async def remove_subscription(self, path: str) -> None:
        """Delete a subscription with what it has."""
        with suppress(exceptions.NotFound), self._during(f"removing {path}", _MISSING):
            await self._connection.subscriber.delete_subscription(subscription=path, **self._bounds)

    async def find(self, topic: str, group: str, *through: type[Exception]) -> types.Subscription | None:
        """The group's subscription as it is; None if it is missing, or left over from a topic that was deleted."""
        path, doing = self.subscription_path(topic, group), f"looking for the group {group!r} of {topic!r}"
        found: types.Subscription | None = None
        with suppress(exceptions.NotFound), self._during(doing, _MISSING, *through):
            found = await self._connection.subscriber.get_subscription(subscription=path, **self._bounds)
        if found is None or found.topic == DELETED:
            return None
        if found.topic != self.topic_path(topic):
            raise ConfigError(f"{path} is a subscription of another topic: {found.topic}")
        return found

    async def is_left(self, topic: str, group: str) -> bool:
        """Whether a group's subscription is left over from a topic that was deleted, or gone; not if we may not ask."""
        try:
            return await self.find(topic, group) is None
        except ConfigError:
            return False

    async def declare_group(
        self, topic: str, group: str, *, ephemeral: bool = False, earliest: bool = True
    ) -> types.Subscription:
        """The group's subscription, created where it is missing, with its topic."""
        found = await self.find(topic, group)
        if found is None:
            found = await self._create(self._wanted(topic, group, ephemeral=ephemeral), topic, group)
            if earliest and self._settings.options.retain:
                await self._rewind(found.name)
        elif self._settings.options.exactly_once and not found.enable_exactly_once_delivery:
            found = await self._make_exactly_once(found)
        return found

    def _wanted(self, topic: str, group: str, *, ephemeral: bool) -> types.Subscription:
        options = self._settings.options
        kept = max(options.expire, WAITING) if is_wait_topic(topic) else options.expire
        wanted = types.Subscription(
            name=self.subscription_path(topic, group),
            topic=self.topic_path(topic),
            ack_deadline_seconds=max(int(lease_for(topic, options.lease)), SHORTEST_LEASE),
            enable_message_ordering=options.ordering != "none",
            enable_exactly_once_delivery=options.exactly_once,
            message_retention_duration=duration_pb2.Duration(seconds=kept),
            # Without a time to live it stays, else it goes after 31 days without a consumer
            expiration_policy=types.ExpirationPolicy(),
        )
        if ephemeral:  # a day is the least that the service takes
            wanted.expiration_policy = types.ExpirationPolicy(ttl=duration_pb2.Duration(seconds=DAY))
            wanted.message_retention_duration = duration_pb2.Duration(seconds=min(options.expire, DAY))
        return wanted

    async def _create(self, wanted: types.Subscription, topic: str, group: str) -> types.Subscription:
        doing = f"declaring the group {group!r} of {topic!r}"
        for _ in range(3):
            try:
                with self._during(doing, exceptions.AlreadyExists, _MISSING):
                    return await self._connection.subscriber.create_subscription(wanted, **self._bounds)
            except exceptions.AlreadyExists:
                found = await self.find(topic, group)
                if found is not None:
                    return found  # somebody else was quicker
                await self.remove_subscription(wanted.name)  # left over, and never to get a message again
            except exceptions.NotFound:
                await self._create_topic(wanted.topic, doing)
        raise ConfigError(f"{doing}: somebody else removes it again and again")

    async def _rewind(self, path: str) -> None:
        """Back to the earliest message that the topic has kept."""
        since = timestamp_pb2.Timestamp(seconds=int(time.time()) - self._settings.options.retain)
        request = types.SeekRequest(subscription=path, time=since)
        with self._during(f"going back to the earliest message of {path}"):
            await self._connection.subscriber.seek(request, **self._bounds)

    async def _make_exactly_once(self, found: types.Subscription) -> types.Subscription:
        found.enable_exactly_once_delivery = True
        mask = field_mask_pb2.FieldMask(paths=["enable_exactly_once_delivery"])
        with self._during(f"changing {found.name} to exactly-once delivery"):
            return await self._connection.subscriber.update_subscription(
                subscription=found, update_mask=mask, **self._bounds
            )

    async def join(self, subscription: Subscription) -> bool:
        """Have a subscription that can be received from as asked; returns whether its delivery is exactly-once.

        Raises:
            ConfigError: It is missing and may not be created, or is not what was asked for.
        """
        topic, group = subscription.topic, subscription.group
        if subscription.ephemeral and not subscription.create and await self.find_topic(topic) is None:
            raise ConfigError(f"there is no topic {topic!r}: declare it first")
        if subscription.create or subscription.ephemeral:
            earliest = subscription.past or (subscription.start == "earliest" and not subscription.ephemeral)
            found = await self.declare_group(
                topic, group, ephemeral=subscription.ephemeral, earliest=earliest
            )
        else:
            try:
                looked = await self.find(topic, group, exceptions.PermissionDenied)
            except (
                exceptions.PermissionDenied
            ):  # the right to consume (Pub/Sub Subscriber) does not include that
                return self._settings.options.exactly_once
            if looked is None:
                raise ConfigError(f"there is no group {group!r} of a topic {topic!r}: declare it first")
            found = looked
        if subscription.ordering != "none" and not found.enable_message_ordering:
            raise ConfigError(f"{found.name} was created without message ordering: {ORDERED}")
        if delivers_elsewhere(found):
            raise ConfigError(
                f"{found.name} delivers to somewhere else by itself, so nothing can be pulled from it"
            )
        return found.enable_exactly_once_delivery


def delivers_elsewhere(found: types.Subscription) -> bool:
    """Whether the service itself takes what comes to somewhere else, so that nothing can be pulled."""
    return bool(
        found.push_config.push_endpoint or found.bigquery_config.table or found.cloud_storage_config.bucket
    )
