"""`kafka://`: Apache Kafka, through librdkafka.

    kafka://localhost:9092                       one broker of the cluster is enough to find the others
    kafka://user:password@a:9093,b:9093?ca=ca.pem

The options are those of `KafkaOptions`; `?conf.NAME=VALUE` hands any property to librdkafka, and `?topic.NAME=VALUE` is a
setting of topics that are created.

A group's place is the offset that it has committed, for each partition, and the metadata of that commit, which says what
is finished beyond it. Commits follow acknowledgements within `commit_interval`, and when a consumer stops or gives up a
partition: a killed process repeats what it held, and what was acknowledged in that time. While a group rebalances by the
classic protocol commits have to wait until all members have answered, up to `session_timeout` for one that has died; with
`group_protocol=consumer` they need not. `lag` sees what is committed.

Messages of one key keep their order, as a key has one partition; those without a key are spread. A message that is
published with a `partition` goes there. An ephemeral group sees partitions that are added within some seconds.

No client of librdkafka is trusted to find back to its brokers, nor to end in time: those that fail are replaced, and end
in threads that nobody waits for.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from things_kit.brokers.kafka.admin import Admin, id_of
from things_kit.brokers.kafka.batches import BatchSizes
from things_kit.brokers.kafka.ephemeral import EphemeralReceiver, Left
from things_kit.brokers.kafka.options import Settings, check_group, check_topic, instance_id, possible_topic
from things_kit.brokers.kafka.places import Beginning
from things_kit.brokers.kafka.producer import SendingThread
from things_kit.brokers.kafka.receiver import KafkaReceiver
from things_kit.brokers.kafka.waits import SETTINGS as WAIT_SETTINGS
from things_kit.brokers.kafka.waits import WaitReceiver
from things_kit.engine.driver import Capabilities, Pushed, Subscription
from things_kit.engine.naming import is_dead_letter_group
from things_kit.engine.retry_topics import is_retry_topic
from things_kit.engine.url import BrokerURL
from things_kit.engine.wait_topics import LEASE, WAITS, is_wait_topic
from things_kit.messaging.errors import ConfigError, MessageTooLarge, UnsupportedError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.brokers.kafka.share import ShareReceiver
    from things_kit.engine.facts import Facts, Question

JOIN: Final = 60.0
"""Seconds to join a group: the members it has may take their time to let go of partitions."""


class KafkaDriver:
    """An admin client, a producer and its thread, and a consumer and its thread for each subscription."""

    def __init__(self, settings: Settings) -> None:
        self._share = settings.options.group_type == "share"
        self.capabilities = Capabilities(
            retained=True,
            partitions=not self._share,
            lasting_inbox=False,
            attempts=self._share,
            lag=not self._share,
            carried=0.0 if self._share else math.inf,
            max_batch=50_000,  # each send waits a round trip for its last confirmation
            max_message_bytes=settings.options.max_message_bytes,
        )
        self._settings = settings
        self._admin = Admin(settings)
        self._sizes = BatchSizes(self._admin.largest)
        self._sending: SendingThread | None = None
        self._receivers: set[KafkaReceiver | ShareReceiver] = set()
        # Of each topic and group the id of the topic that was read last: one of the same name may take its place
        self._read: dict[tuple[str, str], str] = {}
        self._left: Left = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `kafka://HOST:PORT,HOST:PORT?OPTION=VALUE`."""
        settings = Settings.from_url(url)
        if settings.options.group_type == "share":
            _share_receiver()
        return cls(settings)

    async def open(self) -> None:
        """Ask the cluster for its brokers, so that a wrong address or login shows at once."""
        self._admin.open()
        if self._sending is None:  # before the question, so that it connects meanwhile
            self._sending = SendingThread(self._settings, self.ping)
        await self.ping()

    async def close(self) -> None:
        """End the threads, and with them the clients and their connections; what does not end in time ends by itself."""
        receivers, self._receivers = self._receivers, set()
        sending, self._sending = self._sending, None
        ends = [receiver.close() for receiver in receivers]
        if sending is not None:
            ends.append(sending.close())
        await asyncio.gather(*ends, self._admin.close())

    async def ping(self) -> None:
        """Ask any broker of the cluster."""
        await self._admin.ping()

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic. Groups need nothing: one without a commit begins at the earliest."""
        check_topic(topic)
        for group in groups:
            check_group(group)
            if self._share:
                await self._admin.begin_share(group, "earliest")
        self._sizes.forget(topic)
        if is_wait_topic(topic):
            await self._admin.declare(topic, kept=True, partitions=len(WAITS), settings=WAIT_SETTINGS)
            return
        kept = is_retry_topic(topic) or any(is_dead_letter_group(group) for group in groups)
        await self._admin.declare(topic, kept=kept)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the topic; Kafka forgets the offsets that groups have committed for it. With a group, its offsets alone."""
        if not possible_topic(topic):
            return
        if group is not None:
            check_group(group)
            await self._admin.remove_group(topic, group)
            return
        self._sizes.forget(topic)
        await self._admin.remove(topic)

    # --- sending and receiving

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Hand them to librdkafka, and wait for all delivery reports."""
        if self._sending is None:
            raise ConfigError(f"{self._settings.url.display} is not open")
        sizes = self._sizes
        await sizes.learn({message.topic for message in messages})
        results = await self._sending.send(messages, sizes.smaller)
        if not any(results):
            return results
        large = {n: messages[n] for n, result in enumerate(results) if isinstance(result, MessageTooLarge)}
        shrunk = await sizes.shrunk({message.topic for message in large.values()})
        again = {n: message for n, message in large.items() if message.topic in shrunk}
        latest = await self._sending.send(list(again.values()), sizes.smaller)
        for n, result in zip(again, latest, strict=True):
            results[n] = result
        return results

    async def subscribe(self, subscription: Subscription) -> Pushed:
        """Join the group, or read as nobody's member for an ephemeral one."""
        check_topic(subscription.topic)
        check_group(subscription.group)
        if subscription.create:
            await self.declare(subscription.topic, ())
        found = await self._admin.topic(subscription.topic)
        if found is None:
            raise ConfigError(f"there is no topic {subscription.topic!r}: declare it first")
        self._receivers = {receiver for receiver in self._receivers if receiver.thread.is_alive()}
        receiver = await self._receiver(subscription, found)
        self._receivers.add(receiver)
        await receiver.join(JOIN)
        self._read[subscription.topic, subscription.group] = id_of(found)
        return receiver

    async def _receiver(self, subscription: Subscription, topic: Any) -> "KafkaReceiver | ShareReceiver":
        if self._share and not subscription.ephemeral:
            if subscription.ordering != "none":
                raise UnsupportedError(
                    'a share group keeps no order: group_type=share goes with ordering="none", '
                    f"not {subscription.ordering!r}"
                )
            await self._admin.begin_share(subscription.group, subscription.start)
            return _share_receiver()(self._settings, subscription)
        beginning = await self._beginning(subscription, topic)
        settings = self._settings
        kind: type[KafkaReceiver] = KafkaReceiver
        if subscription.ephemeral:
            return EphemeralReceiver(settings, subscription, self._admin, beginning, left=self._left)
        if is_wait_topic(subscription.topic):
            kind, settings = WaitReceiver, settings.with_session(LEASE)
        return kind(settings, subscription, self._admin, beginning, self._instance(subscription))

    async def _beginning(self, subscription: Subscription, topic: Any) -> Beginning:
        """Where to begin in partitions without a place; `start` is only for groups that have none at all."""
        topic_id = id_of(topic)
        anew = self._read.get((subscription.topic, subscription.group), topic_id) != topic_id
        latest = 0
        if subscription.start == "latest" and not subscription.ephemeral and not anew:
            partitions = [each.id for each in topic.partitions]
            if not await self._admin.committed(subscription.group, subscription.topic, partitions):
                latest = len(partitions)
        return Beginning(topic_id, anew=anew, latest=latest)

    def _instance(self, subscription: Subscription) -> str | None:
        """Static membership is by consumer, of which a process has several: each has its own name, the same next time."""
        name = self._settings.options.group_instance_id
        if name is None:
            return None
        taken = {receiver.instance for receiver in self._receivers if receiver.serves}
        names = (instance_id(name, subscription.topic, number) for number in range(len(taken) + 1))
        return next(each for each in names if each not in taken)

    # --- lag

    async def lag(self, topic: str, group: str) -> int | None:
        """What lies behind the committed offsets, less what their metadata says is finished."""
        if self._share:
            return None  # the client cannot ask for it
        if not possible_topic(topic):
            return 0
        check_group(group)
        return sum(place.waiting for place in await self._admin.places(topic, group))

    # --- what there is

    async def topics(self) -> Sequence[str]:
        """All topics of the cluster but its own."""
        return await self._admin.topics()

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The groups that have committed in each topic."""
        return await self._admin.groups(topics)

    # --- facts

    async def facts(self, question: "Question") -> "Facts":
        """How the cluster, the topic and the group are."""
        from things_kit.brokers.kafka.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        return await facts_of(self._admin, self._settings, question)


def _share_receiver() -> "type[ShareReceiver]":
    try:
        from things_kit.brokers.kafka.share import ShareReceiver  # noqa: PLC0415 - older clients have none
    except ImportError as error:
        raise ConfigError("group_type=share needs confluent-kafka 2.16 or newer") from error
    return ShareReceiver
