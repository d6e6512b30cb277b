"""`pubsub://`: Google Pub/Sub, through the official client.

    pubsub://my-project                                  the service, with the environment's credentials
    pubsub://my-project?credentials=key.json             with the key of a service account
    pubsub://my-project?endpoint=127.0.0.1:8085          an emulator

A topic is a topic, and a group a subscription of its own to it, named `topic+group`. The service keeps the order of
messages with the same ordering key, and hands out those that are not acknowledged to one subscriber at a time. What is
held has a lease (the ack deadline), which the engine has extended; a message in back-off waits in this process.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from google.api_core import exceptions

from things_kit.brokers.pubsub.admin import Admin
from things_kit.brokers.pubsub.connection import Connection
from things_kit.brokers.pubsub.names import subscription_id, topic_id
from things_kit.brokers.pubsub.options import LONGEST, Settings
from things_kit.brokers.pubsub.publisher import Publication
from things_kit.brokers.pubsub.receiver import PubSubReceiver
from things_kit.engine.driver import Capabilities, Receiver, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, UnsupportedError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question


class PubSubDriver:
    """The clients of Pub/Sub on asyncio: no thread of ours, and a task for each open stream."""

    def __init__(self, settings: Settings) -> None:
        self.capabilities = Capabilities(
            lease=float(settings.options.lease),
            retained=settings.options.retain > 0,
            lag=False,
            fixed_credit=True,
            carried=LONGEST,
            max_message_bytes=settings.options.max_message_bytes,
        )
        self._settings = settings
        self._connection = Connection(settings)
        self._admin = Admin(self._connection, settings)
        self._receivers: WeakSet[PubSubReceiver] = WeakSet()

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `pubsub://PROJECT?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Log in, and ask for the project, so that a wrong name or login shows at once."""
        await self._connection.open()
        await self.ping()

    async def close(self) -> None:
        """Close the channels."""
        await self._connection.close()

    async def ping(self) -> None:
        """Ask for a topic. That we may not see any is an answer too: whoever only publishes has no such right."""
        asked = {"project": f"projects/{self._settings.project}", "page_size": 1}
        with (
            suppress(exceptions.PermissionDenied),
            self._connection.during(
                f"asking for the project {self._settings.project!r}", through=(exceptions.PermissionDenied,)
            ),
        ):
            await self._connection.publisher.list_topics(asked, retry=None, timeout=self._settings.patience)

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic and the subscriptions that are missing."""
        for group in groups:
            subscription_id(topic, group)
        await self._admin.declare_topic(topic)
        for group in groups:
            await self._admin.declare_group(topic, group)
        for receiver in self._receivers:
            if receiver.topic == topic:
                receiver.look()

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the topic and its groups, or one group; subscriptions that are named otherwise keep what they have."""
        try:
            path = topic_id(topic) if group is None else self._admin.subscription_path(topic, group)
        except ConfigError:
            return  # what cannot be is not there
        if group is None:
            await self._admin.remove_topic(topic)
        else:
            await self._admin.remove_subscription(path)

    async def has_listeners(self, topic: str) -> bool | None:
        """Whether a message to the topic would be kept for anybody; None if we may not ask."""
        return await self._admin.has_subscriptions(topic)

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish in as few requests as the service's bounds allow."""
        return await Publication(self._connection, self._settings, messages).send()

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """Have the subscription; the stream is opened by the first `credit`."""
        order = self._settings.options.ordering
        if order == "none" and subscription.ordering != "none":
            raise UnsupportedError(
                f'?ordering=none keeps no order: it goes with ordering="none", not {subscription.ordering!r}'
            )
        if order == "key" and subscription.ordering == "partition":
            raise UnsupportedError(
                'Pub/Sub keeps the order of a key, not of a topic: use ordering="key", or connect with '
                "?ordering=topic, which publishes a whole topic in one order"
            )
        exactly_once = await self._admin.join(subscription)
        receiver = PubSubReceiver(self._connection, self._settings, self._admin, subscription, exactly_once)
        self._receivers.add(receiver)
        return receiver

    async def lag(self, topic: str, group: str) -> int | None:
        """The API does not say; Cloud Monitoring does, minutes later."""
        return None

    async def topics(self) -> Sequence[str]:
        """All topics of the project."""
        return await self._admin.topics()

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its subscriptions."""
        return {topic: await self._admin.groups(topic) for topic in topics}

    async def facts(self, question: "Question") -> "Facts":
        """How the topic and its subscriptions are."""
        from things_kit.brokers.pubsub.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        return await facts_of(self._admin, self._settings, question)
