"""The management API: topics, subscriptions and queues are made, looked at and removed.

It needs the right to manage, which publishing and receiving do not.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any, Final, TypeVar

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline.transport import AioHttpTransport
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import SqlRuleFilter, TrueRuleFilter

from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.errors import ERRORS
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import ServiceBusOptions, Settings
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

    def __init__(self, settings: Settings, namespace: Client) -> None:
        self._settings = settings
        self._namespace = namespace
        self._client: ServiceBusAdministrationClient | None = None
        self._owners: dict[str, str] = {}  # by queue: which group has it
        options = settings.options
        ttl = timedelta(seconds=options.ttl) if options.ttl else None
        self._storing = {
            "default_message_time_to_live": ttl,
            "requires_duplicate_detection": options.dedup > 0,
            "duplicate_detection_history_time_window": timedelta(seconds=options.dedup) or None,
        }
        self._receiving = {
            "default_message_time_to_live": ttl,
            "lock_duration": timedelta(seconds=options.lease),
            "max_delivery_count": MOST_DELIVERIES,
            "requires_session": options.sessions,
        }

    @property
    def known(self) -> bool:
        """Whether there is a management API to speak with."""
        return not self._settings.options.emulator or self._settings.options.admin_port is not None

    @property
    def client(self) -> ServiceBusAdministrationClient:
        """The client. Raises ConfigError where there can be none."""
        if not self.known:
            raise ConfigError(
                f"{self._settings.url.display}: topics and groups cannot be looked at or created without the emulator's "
                "management API: give ?admin_port=…, or make them there and connect with ?declare=false"
            )
        if self._client is None:
            self._client = self._made()
        return self._client

    def _made(self) -> ServiceBusAdministrationClient:
        options, host = self._settings.options, self._settings.namespace
        kind = AioHttpTransport
        if options.emulator:
            kind, host = PlainHttp, f"{self._settings.address.host}:{options.admin_port}"
        how = {"transport": kind(connection_timeout=PATIENCE, read_timeout=PATIENCE), "retry_total": 0}
        if options.key is None:
            return ServiceBusAdministrationClient(host, self._namespace.credential, **how)
        login = f"SharedAccessKeyName={options.key_name};SharedAccessKey={options.key.reveal()}"
        return ServiceBusAdministrationClient.from_connection_string(f"Endpoint=sb://{host};{login}", **how)

    async def close(self) -> None:
        """Close the client, if it was needed."""
        if self._client is not None:
            await self._client.close()

    async def ask(self, call: Awaitable[ResultT], doing: str) -> ResultT | None:
        """What the API answers; None for what is not there. Raises ConnectionLost, ConfigError."""
        try:
            with ERRORS.during(doing, through=(ResourceNotFoundError,)):
                return await call
        except ResourceNotFoundError:
            return None

    async def _there(
        self, get: Callable[[], Awaitable[ResultT]], create: Callable[[], Awaitable[ResultT]], doing: str
    ) -> ResultT | None:
        """An entity, created where it is missing; None where what it belongs to is missing."""
        found = await self.ask(get(), doing)
        if found is not None:
            return found
        try:
            return await self.ask(create(), doing)
        except ConnectionLost as error:
            if not isinstance(error.__cause__, ResourceExistsError):
                raise
            return await self.ask(get(), doing)  # somebody else has created it meanwhile

    # --- topics and groups

    async def declare_topic(self, topic: str, group: str | None = None) -> None:
        """Create a topic, or a queue for a group, where it is missing. Raises ConnectionLost, ConfigError."""
        name, doing, client = entity_of(topic), f"declaring the topic {topic!r}", self.client
        note: dict[str, Any] = {"user_metadata": _note(topic, group)}
        if not self._settings.by_queue:
            made = note | self._storing
            found = await self._there(
                lambda: client.get_topic(name), lambda: client.create_topic(name, **made), doing
            )
            _check_note("topic", topic, _noted(found)[0])
            return
        made = note | self._storing | self._receiving
        queue = await self._there(
            lambda: client.get_queue(name), lambda: client.create_queue(name, **made), doing
        )
        whose, owner = _noted(queue)
        _check_note("topic", topic, whose)
        if group is None or queue is None:
            return
        self._check(queue, doing)
        self.claim(topic, group, owner)
        if whose is not None and owner is None:
            queue.user_metadata = _note(topic, group)
            await self.ask(client.update_queue(queue), doing)

    async def declare_group(
        self, topic: str, group: str, *, ephemeral: bool = False, with_topic: bool = False
    ) -> None:
        """Create a group's subscription where it is missing, `with_topic` the topic, too. Raises ConnectionLost, ConfigError."""
        if self._settings.by_queue:
            await self.declare_topic(topic, group)
            return
        entity, name, client = entity_of(topic), subscription_of(group), self.client
        doing = f"declaring the group {group!r} of {topic!r}"
        made: dict[str, Any] = {"user_metadata": _note(topic, group), **self._receiving}
        if ephemeral:
            made["auto_delete_on_idle"] = IDLE

        async def there() -> Any:
            return await self._there(
                lambda: client.get_subscription(entity, name),
                lambda: client.create_subscription(entity, name, **made),
                doing,
            )

        found = await there()
        if found is None and with_topic:
            await self.declare_topic(topic)
            found = await there()
            if found is None:
                raise ConnectionLost(f"{doing}: somebody is deleting the topic")
        if found is None:
            raise ConfigError(f"{doing}: there is no topic {topic!r}: declare it first")
        _check_note("group", group, _noted(found)[1])
        self._check(found, doing)
        if _noted(found)[0] is not None:
            await self._set_rule(entity, name, doing)

    async def _set_rule(self, entity: str, name: str, doing: str) -> None:
        """Let the subscription have what is for all or for it; until then a receiver skips what is not."""
        rule = await self.ask(self.client.get_rule(entity, name, "$Default"), doing)
        if rule is not None and isinstance(rule.filter, TrueRuleFilter):
            rule.filter = rule_of(name)
            await self.ask(self.client.update_rule(entity, name, rule), doing)

    def _check(self, found: Any, doing: str) -> None:
        for what, remedy in misfits(found, self._settings.options):
            raise ConfigError(f"{doing}: {what} {remedy}")

    def claim(self, topic: str, group: str, owner: str | None = None) -> None:
        """Note that a group has a queue. Raises ConfigError if another has it."""
        owner = owner or self._owners.setdefault(entity_of(topic), group)
        if owner != group:
            raise ConfigError(
                f"the queue {topic!r} belongs to the group {owner!r}, so {group!r} cannot have it as well: "
                "a queue has one group; use topics (?mode=topic) for more"
            )

    async def remove(self, topic: str) -> None:
        """Delete a topic with its subscriptions, or a queue; one that is missing is fine."""
        name = entity_of(topic)
        self._owners.pop(name, None)
        delete = self.client.delete_queue if self._settings.by_queue else self.client.delete_topic
        await self.ask(delete(name), f"removing the topic {topic!r}")

    async def remove_group(self, topic: str, group: str) -> None:
        """Delete a group's subscription, or forget whose a queue is."""
        name, doing = entity_of(topic), f"removing the group {group!r} of {topic!r}"
        if not self._settings.by_queue:
            await self.ask(self.client.delete_subscription(name, subscription_of(group)), doing)
            return
        if self._owners.get(name) == group:
            del self._owners[name]
        queue = await self.ask(self.client.get_queue(name), doing)
        if queue is not None and _noted(queue)[1] == group:
            queue.user_metadata = _note(topic, None)
            await self.ask(self.client.update_queue(queue), doing)

    async def remove_ephemeral(self, subscription: Subscription) -> None:
        """Delete the subscription of a consumer that stops; one that cannot be deleted now the service deletes later."""
        if subscription.ephemeral and self.known:
            with contextlib.suppress(ConnectionLost, ThingsKitError, TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self.remove_group(subscription.topic, subscription.group)

    # --- what there is

    async def topics(self) -> list[str]:
        """All topics of the namespace, or all queues."""
        listed = self.client.list_queues() if self._settings.by_queue else self.client.list_topics()
        found: list[Any] = await self.ask(collected(listed), "asking for all topics") or []
        return [_noted(each)[0] or each.name for each in found]

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic."""
        doing = f"asking for the groups of {topic!r}"
        if self._settings.by_queue:
            owner = _noted(await self.ask(self.client.get_queue(entity_of(topic)), doing))[1]
            return [] if owner is None else [owner]
        listed = self.client.list_subscriptions(entity_of(topic))
        return [_noted(each)[1] or each.name for each in await self.ask(collected(listed), doing) or []]

    async def has_listeners(self, topic: str) -> bool | None:
        """Whether a topic has a subscription; a queue keeps what nobody has asked for yet. None if we may not ask."""
        if self._settings.by_queue or not self.known:
            return self._settings.by_queue or None
        first = anext(aiter(self.client.list_subscriptions(entity_of(topic))), None)
        try:
            return await self.ask(first, f"asking who listens to {topic!r}") is not None
        except ConfigError:
            return None

    async def lag(self, topic: str, group: str) -> int | None:
        """What waits for a group, locked and scheduled messages included; None if we may not ask."""
        if not self.known:
            return None
        entity, doing, client = entity_of(topic), f"asking for the lag of {topic!r}", self.client
        counted: Any
        whole: Any
        try:
            if self._settings.by_queue:
                counted = whole = await self.ask(client.get_queue_runtime_properties(entity), doing)
            else:
                whole = await self.ask(client.get_topic_runtime_properties(entity), doing)
                one = client.get_subscription_runtime_properties(entity, subscription_of(group))
                counted = await self.ask(one, doing)
        except ConfigError:
            return None
        if counted is None or whole is None:
            return 0
        return (counted.active_message_count or 0) + _scheduled(whole)


async def collected(items: AsyncIterable[ResultT]) -> list[ResultT]:
    """All that the API lists."""
    return [each async for each in items]


def misfits(found: Any, options: ServiceBusOptions) -> Iterator[tuple[str, str]]:
    """Why nothing can be received from an entity as the URL says, and what to do about it."""
    if bool(found.requires_session) is not options.sessions:
        has, say = ("has", "true") if found.requires_session else ("has no", "false")
        yield f"It {has} sessions, which cannot be changed.", f"Connect with ?sessions={say}."
    lock = found.lock_duration
    if isinstance(lock, timedelta) and lock.total_seconds() < options.lease / 2:
        lasts = lock.total_seconds()
        what = f"Its locks last {lasts:g} s, and would be renewed each {options.lease / 3:g} s."
        yield what, f"Connect with ?lease={max(5, int(lasts))}."


def _scheduled(whole: Any) -> int:
    """What is scheduled waits in the topic, whoever it is for. Some emulators do not count for a topic."""
    try:
        return whole.scheduled_message_count or 0
    except AttributeError:
        return 0


def _note(topic: str, group: str | None) -> str:
    """What we write beside an entity: whose it is, as names that only differ in case are one to Service Bus."""
    note = json.dumps({NOTE: [topic, group]})
    if len(note) > NOTE_LENGTH:
        note = json.dumps({NOTE: [entity_of(topic), group and subscription_of(group)]})
    return note


def _noted(found: Any) -> tuple[str | None, str | None]:
    """Topic and group of an entity that we made; of another, None."""
    try:
        topic, group = json.loads(found.user_metadata or "")[NOTE]
    except (AttributeError, ValueError, KeyError, TypeError):
        return None, None
    return topic, group


def _check_note(what: str, name: str, noted: str | None) -> None:
    if noted not in {None, name, entity_of(name), subscription_of(name)}:
        raise ConfigError(
            f"the {what} {name!r} cannot be, as there is {noted!r}: to Service Bus names are the same in upper and lower case"
        )
