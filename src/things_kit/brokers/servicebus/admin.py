"""The management API: topics, subscriptions and queues are made, looked at and removed.

It needs the right to manage, which publishing and receiving do not.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, Final, TypeVar

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline.transport import AioHttpTransport
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import SqlRuleFilter, TrueRuleFilter

from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.errors import MANAGING
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.engine.envelope import GROUP
from things_kit.messaging.errors import ConfigError, ThingsKitError

ResultT = TypeVar("ResultT")

MOST_DELIVERIES: Final = 2000
"""The most that Service Bus can have; after so many it puts a message into its own dead-letter queue."""

IDLE: Final = timedelta(minutes=5)
"""The shortest time after which Service Bus deletes a subscription that nobody uses."""

PATIENCE: Final = 10
"""Seconds that an answer may take."""

GOODBYE: Final = 1.0
"""Seconds that removing an ephemeral group may take."""

NOTE: Final = "things-kit"
NOTE_LENGTH: Final = 1024


class PlainHttp(AioHttpTransport):  # type: ignore[misc, unused-ignore]
    """For emulators, whose management API speaks no TLS, while the client always would."""

    async def send(self, request: Any, **config: Any) -> Any:
        """Send a request without TLS."""
        request.url = request.url.replace("https://", "http://", 1)
        return await super().send(request, **config)


def rule_of(subscription: str) -> SqlRuleFilter:
    """What a subscription of ours lets in: what is for all, and what is for it alone."""
    return SqlRuleFilter(f"NOT EXISTS([{GROUP}]) OR [{GROUP}] = '{subscription}'")


class Admin:
    """What can be done with entities, between `open` and `close`."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings = settings
        self._namespace = client
        self._client: ServiceBusAdministrationClient | None = None
        self._groups: dict[str, str] = {}  # by queue: which group has it

    @property
    def known(self) -> bool:
        """Whether there is a management API to speak with."""
        return not self._settings.options.emulator or self._settings.options.admin_port is not None

    @property
    def client(self) -> ServiceBusAdministrationClient:
        """The client. Raises ConfigError where there can be none."""
        if not self.known:
            raise ConfigError(
                f"{self._settings.display}: topics and groups cannot be looked at or created without the emulator's "
                "management API: give ?admin_port=…, or make them there and connect with ?declare=false"
            )
        if self._client is None:
            self._client = self._made()
        return self._client

    def _made(self) -> ServiceBusAdministrationClient:
        settings, limits = self._settings, {"connection_timeout": PATIENCE, "read_timeout": PATIENCE}
        transport = (PlainHttp if settings.options.emulator else AioHttpTransport)(**limits)
        host = settings.namespace
        if settings.options.emulator:
            host = f"{settings.address[0]}:{settings.options.admin_port}"
        if settings.options.key is None:
            credential = self._namespace.credential
            return ServiceBusAdministrationClient(host, credential, transport=transport, retry_total=0)
        key = settings.options.key.reveal()
        login = f"Endpoint=sb://{host};SharedAccessKeyName={settings.options.key_name};SharedAccessKey={key}"
        return ServiceBusAdministrationClient.from_connection_string(
            login, transport=transport, retry_total=0
        )

    async def close(self) -> None:
        """Close the client, if it was needed."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def ask(self, call: Awaitable[ResultT], doing: str) -> ResultT | None:
        """What the API answers; None for what is not there. Raises ConnectionLost, ConfigError."""
        try:
            with MANAGING.during(doing, through=(ResourceNotFoundError,)):
                return await call
        except ResourceNotFoundError:
            return None

    async def _create(self, call: Awaitable[Any], doing: str) -> bool:
        """Create what somebody else may create at the same time; whether it was us."""
        try:
            await self.ask(call, doing)
        except ConnectionLost as error:
            if isinstance(error.__cause__, ResourceExistsError):
                return False
            raise
        return True

    # --- topics

    async def declare_topic(self, topic: str, group: str | None = None) -> None:
        """Create a topic, or a queue for a group, where it is missing. Raises ConnectionLost, ConfigError."""
        name, doing = entity_of(topic), f"declaring the topic {topic!r}"
        if self._settings.by_queue:
            await self._declare_queue(topic, name, group, doing)
            return
        found = await self.ask(self.client.get_topic(name), doing)
        if found is None:
            options = self._kept() | self._deduplicating()
            call = self.client.create_topic(name, user_metadata=_note(topic, None), **options)
            if await self._create(call, doing):
                return
            found = await self.ask(self.client.get_topic(name), doing)
        _check_note("topic", topic, 0, found)

    def _kept(self) -> dict[str, Any]:
        ttl = self._settings.options.ttl
        return {"default_message_time_to_live": timedelta(seconds=ttl)} if ttl else {}

    def _deduplicating(self) -> dict[str, Any]:
        window = self._settings.options.dedup
        if not window:
            return {}
        return {
            "requires_duplicate_detection": True,
            "duplicate_detection_history_time_window": timedelta(seconds=window),
        }

    def _receiving(self) -> dict[str, Any]:
        return {
            "lock_duration": self._settings.lease,
            "max_delivery_count": MOST_DELIVERIES,
            "requires_session": self._settings.options.sessions,
            **self._kept(),
        }

    async def topics(self) -> list[str]:
        """All topics of the namespace, or all queues."""
        listed = self.client.list_queues() if self._settings.by_queue else self.client.list_topics()
        with MANAGING.during("asking for all topics"):
            return [(_read_note(each) or [None])[0] or each.name async for each in listed]

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic."""
        if self._settings.by_queue:
            found = await self.ask(self.client.get_queue(entity_of(topic)), f"looking for {topic!r}")
            group = (_read_note(found) or [None, None])[1]
            return [] if group is None else [group]
        listed = self.client.list_subscriptions(entity_of(topic))
        try:
            with MANAGING.during(f"asking for the groups of {topic!r}", through=(ResourceNotFoundError,)):
                return [(_read_note(each) or [None, None])[1] or each.name async for each in listed]
        except ResourceNotFoundError:
            return []

    async def remove(self, topic: str) -> None:
        """Delete a topic with its subscriptions, or a queue; one that is missing is fine."""
        name, doing = entity_of(topic), f"removing the topic {topic!r}"
        self._groups.pop(name, None)
        delete = self.client.delete_queue if self._settings.by_queue else self.client.delete_topic
        await self.ask(delete(name), doing)

    # --- groups

    async def declare_group(self, topic: str, group: str, *, ephemeral: bool = False) -> None:
        """Create a group's subscription where it is missing. Raises ConnectionLost, ConfigError."""
        if self._settings.by_queue:
            await self.declare_topic(topic, group)
            return
        entity, name, doing = (
            entity_of(topic),
            subscription_of(group),
            f"declaring the group {group!r} of {topic!r}",
        )
        found = await self.ask(self.client.get_subscription(entity, name), doing)
        if found is None:
            options = self._receiving() | ({"auto_delete_on_idle": IDLE} if ephemeral else {})
            call = self.client.create_subscription(entity, name, user_metadata=_note(topic, group), **options)
            if await self._create(call, doing):
                await self._set_rule(entity, name, doing)
                return
            found = await self.ask(self.client.get_subscription(entity, name), doing)
        if found is None:
            raise ConfigError(f"{doing}: there is no topic {topic!r}: declare it first")
        _check_note("group", group, 1, found)
        self._check_receiving(found, doing)
        if _read_note(found):
            await self._set_rule(entity, name, doing)

    async def _set_rule(self, entity: str, name: str, doing: str) -> None:
        """Let the subscription have what is for all or for it; until then a receiver skips what is not."""
        rule = await self.ask(self.client.get_rule(entity, name, "$Default"), doing)
        if rule is not None and isinstance(rule.filter, TrueRuleFilter):
            rule.filter = rule_of(name)
            await self.ask(self.client.update_rule(entity, name, rule), doing)

    async def remove_group(self, topic: str, group: str) -> None:
        """Delete a group's subscription, or forget whose a queue is."""
        name, doing = entity_of(topic), f"removing the group {group!r} of {topic!r}"
        if not self._settings.by_queue:
            await self.ask(self.client.delete_subscription(name, subscription_of(group)), doing)
            return
        found = await self.ask(self.client.get_queue(name), doing)
        if self._groups.get(name) == group:
            del self._groups[name]
        if found is not None and (_read_note(found) or [None, None])[1] == group:
            found.user_metadata = _note(topic, None)
            await self.ask(self.client.update_queue(found), doing)

    async def remove_ephemeral(self, subscription: Subscription) -> None:
        """Delete the subscription of a consumer that stops; one that cannot be deleted now the service deletes later."""
        if subscription.ephemeral and self.known:
            with contextlib.suppress(ConnectionLost, ThingsKitError, TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self.remove_group(subscription.topic, subscription.group)

    async def has_listeners(self, topic: str) -> bool | None:
        """Whether a topic has a subscription; a queue keeps what nobody has asked for yet. None if we may not ask."""
        if self._settings.by_queue:
            return True
        if not self.known:
            return None
        groups = self.client.list_subscriptions(entity_of(topic))
        try:
            return (
                await self.ask(anext(groups.__aiter__(), None), f"asking who listens to {topic!r}")
                is not None
            )
        except ConfigError:
            return None

    def _check_receiving(self, found: Any, doing: str) -> None:
        """What an entity that was there before must have."""
        sessions = self._settings.options.sessions
        if bool(found.requires_session) is not sessions:
            has, say = ("has", "true") if found.requires_session else ("has no", "false")
            raise ConfigError(
                f"{doing}: it {has} sessions, which cannot be changed: connect with ?sessions={say}"
            )
        lock = found.lock_duration
        if isinstance(lock, timedelta) and lock < self._settings.lease / 2:
            raise ConfigError(
                f"{doing}: its locks last {lock.total_seconds():g} s, too short for ?lease={self._settings.options.lease}: "
                f"connect with ?lease={max(5, int(lock.total_seconds()))}, or make them longer"
            )

    async def _declare_queue(self, topic: str, name: str, group: str | None, doing: str) -> None:
        found = await self.ask(self.client.get_queue(name), doing)
        if found is None:
            options = self._receiving() | self._deduplicating()
            await self._create(
                self.client.create_queue(name, user_metadata=_note(topic, group), **options), doing
            )
            found = await self.ask(self.client.get_queue(name), doing)
        _check_note("topic", topic, 0, found)
        if group is None or found is None:
            return
        self._check_receiving(found, doing)
        self.claim(topic, group, (_read_note(found) or [None, None])[1])
        if (note := _read_note(found)) and note[1] is None:
            found.user_metadata = _note(topic, group)
            await self.ask(self.client.update_queue(found), doing)

    def claim(self, topic: str, group: str, owner: str | None = None) -> None:
        """Note that a group has a queue. Raises ConfigError if another has it."""
        owner = owner or self._groups.setdefault(entity_of(topic), group)
        if owner != group:
            raise ConfigError(
                f"the queue {topic!r} belongs to the group {owner!r}, so {group!r} cannot have it as well: "
                "a queue has one group; use topics (?mode=topic) for more"
            )

    # --- counts

    async def lag(self, topic: str, group: str) -> int | None:
        """What waits for a group, locked and scheduled messages included; None if we may not ask."""
        try:
            return await self._count(topic, group)
        except ConfigError:
            return None

    async def _count(self, topic: str, group: str) -> int:
        entity, doing = entity_of(topic), f"asking for the lag of {topic!r}"
        if self._settings.by_queue:
            queue = await self.ask(self.client.get_queue_runtime_properties(entity), doing)
            if queue is None:
                return 0
            return (queue.active_message_count or 0) + (queue.scheduled_message_count or 0)
        name = subscription_of(group)
        counted = await self.ask(self.client.get_subscription_runtime_properties(entity, name), doing)
        whole = await self.ask(self.client.get_topic_runtime_properties(entity), doing)
        if counted is None or whole is None:
            return 0
        return (counted.active_message_count or 0) + _scheduled(whole)


def _scheduled(whole: Any) -> int:
    """What is scheduled waits in the topic, whoever it is for. Some emulators do not count for a topic."""
    try:
        return whole.scheduled_message_count or 0
    except AttributeError:
        return 0


def _note(topic: str, group: str | None) -> str:
    """What we write beside an entity: whose it is, as names that only differ in case are one to Service Bus."""
    note = json.dumps({NOTE: [topic, group]})
    return (
        note
        if len(note) <= NOTE_LENGTH
        else json.dumps({NOTE: [entity_of(topic), group and subscription_of(group)]})
    )


def _read_note(found: Any) -> list[str | None] | None:
    """Topic and group of an entity that we made."""
    try:
        note = json.loads(found.user_metadata or "")[NOTE]
    except (AttributeError, ValueError, KeyError, TypeError):
        return None
    return note if isinstance(note, list) and len(note) == 2 else None


def _check_note(what: str, name: str, place: int, found: Any) -> None:
    note = _read_note(found)
    if note is None or note[place] is None:
        return
    if note[place] not in {name, entity_of(name), subscription_of(name)}:
        raise ConfigError(
            f"the {what} {name!r} cannot be, as there is {note[place]!r}: to Service Bus names are the same in upper and "
            "lower case"
        )
