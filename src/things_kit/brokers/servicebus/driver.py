"""`servicebus://`: Azure Service Bus.

    servicebus://NAMESPACE.servicebus.windows.net?key_name=…&key=…      a shared access key
    servicebus://NAMESPACE.servicebus.windows.net                       whatever azure-identity finds
    servicebus://127.0.0.1:5672?key_name=…&key=…&emulator=true&admin_port=5300

The options are those of `ServiceBusOptions`.

A topic is a topic, and a group a subscription: what is published reaches the groups that there are. With `?mode=queue` a
topic is a queue, for one group. A delay, and a replay, is a copy that the subscriptions of other groups do not let in.
With `?sessions=true` keys are sessions, and their order holds across processes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.errors import ERRORS
from things_kit.brokers.servicebus.names import entity_of, subscription_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.receiver import LinkReceiver
from things_kit.brokers.servicebus.sessions import SessionReceiver
from things_kit.engine.driver import Capabilities, Receiver, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import UnsupportedError

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question


class ServiceBusDriver:
    """A client of one namespace: its connection, its management API, and what uses them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        self._admin = Admin(settings, self._client)
        publisher = Publisher(settings, self._client)
        self.send = publisher.send
        self.send_later, self.schedule = publisher.send_later, publisher.schedule
        self.has_listeners, self.topics = self._admin.has_listeners, self._admin.topics
        self.lag = self._admin.lag
        self.capabilities = Capabilities(
            delay_from=1.0,  # Service Bus looks for what is due about once a second
            lease=float(settings.options.lease),
            attempts=True,
            suspects=True,
            targeted=True,
            lag=self._admin.known,
            scheduled_in_lag=True,
            max_message_bytes=settings.options.max_message_bytes,
        )

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `servicebus://NAMESPACE?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Connect; rights are shown when something is asked for."""
        await self._client.open()
        await self.ping()

    async def close(self) -> None:
        """Close the connection, and the client of the management API."""
        await self._admin.close()
        await self._client.close()

    async def ping(self) -> None:
        """See that the service answers on the connection."""
        with ERRORS.during(f"{self._settings.url.display} cannot be reached"):
            await self._client.ping()

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic, and a subscription for each group."""
        await self._admin.declare_topic(topic)
        for group in groups:
            await self._admin.declare_group(topic, group)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the topic with its subscriptions, or the queue; or the subscription of one group."""
        if group is not None:
            await self._admin.remove_group(topic, group)
            return
        await self._client.drop(entity_of(topic))
        await self._admin.remove(topic)

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """Make sure of the group's subscription, and open a link to it."""
        topic, group, options = subscription.topic, subscription.group, self._settings.options
        if options.sessions and subscription.ordering == "partition":
            raise UnsupportedError(
                f"receiving from {topic!r}: with sessions there is an order of each key, and none of the whole topic: "
                'use ordering="key", or connect with ?sessions=false'
            )
        entity = entity_of(topic)
        if self._settings.by_queue:
            self._admin.claim(topic, group)
        else:
            entity = f"{entity}/Subscriptions/{subscription_of(group)}"
        if subscription.create or (subscription.ephemeral and not self._settings.by_queue):
            create, ephemeral = subscription.create, subscription.ephemeral
            await self._admin.declare_group(topic, group, ephemeral=ephemeral, with_topic=create)
        kind = SessionReceiver if options.sessions else LinkReceiver
        receiver = kind(self._client, self._admin, subscription, entity, options)
        await receiver.open()
        return receiver

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its subscriptions."""
        return {topic: await self._admin.groups(topic) for topic in topics}

    async def facts(self, question: "Question") -> "Facts":
        """How a topic and its subscriptions are."""
        from things_kit.brokers.servicebus.facts import facts_of  # noqa: PLC0415 - only the doctor needs it

        return await facts_of(self._settings, self._admin, question)
