"""`amqp://` and `amqps://`: RabbitMQ, by a client of AMQP 0-9-1 of our own.

    amqp://user:password@localhost:5672/vhost        without a path the virtual host is /
    amqps://a:5671,b:5671/vhost?ca=ca.pem            the first of several hosts that answers

The options are those of `RabbitMQOptions`. A topic is a durable fanout exchange, a group a durable quorum queue bound to it,
an ephemeral group an exclusive queue, but for an inbox. RabbitMQ keeps nothing for groups to come: a new group begins now, and a publish that
reaches no queue is refused with `NobodyListens`. Publishing has a connection of its own, as the broker stops reading from one that it blocks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

from pika.spec import Queue

from things_kit.brokers.rabbitmq.admin import Admin
from things_kit.brokers.rabbitmq.amqp.channel import Channel
from things_kit.brokers.rabbitmq.counting import counts_of
from things_kit.brokers.rabbitmq.errors import ERRORS
from things_kit.brokers.rabbitmq.ladder import Ladder
from things_kit.brokers.rabbitmq.link import Link
from things_kit.brokers.rabbitmq.names import Names
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.brokers.rabbitmq.publisher import Publisher, Unroutable
from things_kit.brokers.rabbitmq.receiver import RabbitMQReceiver, Source
from things_kit.brokers.rabbitmq.renewal import Patience, server_version
from things_kit.brokers.rabbitmq.wire import Letter, Unpacker, pack, pack_again
from things_kit.engine.cancelling import ended
from things_kit.engine.clock import steady
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Later,
    Scheduled,
    Subscription,
    UnknownTopic,
)
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.naming import is_inbox
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

if TYPE_CHECKING:
    from things_kit.brokers.rabbitmq.management import Management
    from things_kit.engine.facts import Facts, Question


INBOX_LASTS: Final = 60_000
"""Milliseconds for which an inbox for replies stays without a connection."""


class RabbitMQDriver:
    """Two connections: one that publishes, and one for all else."""

    def __init__(self, settings: Settings) -> None:
        self._kind = settings.options.kind
        self.capabilities = Capabilities(
            attempts=True,
            targeted=True,
            lasting_inbox=False,
            passing_inbox=True,
            fixed_credit=True,
            suspects=self._kind == "quorum",  # the others count no deliveries
            max_message_bytes=settings.options.max_message_bytes,
        )
        self._settings = settings
        self._names = Names(settings.options)
        self._sending = Link(settings)
        self._link = Link(settings)
        self._publisher = Publisher(self._sending)
        self._admin = Admin(settings, self._names, self._link, self._publisher)
        self._ladder = Ladder(settings, self._names, self._admin, self._publisher)
        self._impatient: set[str] = set()  # queues whose consumers may not ask to be waited for
        self._returned: dict[str, int] = {}  # by queue: how many messages its last receiver may have held

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `amqp://HOST:PORT/VHOST?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Connect, so that a wrong address or login shows at once."""
        await self._link.ready()
        await self._sending.ready()

    async def close(self) -> None:
        """Close both connections."""
        await asyncio.gather(self._link.close(), self._sending.close())
        await ended(*self._admin.returning())

    async def ping(self) -> None:
        """Ask for an answer over the connection that is not blocked when the other one is."""
        await self._admin.ping()
        if self._sending.blocked is not None:
            raise ConnectionLost(f"it takes no messages for now: {self._sending.blocked}")

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the exchange, and a queue for each group, where they are missing."""
        await self._admin.declare(topic, groups)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the exchange, and the queues of all groups that were ever declared; or those of one group."""
        if group is None:
            await self._admin.remove(topic)
        else:
            await self._admin.remove_group(topic, group)

    # --- sending

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish with `mandatory`, and wait for the confirms."""
        results: list[Exception | None] = [None] * len(messages)
        letters: list[Letter] = []
        places: list[int] = []
        routes = {topic: await self._route(topic) for topic in {message.topic for message in messages}}
        own = self._names.own_exchanges
        for index, message in enumerate(messages):
            route = routes[message.topic]
            if isinstance(route, Exception):
                results[index] = route
                continue
            places.append(index)
            if REPLAY_GROUP not in message.headers:
                letters.append(pack(message, route[0], own, route[1]))
            else:  # straight to the group's queue: others are not to see what was replayed
                queue = self._names.queue(message.topic, message.headers[REPLAY_GROUP])
                letters.append(pack(message, "", False, queue))
        for index, result in zip(places, await self._publisher.publish(letters), strict=True):
            if isinstance(result, UnknownTopic):
                self._admin.forget(str(result))
            results[index] = _unroutable(messages[index]) if isinstance(result, Unroutable) else result
        return results

    async def _route(self, topic: str) -> tuple[str, str] | Exception:
        """Where a topic's messages go: exchange and routing key; or why they cannot."""
        try:
            exchange = self._names.exchange(topic)
        except ConfigError as error:
            return PublishError(str(error))
        if not await self._admin.has_exchange(exchange):
            return UnknownTopic(topic)
        return exchange, "" if self._names.own_exchanges else self._names.routing_key(topic)

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Publish copies to where they wait, or straight to their group's queue."""
        letters, now = [], steady()
        for copy in copies:
            queue, due = self._names.queue(copy.message.topic, copy.group), copy.due.timestamp()
            target = await self._admin.wait_queue(queue, due - now)
            letters.append(pack_again(copy.message, target, due, copy.attempt))
        return await self._publisher.publish(letters)

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Have each wait: on the ladder, or beside the queue of the only group that is to get it. What is due is sent now."""
        now = steady()
        ways: dict[Callable[..., Awaitable[Sequence[Exception | None]]], list[int]] = {}
        for index, entry in enumerate(entries):
            way = self._ladder.schedule if REPLAY_GROUP not in entry.message.headers else self._send_copies
            ways.setdefault(self._send_due if entry.due.timestamp() <= now else way, []).append(index)
        results: list[Exception | None] = [None] * len(entries)
        for send, indices in ways.items():
            found = await send([entries[index] for index in indices], now)
            for index, result in zip(indices, found, strict=True):
                results[index] = result
        return results

    async def _send_due(self, entries: Sequence[Scheduled], _now: float) -> Sequence[Exception | None]:
        return await self.send([entry.message for entry in entries])

    async def _send_copies(self, entries: Sequence[Scheduled], _now: float) -> Sequence[Exception | None]:
        return await self.send_later(
            [Later(each.message, each.message.headers[REPLAY_GROUP], each.due) for each in entries]
        )

    # --- receiving

    async def subscribe(self, subscription: Subscription) -> RabbitMQReceiver:
        """A receiver of the group's queue, or of an exclusive one for an ephemeral group, on a channel of its own."""
        topic, group, ephemeral = subscription.topic, subscription.group, subscription.ephemeral
        queue = self._names.queue(topic, group)
        if subscription.create:
            await self._admin.declare(topic, () if ephemeral else [group])
        elif not ephemeral and await self._admin.counts(queue) is None:
            raise ConfigError(f"there is no group {group!r} of a topic {topic!r}: declare it first")
        if left := self._admin.returning(self._admin.place(queue)):
            await asyncio.wait(left)
        channel = await self._link.channel()
        patience = Patience(server_version(channel.connection.properties), ephemeral, self._kind)
        if ephemeral:
            if not self._names.own_queues:
                queue = f".things-kit.{topic if is_inbox(topic) else f'ephemeral-{uuid4().hex}'}"
            await self._declare_ephemeral(channel, topic, queue, patience.of_queue)
        source = Source(
            queue=queue,
            place=self._admin.place(queue),
            own=ephemeral or self._names.own_queues,
            counts=counts_of(patience.version, "classic" if ephemeral else self._kind),
            single_active=self._settings.options.single_active,
            arguments={} if queue in self._impatient else patience.of_consumer,
            look=self._admin.counts,
            not_waited=self._impatient.add,
            returned=self._returned,
        )
        exchange = self._names.exchange(topic) if self._names.own_exchanges else None
        unpacker = Unpacker(topic, queue, exchange, source.place, source.counts)
        receiver = RabbitMQReceiver(
            channel, source, subscription, unpacker, self._publisher, None if ephemeral else self.send_later
        )
        if patience.renews:
            receiver.renew(self._settings.options.consumer_timeout)
        self._admin.receivers.add(receiver)
        return receiver

    async def _declare_ephemeral(
        self, channel: Channel, topic: str, queue: str, arguments: Mapping[str, Any]
    ) -> None:
        """Not to be deleted with its last consumer: one that is paused has none.

        An inbox keeps what arrives while its connection is lost; any other begins anew with the next one.
        """
        make = [Queue.Declare(queue=queue, exclusive=True, arguments=dict(arguments))]
        if is_inbox(topic):
            make = [Queue.Declare(queue=queue, durable=True, arguments={"x-expires": INBOX_LASTS})]
            if topic in self._admin.inboxes:
                make.append(self._admin.exchange(topic))
        try:
            with ERRORS.during(f"making a queue for {topic!r}"):
                await channel.ask(*make, self._admin.binding(topic, queue))
        except BaseException:
            channel.tell(Queue.Delete(queue=queue, nowait=True))
            await channel.close()
            raise

    # --- lag, names and facts

    async def lag(self, topic: str, group: str) -> int | None:
        """What is ready in the group's queue, waits in its delay queues, or is held by receivers of this process."""
        return await self._admin.lag(topic, group)

    async def topics(self) -> Sequence[str]:
        """The names of all topics, by the management API."""
        return await (await self._management()).topics()

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The groups of each topic, by the management API."""
        return await (await self._management()).groups(topics)

    async def _management(self) -> "Management":
        from things_kit.brokers.rabbitmq.management import Management  # noqa: PLC0415 - nobody else needs it

        properties = (await self._link.ready()).properties
        return Management(self._settings, properties.get("cluster_name"))

    async def facts(self, question: "Question") -> "Facts":
        """How things are at the broker."""
        from things_kit.brokers.rabbitmq.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        properties = (await self._link.ready()).properties
        return await facts_of(properties, self._admin, self._names, self._settings, question)


def _unroutable(message: Message) -> PublishError:
    group = message.headers.get(REPLAY_GROUP)
    if group is None:
        return nobody_listens(message.topic)
    return PublishError(f"the topic {message.topic!r} has no group {group!r}, for which the message is meant")
