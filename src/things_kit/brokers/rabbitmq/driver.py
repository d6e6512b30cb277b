"""`amqp://` and `amqps://`: RabbitMQ, through pika.

    amqp://user:password@localhost:5672/vhost        without a path the virtual host is /
    amqps://a:5671,b:5671/vhost?ca=ca.pem            the first of several hosts that answers

The options are those of `RabbitMQOptions`. A topic is a durable fanout exchange, a group a durable quorum queue bound to it,
an ephemeral group an exclusive queue. RabbitMQ keeps nothing for groups to come: a new group begins now, and a publish that
reaches no queue is refused with `NobodyListens`. Publishing has a connection of its own, as the broker stops reading from one that it blocks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet

from things_kit.brokers.rabbitmq.delays import TIERS, Delays, delay_queue, hop
from things_kit.brokers.rabbitmq.errors import missing, translated
from things_kit.brokers.rabbitmq.link import Channel, Link, get
from things_kit.brokers.rabbitmq.names import Names, possible, registry
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.brokers.rabbitmq.patience import Patience, server_version
from things_kit.brokers.rabbitmq.publisher import Publisher, Unroutable
from things_kit.brokers.rabbitmq.receiver import RabbitMQReceiver
from things_kit.brokers.rabbitmq.wire import Letter, Packer, Unpacker
from things_kit.engine.clock import steady
from things_kit.engine.driver import Capabilities, ConnectionLost, Later, Subscription, UnknownTopic
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.message import Message
from things_kit.messaging.names import REPLAY_GROUP

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question

ResultT = TypeVar("ResultT")

Place: TypeAlias = tuple[tuple[str, ...], str, str]
"""A queue: the hosts, the virtual host's path, its name."""

_RECEIVERS: Final[WeakKeyDictionary[RabbitMQReceiver, Place]] = WeakKeyDictionary()
"""All of this process, for the lag: another `Broker` may have the consumer."""


