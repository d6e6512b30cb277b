"""`servicebus://`: Azure Service Bus, through azure-servicebus.

    servicebus://NAMESPACE.servicebus.windows.net?key_name=…&key=…      a shared access key
    servicebus://NAMESPACE.servicebus.windows.net                       whatever azure-identity finds
    servicebus://127.0.0.1:5672?key_name=…&key=…&emulator=true&admin_port=5300

The options are those of `ServiceBusOptions`.

A topic is a topic, and a group a subscription: what is published reaches the groups that there are. With `?mode=queue` a
topic is a queue, for one group. A delay, and a replay, is a copy that the subscriptions of other groups do not let in.
With `?sessions=true` keys are sessions, and their order holds across processes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from things_kit.brokers.servicebus.admin import Admin
from things_kit.brokers.servicebus.links import Links
from things_kit.brokers.servicebus.names import entity_of
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.publisher import Publisher
from things_kit.brokers.servicebus.receiver import LinkReceiver
from things_kit.brokers.servicebus.sessions import SessionReceiver
from things_kit.engine.driver import Capabilities, Receiver, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import UnsupportedError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question


class ServiceBusDriver:
    """A client of one namespace: its links, its management API, and what uses them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._links = Links(settings)
        self._admin = Admin(settings, self._links)
        self._publisher = Publisher(settings, self._links)
        self.capabilities = Capabilities(
            delay=True,
            delay_from=1.0,  # Service Bus looks for what is due about once a second
            lease=float(settings.options.lease),
            attempts=True,
            targeted=True,
            lag=self._admin.known,
            max_message_bytes=settings.options.max_message_bytes,
        )

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `servicebus://NAMESPACE?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Make the client, and see that somebody there speaks AMQP; links are opened when they are needed."""
        await self._links.open()
        await self._links.ping()

    async def close(self) -> None:
        """Close all links, and the client of the management API."""
        await self._admin.close()
        await self._links.close()

    async def ping(self) -> None:
        """See that somebody there speaks AMQP."""
        await self._links.ping()

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic, and a subscription for each group."""
        await self._admin.declare_topic(topic)
        for group in groups:
            await self._admin.declare_group(topic, group)

    async def remove(self, topic: str) -> None:
        """Delete the topic with its subscriptions, or the queue."""
        await self._links.drop(entity_of(topic))
        await self._admin.remove(topic)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish in batches as large as the service takes them."""
        return await self._publisher.send(messages)

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """Make sure of the group's subscription, and open a link to it."""
        topic, group = subscription.topic, subscription.group
        if self._settings.options.sessions and subscription.ordering == "partition":
            raise UnsupportedError(
                f"receiving from {topic!r}: with sessions there is an order of each key, and none of the whole topic: "
                'use ordering="key", or connect with ?sessions=false'
            )
        if self._settings.by_queue:
            self._admin.claim(topic, group)
        if subscription.create or (subscription.ephemeral and not self._settings.by_queue):
            await self._admin.declare_group(topic, group, ephemeral=subscription.ephemeral)
        kind: Any = SessionReceiver if self._settings.options.sessions else LinkReceiver
        receiver: Receiver = kind(self._settings, self._links, self._admin, self._publisher, subscription)
        await receiver.open()  # type: ignore[attr-defined]
        return receiver

    async def lag(self, topic: str, group: str) -> int | None:
        """What the service counts in the group's subscription, and what is scheduled."""
        return await self._admin.lag(topic, group) if self._admin.known else None

    async def facts(self, question: "Question") -> "Facts":
        """How a topic and its subscriptions are."""
        from things_kit.brokers.servicebus.facts import facts_of  # noqa: PLC0415 - only the doctor needs it

        return await facts_of(self._settings, self._admin, question)
