"""Exchanges and queues: made, found, counted and removed.

A message that is to wait goes through queues whose messages expire into the queue that it came from. Such a queue hands
on what expired in order, so each length of wait needs one of its own, or a long wait at its head holds up the short ones behind
it. They are powers of eight seconds, for each group that ever had something to wait: a wait is made of several, longest
first, and its last second is waited out by the receiver. RabbitMQ hands on what expired only once the target has
confirmed it (the strategy `at-least-once`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakSet

from pika.spec import Basic, Exchange, Queue

from things_kit.brokers.rabbitmq.amqp.channel import Channel, Closed
from things_kit.brokers.rabbitmq.amqp.frames import Content
from things_kit.brokers.rabbitmq.errors import ERRORS, missing
from things_kit.brokers.rabbitmq.link import Link
from things_kit.brokers.rabbitmq.names import TIERS, Names, delay_queue, possible, registry
from things_kit.brokers.rabbitmq.options import Settings, handing_on
from things_kit.brokers.rabbitmq.publisher import Publisher
from things_kit.brokers.rabbitmq.receiver import RECEIVERS, RabbitMQReceiver
from things_kit.brokers.rabbitmq.wire import Place, pack
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.naming import is_inbox
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.message import Message


class Admin:
    """What there is at the broker, as far as this connection has asked."""

    def __init__(self, settings: Settings, names: Names, link: Link, publisher: Publisher) -> None:
        self.receivers: WeakSet[RabbitMQReceiver] = WeakSet()
        self.inboxes: set[str] = set()
        """Those declared here. Each is made with the queue that reads it: who is killed in between would leave an exchange for ever."""
        self._settings = settings
        self._names = names
        self._link = link
        self._publisher = publisher
        self._turn = asyncio.Lock()
        self._channel: Channel | None = None
        self._exchanges: set[str] = set()  # that were seen: a publish to a missing one closes the channel
        self._waited_for: set[str] = set()  # queues that have their delay queues
        self._making = asyncio.Lock()

    # --- asking

    async def _ask(self, *questions: Any) -> Any:
        """Ask over a channel that all share, one at a time; a refusal closes it. Returns the last answer."""
        async with self._turn:
            if self._channel is None or self._channel.error is not None:
                self._channel = await self._link.channel()
            for question in questions:
                answer = await self._channel.ask(question)
            return answer

    async def ask(self, doing: str, *questions: Any) -> Any:
        """Ask one after another; returns the last answer. Raises ConnectionLost, ConfigError."""
        with ERRORS.during(doing):
            return await self._ask(*questions)

    async def find(self, doing: str, *questions: Any) -> Any:
        """The last answer; None where there is no such queue or exchange. Raises ConnectionLost, ConfigError."""
        with ERRORS.during(doing):
            try:
                return await self._ask(*questions)
            except Closed as error:
                if missing(error):
                    return None
                raise

    async def ping(self) -> None:
        """Ask for an answer. Raises ConnectionLost."""
        await self.ask("asking for an answer", Basic.Qos(prefetch_count=0))

    async def counts(self, queue: str) -> Any:
        """`message_count` and `consumer_count` of a queue; None if there is no such queue."""
        return await self.find(f"looking at the queue {queue!r}", Queue.Declare(queue=queue, passive=True))

    # --- topics and groups

    async def has_exchange(self, exchange: str) -> bool:
        """Whether it is there; one that was seen is."""
        if exchange not in self._exchanges:
            # Its type is not looked at; pika 1.3.0 has one by default that it cannot write
            look = Exchange.Declare(exchange=exchange, type="direct", passive=True)
            if await self.find(f"looking for the exchange {exchange!r}", look) is None:
                return False
            self._exchanges.add(exchange)
        return True

    def forget(self, exchange: str) -> None:
        """It turned out to be gone."""
        self._exchanges.discard(exchange)

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the exchange, and a queue for each group, where they are missing."""
        make = self.exchange(topic)
        queues = [self._names.queue(topic, group) for group in groups]
        if is_inbox(topic) and self._names.own_exchanges and not queues:
            self.inboxes.add(topic)
            return
        await self.ask(f"declaring {topic!r}", make)
        self._exchanges.add(make.exchange)
        for queue in queues:
            await self._declare_queue(topic, queue)

    def exchange(self, topic: str) -> Any:
        """What makes the exchange of a topic, or looks at one that is not ours. Raises ConfigError."""
        return Exchange.Declare(
            exchange=self._names.exchange(topic),
            type="fanout",
            durable=True,
            passive=not self._names.own_exchanges,
            auto_delete=is_inbox(topic),  # it goes with the queue of the process that reads it
        )

    async def _declare_queue(self, topic: str, queue: str) -> None:
        exists = await self.counts(queue) is not None
        if not self._names.own_queues:
            if not exists:
                raise ConfigError(f"there is no queue {queue!r}, which the URL's option 'queue' names")
            return
        if not exists:
            await self._register(topic, queue)
        make = Queue.Declare(queue=queue, durable=True, arguments=self._settings.options.queue_arguments())
        await self.bind(self._ask, topic, make, self.binding(topic, queue))

    async def bind(self, ask: Callable[..., Awaitable[Any]], topic: str, *questions: Any) -> None:
        """Make a queue and bind it. Raises ConnectionLost where somebody removes our exchange meanwhile, ConfigError."""
        with ERRORS.during(f"making a queue for {topic!r}"):
            try:
                await ask(*questions)
            except Closed as error:
                if missing(error) and self._names.own_exchanges:
                    raise ConnectionLost(f"{topic!r} was removed while a queue was bound to it") from error
                raise

    def binding(self, topic: str, queue: str) -> Any:
        """What binds a queue to its topic."""
        key = "" if self._names.own_exchanges else self._names.routing_key(topic)
        return Queue.Bind(queue=queue, exchange=self._names.exchange(topic), routing_key=key)

    async def _register(self, topic: str, queue: str) -> None:
        """Note the queue down before it is made: `remove` finds it by this."""
        register = registry(topic)
        await self.ask(f"noting down the queue {queue!r}", Queue.Declare(queue=register, durable=True))
        note = pack(Message(topic, queue.encode(), id=queue), "", False, register)
        [failed] = await self._publisher.publish([note])
        if failed is not None:
            raise ConnectionLost(f"the queue {queue!r} could not be noted down: {failed}")

    async def remove(self, topic: str) -> None:
        """Delete the exchange, and the queues of all groups that were ever declared."""
        if not possible(topic):
            return
        doing, register = f"removing {topic!r}", registry(topic)
        take = Basic.Get(queue=register, no_ack=True)
        while isinstance(noted := await self.find(doing, take), Content):
            await self._delete_queue(noted.body.decode())
        self.inboxes.discard(topic)
        if self._names.own_exchanges:
            self._exchanges.discard(topic)
            await self.ask(doing, Queue.Delete(queue=self._names.due_queue(topic)))
            await self.ask(doing, Exchange.Delete(exchange=topic))
        await self.ask(doing, Queue.Delete(queue=register))

    async def remove_group(self, topic: str, group: str) -> None:
        """Delete a group's queue. Raises ConfigError where that is not ours."""
        if not possible(topic):
            return
        queue = self._names.queue(topic, group)
        if not self._names.own_queues:
            raise ConfigError(
                f"the queue {queue!r}, which the URL's option 'queue' names, is not ours to delete"
            )
        await self._delete_queue(queue)

    async def _delete_queue(self, queue: str) -> None:
        """Delete a group's queue, and those in which its messages wait."""
        queues = (*(delay_queue(queue, tier) for tier in TIERS), queue)
        await self.ask(f"removing the queue {queue!r}", *(Queue.Delete(queue=each) for each in queues))
        self._waited_for.discard(queue)

    # --- waiting

    async def wait_queue(self, queue: str, wait: float) -> str:
        """Where a message goes that may come again in so many seconds: the longest tier that is not too long.

        A wait of less than a second is the receiver's: the message goes straight back to its queue. Raises ConnectionLost,
        ConfigError.
        """
        fitting = [tier for tier in TIERS if tier <= wait]
        if not fitting:
            return queue
        async with self._making:
            if queue not in self._waited_for:
                make = [
                    Queue.Declare(
                        queue=delay_queue(queue, tier), durable=True, arguments=handing_on(queue, 1000 * tier)
                    )
                    for tier in TIERS  # the longest last: where that is, all are
                ]
                await self.ask(f"making delay queues of {queue!r}", *make)
                self._waited_for.add(queue)
        return delay_queue(queue, fitting[-1])

    async def _waiting(self, queue: str) -> int:
        """How many messages wait in a queue's delay queues."""
        total = 0
        for tier in reversed(TIERS):
            found = await self.counts(delay_queue(queue, tier))
            if found is None:
                self._waited_for.discard(queue)
                return 0
            total += found.message_count
        return total

    # --- lag

    def place(self, queue: str) -> Place:
        """What no other queue has, at any broker."""
        return self._settings.url.hosts, self._settings.url.path, queue

    async def lag(self, topic: str, group: str) -> int:
        """What is ready in the group's queue, waits in its delay queues, or is held by receivers of this process."""
        if not possible(topic):
            return 0
        queue = self._names.queue(topic, group)
        place, delayed = self.place(queue), await self._waiting(queue)
        await self._agree(place)  # what we gave back by now is ready again
        found = await self.counts(queue)
        await self._agree(place)  # what was ready no more had been sent to us by then, and is here now
        held = sum(receiver.held for receiver in RECEIVERS if receiver.place == place)
        return 0 if found is None else int(found.message_count) + delayed + held

    def returning(self, place: Place | None = None) -> list["asyncio.Task[None]"]:
        """What waits for a queue, or any, to have back what receivers of ours held that have left."""
        return [
            receiver.returning
            for receiver in self.receivers
            if receiver.returning is not None
            and not receiver.returning.done()
            and place in {None, receiver.place}
        ]

    async def _agree(self, place: Place) -> None:
        """Have nothing under way between the broker and our receivers; channels wait for one another in nothing."""
        own = [receiver for receiver in self.receivers if receiver.place == place]
        await asyncio.gather(*(receiver.agree() for receiver in own))