class RabbitMQDriver:
    """Two connections: one that publishes, and one for all else."""

    def __init__(self, settings: Settings) -> None:
        self._kind = settings.options.kind
        self.capabilities = Capabilities(
            attempts=True,
            targeted=True,
            fixed_credit=True,
            suspects=settings.options.kind == "quorum",  # the others count no deliveries
            max_message_bytes=settings.options.max_message_bytes,
        )
        self._settings = settings
        self._names = Names(settings.options)
        self._sending = Link(settings)
        self._link = Link(settings)
        self._publisher = Publisher(self._sending)
        self._asking = asyncio.Lock()
        self._admin: Channel | None = None
        self._delays = Delays(self._ask)
        self._receivers: WeakSet[RabbitMQReceiver] = WeakSet()
        self._exchanges: set[str] = set()  # that were seen: a publish to a missing one closes the channel
        self._impatient: set[str] = set()  # queues whose consumers may not ask to be waited for
        self._open = False

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `amqp://HOST:PORT/VHOST?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Connect, so that a wrong address or login shows at once."""
        await self._link.ready()
        await self._sending.ready()
        self._open = True

    async def close(self) -> None:
        """Close both connections."""
        self._open = False
        await asyncio.gather(self._link.close(), self._sending.close())

    async def ping(self) -> None:
        """Ask for an answer over the connection that is not blocked when the other one is."""

        async def ask(channel: Channel) -> None:
            await channel.ask(channel.raw.basic_qos, prefetch_count=0)

        await self._answered(ask)
        if self._sending.blocked is not None:
            raise ConnectionLost(f"it takes no messages for now: {self._sending.blocked}")

    async def _ask(self, question: Callable[[Channel], Awaitable[ResultT]]) -> ResultT:
        """Ask over a channel that all questions share, one at a time; a refusal closes it. Raises pika's errors."""
        async with self._asking:
            if self._admin is None or self._admin.error is not None:
                self._admin = await self._link.channel()
            return await question(self._admin)

    async def _answered(self, question: Callable[[Channel], Awaitable[ResultT]]) -> ResultT:
        """As `_ask`. Raises ConnectionLost, ConfigError."""
        try:
            return await self._ask(question)
        except (asyncio.CancelledError, ConfigError, ConnectionLost):
            raise
        except Exception as error:
            raise translated(error) from error

    # --- topics and groups

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the exchange, and a queue for each group, where they are missing."""
        exchange = self._names.exchange(topic)
        queues = [self._names.queue(topic, group) for group in groups]
        await self._declare_exchange(exchange)
        for queue in queues:
            await self._declare_queue(topic, queue)

    async def _declare_exchange(self, exchange: str) -> None:
        theirs = not self._names.own_exchanges

        async def declare(channel: Channel) -> None:
            raw = channel.raw
            await channel.ask(
                raw.exchange_declare, exchange, exchange_type="fanout", durable=True, passive=theirs
            )

        await self._answered(declare)
        self._exchanges.add(exchange)

    async def _has_exchange(self, exchange: str) -> bool:
        async def look(channel: Channel) -> None:
            await channel.ask(channel.raw.exchange_declare, exchange, passive=True)

        if exchange not in self._exchanges:
            try:
                await self._ask(look)
            except Exception as error:
                if missing(error):
                    return False
                raise translated(error) from error
            self._exchanges.add(exchange)
        return True

    async def _declare_queue(self, topic: str, queue: str) -> None:
        exists = await self._counts(queue) is not None
        if not self._names.own_queues:
            if not exists:
                raise ConfigError(f"there is no queue {queue!r}, which the URL's option 'queue' names")
            return
        if not exists:
            await self._register(topic, queue)
        arguments = self._settings.options.queue_arguments()

        async def declare(channel: Channel) -> None:
            await channel.ask(channel.raw.queue_declare, queue, durable=True, arguments=arguments)
            await self._bind(channel, topic, queue)

        await self._answered(declare)

    async def _bind(self, channel: Channel, topic: str, queue: str) -> None:
        key = "" if self._names.own_exchanges else self._names.routing_key(topic)
        await channel.ask(channel.raw.queue_bind, queue, self._names.exchange(topic), routing_key=key)

    async def _register(self, topic: str, queue: str) -> None:
        """Note the queue down before it is made: `remove` finds it by this."""
        register = registry(topic)

        async def declare(channel: Channel) -> None:
            await channel.ask(channel.raw.queue_declare, register, durable=True)

        await self._answered(declare)
        note = Packer().pack(Message(topic, queue.encode(), id=queue), "", False, register)
        [failed] = await self._publisher.publish([note])
        if failed is not None:
            raise ConnectionLost(f"the queue {queue!r} could not be noted down: {failed}")

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the exchange, and the queues of all groups that were ever declared; or those of one group."""
        if not possible(topic):
            return
        if group is not None:
            await self._remove_group(self._names.queue(topic, group))
            return
        if self._names.own_exchanges:
            self._exchanges.discard(topic)

        async def read(channel: Channel) -> list[str]:
            raw = channel.raw
            noted = []
            while (body := await get(channel, registry(topic))) is not None:
                noted.append(body.decode())
            for queue in noted:
                await _delete_queue(channel, queue)
            if self._names.own_exchanges:
                await channel.ask(raw.exchange_delete, topic)
            await channel.ask(raw.queue_delete, registry(topic))
            return noted

        try:
            noted = await self._ask(read)
        except Exception as error:
            if not missing(error):
                raise translated(error) from error
            await self._remove_exchange(topic)
        else:
            for queue in noted:
                self._delays.forget(queue)

    async def _remove_group(self, queue: str) -> None:
        if not self._names.own_queues:
            raise ConfigError(
                f"the queue {queue!r}, which the URL's option 'queue' names, is not ours to delete"
            )
        await self._answered(lambda channel: _delete_queue(channel, queue))
        self._delays.forget(queue)

    async def _remove_exchange(self, topic: str) -> None:
        if self._names.own_exchanges:
            await self._answered(lambda channel: channel.ask(channel.raw.exchange_delete, topic))

    # --- sending

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish with `mandatory`, and wait for the confirms."""
        results: list[Exception | None] = [None] * len(messages)
        letters: list[Letter] = []
        places: list[int] = []
        packer = Packer()
        routes = {topic: await self._route(topic) for topic in {message.topic for message in messages}}
        own = self._names.own_exchanges
        for index, message in enumerate(messages):
            route = routes[message.topic]
            if isinstance(route, Exception):
                results[index] = route
            else:
                letters.append(
                    packer.pack(message, route[0], own, route[1])
                    if REPLAY_GROUP not in message.headers
                    else self._for_one_group(packer, message)
                )
                places.append(index)
        for index, result in zip(places, await self._publisher.publish(letters), strict=True):
            if isinstance(result, UnknownTopic):
                self._exchanges.discard(str(result))
            results[index] = self._unroutable(messages[index]) if isinstance(result, Unroutable) else result
        return results

    async def _route(self, topic: str) -> tuple[str, str] | Exception:
        """Where a topic's messages go: exchange and routing key; or why they cannot."""
        try:
            exchange = self._names.exchange(topic)
        except ConfigError as error:
            return PublishError(str(error))
        if not await self._has_exchange(exchange):
            return UnknownTopic(topic)
        return exchange, "" if self._names.own_exchanges else self._names.routing_key(topic)

    def _for_one_group(self, packer: Packer, message: Message) -> Letter:
        """Straight to the group's queue: others are not to see what was replayed."""
        queue = self._names.queue(message.topic, message.headers[REPLAY_GROUP])
        return packer.pack(message, "", False, queue)

    def _unroutable(self, message: Message) -> PublishError:
        group = message.headers.get(REPLAY_GROUP)
        if group is not None:
            return PublishError(
                f"the topic {message.topic!r} has no group {group!r}, for which the message is meant"
            )
        return nobody_listens(message.topic)

    # --- receiving

    async def subscribe(self, subscription: Subscription) -> RabbitMQReceiver:
        """A receiver of the group's queue, or of an exclusive one for an ephemeral group, on a channel of its own."""
        topic, group = subscription.topic, subscription.group
        queue = self._names.queue(topic, group)
        if subscription.create:
            await self.declare(topic, () if subscription.ephemeral else [group])
        elif not subscription.ephemeral and await self._counts(queue) is None:
            raise ConfigError(f"there is no group {group!r} of a topic {topic!r}: declare it first")
        channel = await self._link.channel()
        patience = Patience(server_version(self._link.properties), subscription.ephemeral, self._kind)
        if subscription.ephemeral:
            queue = queue if self._names.own_queues else f".things-kit.ephemeral-{uuid4().hex}"
            await self._declare_ephemeral(channel, topic, queue, patience.of_queue)
        receiver = self._receiver(channel, queue, subscription, patience)
        if patience.renews:
            receiver.renew(self._publisher, self._settings.options.consumer_timeout)
        _RECEIVERS[receiver] = self._place(queue)
        self._receivers.add(receiver)
        return receiver

    def _receiver(
        self, channel: Channel, queue: str, subscription: Subscription, patience: Patience
    ) -> RabbitMQReceiver:
        own = subscription.ephemeral or self._names.own_queues

        async def overdue() -> int | None:
            found = await self._counts(queue)
            # Of a queue that is not ours nobody knows what its count means; one more consumer may be the active one
            return found[0] if found is not None and own and not (exclusive and found[1] > 1) else None

        async def members() -> int:
            found = await self._counts(queue)
            return 0 if found is None else found[1]

        exclusive = self._settings.options.single_active
        exchange = self._names.exchange(subscription.topic) if self._names.own_exchanges else None
        return RabbitMQReceiver(
            channel,
            queue,
            subscription,
            Unpacker(subscription.topic, queue, exchange, self._place(queue)),
            send_later=None if subscription.ephemeral else self.send_later,
            overdue=overdue,
            members=members,
            arguments={} if queue in self._impatient else patience.of_consumer,
            steady=not own or (exclusive and not subscription.ephemeral),
            not_waited=self._impatient.add,
        )

    async def _declare_ephemeral(
        self, channel: Channel, topic: str, queue: str, arguments: Mapping[str, int]
    ) -> None:
        """Not to be deleted with its last consumer: one that is paused has none."""
        try:
            await channel.ask(channel.raw.queue_declare, queue, exclusive=True, arguments=dict(arguments))
            await self._bind(channel, topic, queue)
        except BaseException as error:
            channel.drop_queue(queue)
            await channel.close()
            if isinstance(error, Exception):
                raise translated(error) from error
            raise

    def _place(self, queue: str) -> Place:
        return self._settings.url.hosts, self._settings.url.path, queue

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Publish copies to where they wait, or straight to their group's queue."""
        packer, now = Packer(), steady()
        letters = []
        for copy in copies:
            queue, due = self._names.queue(copy.message.topic, copy.group), copy.due.timestamp()
            target = hop(queue, due - now)
            if target != queue:
                await self._delays.make(queue)
            letters.append(packer.again(copy.message, target, due, copy.attempt, copy.suspect))
        return await self._publisher.publish(letters)

    # --- lag

    async def lag(self, topic: str, group: str) -> int | None:
        """What is ready in the group's queue, waits in its delay queues, or is held by receivers of this process."""
        if not possible(topic):
            return 0
        queue = self._names.queue(topic, group)
        delayed = await self._delays.waiting(queue)
        place = self._place(queue)
        await self._agree(place)  # what we gave back by now is ready again
        found = await self._counts(queue)
        await self._agree(place)  # what was ready no more had been sent to us by then, and is here now
        held = sum(receiver.held for receiver, where in _RECEIVERS.items() if where == place)
        return 0 if found is None else found[0] + delayed + held

    async def _agree(self, place: Place) -> None:
        """Have nothing under way between the broker and our receivers; channels wait for one another in nothing."""
        own = [receiver for receiver in self._receivers if _RECEIVERS.get(receiver) == place]
        await asyncio.gather(*(receiver.agree() for receiver in own))

    async def _counts(self, queue: str) -> tuple[int, int] | None:
        """Messages in the queue, and its consumers; None if there is no such queue."""

        async def look(channel: Channel) -> Any:
            return await channel.ask(channel.raw.queue_declare, queue, passive=True)

        try:
            found = await self._ask(look)
        except Exception as error:
            if missing(error):
                return None
            raise translated(error) from error
        return found.message_count, found.consumer_count

    # --- facts

    async def facts(self, question: "Question") -> "Facts":
        """How things are at the broker."""
        from things_kit.brokers.rabbitmq.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        return await facts_of(self._link.properties, self._answered, self._names, self._settings, question)


async def _delete_queue(channel: Channel, queue: str) -> None:
    """Delete a group's queue, and those that keep for it what waits and what is told."""
    for name in (*(delay_queue(queue, tier) for tier in TIERS), queue):
        await channel.ask(channel.raw.queue_delete, name)
