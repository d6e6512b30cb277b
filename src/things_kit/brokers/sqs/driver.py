"""`sqs://`: Amazon SQS and SNS, through aiobotocore.

    sqs://us-east-1                                        the region; credentials come by AWS's own chain
    sqs://us-east-1?endpoint=http://127.0.0.1:4566         an emulator
    sqs://eu-west-1?mode=queue                             queues alone, without SNS

The options are those of `SQSOptions`; `?queue.NAME=VALUE` and `?topic.NAME=VALUE` are attributes of what is created.

A topic is an SNS topic, and a group an SQS queue that is subscribed to it: what is published reaches the groups that
there are. A topic whose name ends in `.fifo` keeps the order of each key at the broker, across processes; others as far
as AWS does, which is roughly. SQS counts in seconds: shorter waits are the engine's.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from botocore.exceptions import ClientError

from things_kit.brokers.sqs.admin import Admin
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.errors import ERRORS, FORBIDDEN, bare, code_of
from things_kit.brokers.sqs.options import Settings
from things_kit.brokers.sqs.publisher import Publisher
from things_kit.brokers.sqs.queue import Copy, Queue
from things_kit.brokers.sqs.receiver import SQSReceiver
from things_kit.brokers.sqs.scheduling import destined
from things_kit.engine.clock import steady
from things_kit.engine.driver import Capabilities, Later, Receiver, Scheduled, Subscription
from things_kit.engine.uncounted import Uncounted
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question

MOST_AT_ONCE: Final = 1000
"""Messages of one `send`: those of one message group go one after the other, and all have to be there in time."""

GIVEN_BACK: Final = Uncounted()
"""By any consumer of this process: ids of messages are unique at AWS."""

PATIENCE: Final = 5.0
"""Seconds that a new receiver of a queue waits for polls of the one before; they rarely last so long."""


class SQSDriver:
    """Clients of SQS and SNS, what they know of topics and queues, and polls that outlive their receivers."""

    def __init__(self, settings: Settings) -> None:
        self.capabilities = Capabilities(
            delay=True,
            delay_from=1.0,
            lease=float(settings.options.lease),
            attempts=True,
            targeted=True,
            suspects=True,
            counts_releases=True,
            scheduled_in_lag=True,
            max_batch=MOST_AT_ONCE,
            max_message_bytes=settings.max_message_bytes,
        )
        self._settings = settings
        self._clients = Clients(settings)
        self._admin = Admin(settings, self._clients)
        self._publisher = Publisher(settings, self._clients, self._admin, self._held)
        self._receivers: set[SQSReceiver] = set()
        self._lingering: dict[asyncio.Task[None], str] = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `sqs://REGION?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Make the clients, and ask SQS for an answer, so that a wrong endpoint or key shows at once."""
        if not self._clients.is_open:
            await self._clients.open()
        try:
            await self.ping()
        except BaseException:
            await self._clients.close()  # who was not let in has nothing to close
            raise

    async def close(self) -> None:
        """Wait a moment for polls that are under way, and close the clients with their connections."""
        try:
            if self._lingering:
                await asyncio.wait(self._lingering, timeout=self._settings.options.grace)
        finally:
            lingering = list(self._lingering)
            for task in lingering:
                task.cancel()
            await asyncio.gather(*lingering, return_exceptions=True)
            await self._clients.close()

    async def ping(self) -> None:
        """Ask for a list of queues; not to be allowed that is an answer too. What cannot be reached is said at once."""
        self._check_open()
        doing = f"asking {self._settings.url.display} for an answer"
        try:
            await bare(self._clients.sqs.list_queues(MaxResults=1), doing)
        except ClientError as error:
            if code_of(error) not in FORBIDDEN:
                raise ERRORS.translate(error, doing) from error

    def _check_open(self) -> None:
        if not self._clients.is_open:
            raise ConfigError(f"{self._settings.url.display} is not open")

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic, and a subscribed queue for each group."""
        await self._admin.declare_topic(topic)
        for group in groups:
            await self._admin.declare_group(topic, group)
        for queue in [each.queue for each in self._receivers if each.queue.topic == topic]:
            with suppress(ConfigError):  # its subscription went with the topic that was there before
                await self._admin.keep_subscribed(topic, queue.url)

    async def has_listeners(self, topic: str) -> bool | None:
        """Whether anybody is subscribed to the topic; None if we may not ask. A queue keeps what comes in any case."""
        self._check_open()
        if self._settings.by_queue:
            return True
        try:
            return await self._admin.has_subscribers(topic)
        except ConfigError as error:
            raise PublishError(str(error)) from error

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the topic with its groups' queues and subscriptions, or one group's alone."""
        if group is None:
            await self._admin.remove(topic)
        else:
            await self._admin.remove_group(topic, group)

    # --- sending and receiving

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish in batches; what is replayed for one group goes to its queue alone."""
        self._check_open()
        return await self._publisher.send(messages)

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Send copies to the queues of their groups alone; SQS keeps them until they are due."""
        self._check_open()
        results: list[Exception | None] = [None] * len(copies)
        queues: dict[tuple[str, str], list[tuple[int, Later]]] = {}
        for index, copy in enumerate(copies):
            queues.setdefault((copy.message.topic, copy.group), []).append((index, copy))
        for (topic, group), part in queues.items():
            queue = await self._queue(topic, group)
            for (index, _), result in zip(part, await _sent_later(queue, part), strict=True):
                results[index] = result
        return results

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Send copies to the queues of all groups that there are; SQS, and then their consumers, keep them until they are due."""
        self._check_open()
        results: list[Exception | None] = [None] * len(entries)
        destinations = await destined(entries, self._admin, self._settings.bytes_at_once, results)
        await self._publisher.dispatch(destinations, results)
        return results

    async def _queue(self, topic: str, group: str) -> Queue | None:
        """A group's queue, if there is one; an ephemeral group's is that of its receiver."""
        for receiver in self._receivers:
            if (receiver.subscription.topic, receiver.subscription.group) == (topic, group):
                return receiver.queue
        url = await self._admin.queue_url(topic, group)
        return None if url is None else self._queue_at(topic, url)

    def _queue_at(self, topic: str, url: str) -> Queue:
        return Queue(self._settings, self._clients.sqs, topic, url, self._admin.forget)

    def _held(self, identity: str) -> str | None:
        for receiver in self._receivers:
            for receipt, token in receiver.held.items():
                if token.identity == identity:
                    return receipt
        return None

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """Make sure of the group's queue, and begin to poll it with the first `fetch`."""
        self._check_open()
        url = await self._admin.join(subscription)
        before = [task for task, queue in self._lingering.items() if queue == url]
        if before:  # a poll from before would take messages from this receiver, and their order with them
            await asyncio.wait(before, timeout=PATIENCE)
        receiver = SQSReceiver(
            self._settings,
            self._queue_at(subscription.topic, url),
            self._admin,
            subscription,
            GIVEN_BACK,
            self._linger,
            self._receivers.discard,
        )
        self._receivers.add(receiver)
        return receiver

    def _linger(self, url: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="things_kit sqs farewell")
        self._lingering[task] = url
        task.add_done_callback(lambda done: self._lingering.pop(done, None))
        return task

    # --- lag

    async def lag(self, topic: str, group: str) -> int | None:
        """What is in the group's queue: ready, handed out, or delayed. AWS counts approximately."""
        self._check_open()
        return await self._admin.lag(topic, group)

    # --- what there is

    async def topics(self) -> Sequence[str]:
        """All topics of the account."""
        self._check_open()
        return await self._admin.topics()

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic the queues that are subscribed."""
        self._check_open()
        return {topic: await self._admin.groups(topic) for topic in topics}

    # --- facts

    async def facts(self, question: "Question") -> "Facts":
        """How the topic, its queues and subscriptions are."""
        from things_kit.brokers.sqs.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        return await facts_of(self._settings, self._clients, self._admin, question)


async def _sent_later(queue: Queue | None, part: Sequence[tuple[int, Later]]) -> Sequence[Exception | None]:
    if queue is None:
        return [PublishError("its group has no queue any more")] * len(part)
    now = steady()
    return await queue.put_aside(
        [
            Copy(
                copy.message,
                max(0.0, copy.due.timestamp() - now),
                copy.attempt,
                f"{copy.message.id} {copy.due.isoformat()} {copy.attempt} {copy.suspect}",
                copy.suspect,
            )
            for _, copy in part
        ]
    )
