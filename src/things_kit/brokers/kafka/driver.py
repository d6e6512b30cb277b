"""`kafka://`: Apache Kafka, through librdkafka.

    kafka://localhost:9092                       one broker of the cluster is enough to find the others
    kafka://user:password@a:9093,b:9093?ca=ca.pem

The options are those of `KafkaOptions`; `?conf.NAME=VALUE` hands any property to librdkafka, and `?topic.NAME=VALUE` is a
setting of topics that are created.

A group's place is the offset that it has committed, for each partition, and the metadata of that commit, which says what
is finished beyond it. Commits follow acknowledgements within some hundredths of a second, and when a consumer stops or
gives up a partition: a killed process repeats what it held, and what was acknowledged in that moment. While a group
rebalances by the classic protocol commits have to wait until all members have answered, up to `session_timeout` for one
that has died; with `group_protocol=consumer` they need not. `lag` sees what is committed.

Messages of one key keep their order, as a key has one partition; those without a key are spread. A message that is
published with a `partition` goes there. An ephemeral group sees partitions that are added within some seconds.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)  # fmt: skip
from confluent_kafka.admin import (  # type: ignore[attr-defined] # no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from things_kit.brokers.kafka.batches import BatchSizes
from things_kit.brokers.kafka.ephemeral import EphemeralReceiver
from things_kit.brokers.kafka.options import (
    Settings,
    away,
    check_group,
    check_topic,
    error_of,
    possible_topic,
    refused_login,
    translated,
    unknown,
)  # fmt: skip
from things_kit.brokers.kafka.producer import SendingThread
from things_kit.brokers.kafka.receiver import KafkaReceiver
from things_kit.engine.driver import Capabilities, Receiver, Subscription
from things_kit.engine.offsets import decode
from things_kit.engine.retry_topics import is_retry_topic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, MessageTooLarge, UnsupportedError
from things_kit.messaging.message import Message
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.messaging.policy import Start

ResultT = TypeVar("ResultT")

if TYPE_CHECKING:
    from things_kit.brokers.kafka.share import ShareReceiver
    from things_kit.engine.diagnosis import Finding, Question

    Member: TypeAlias = KafkaReceiver | ShareReceiver

ANSWER: Final = 5.0
"""Seconds that the broker may take to answer a question."""

JOIN: Final = 60.0
"""Seconds to join a group: the members it has may take their time to let go of partitions."""

EVERYWHERE: Final = "__consumer_offsets"
"""The topic in which Kafka itself keeps the groups' places."""

VISIBLE: Final = 10.0
"""Seconds until a topic that was created or removed is so for everybody."""

_Spec: Any = OffsetSpec  # which has no annotations
_EARLIEST: Final[Any] = _Spec.earliest()
_LATEST: Final[Any] = _Spec.latest()


class KafkaDriver:
    """An admin client, a producer and its thread, and a consumer and its thread for each subscription."""

    def __init__(self, settings: Settings) -> None:
        self._share = settings.options.group_type == "share"
        self.capabilities = Capabilities(
            retained=True,
            partitions=not self._share,
            attempts=self._share,
            lag=not self._share,
            max_message_bytes=settings.options.max_message_bytes,
        )
        self._settings = settings
        self._threads: ThreadPoolExecutor | None = None
        self._receivers: set[Member] = set()
        self._trouble: KafkaError | None = None
        self._sizes = BatchSizes(self._largest)
        self._admin: AdminClient
        self._sending: SendingThread

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `kafka://HOST:PORT,HOST:PORT?OPTION=VALUE`."""
        settings = Settings.from_url(url)
        if settings.options.group_type == "share":
            _share_receiver()
        return cls(settings)

    async def open(self) -> None:
        """Ask the cluster for its brokers, so that a wrong address or login shows at once."""
        if self._threads is None:
            settings = self._settings
            self._admin = settings.created(AdminClient, settings.common(), error_cb=self._on_error)
            self._threads = ThreadPoolExecutor(4, thread_name_prefix="things_kit kafka admin")
        await self.ping()
        if not hasattr(self, "_sending"):
            self._sending = SendingThread(self._settings)

    async def close(self) -> None:
        """End the threads, and with them the clients and their connections."""
        if self._threads is None:
            return
        threads, self._threads = self._threads, None
        for receiver in self._receivers:
            receiver.abandon()
        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        # Not asyncio.to_thread: the loop would keep its thread
        threading.Thread(
            target=self._close, args=(threads, loop, closed), name="things_kit kafka close"
        ).start()
        await closed.wait()

    def _close(
        self, threads: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop, closed: asyncio.Event
    ) -> None:
        try:
            for receiver in self._receivers:
                receiver.thread.join()
            self._receivers.clear()
            if hasattr(self, "_sending"):
                self._sending.close()
            threads.shutdown(wait=True, cancel_futures=True)
            del self._admin
        finally:
            loop.call_soon_threadsafe(closed.set)

    async def ping(self) -> None:
        """Ask any broker about a topic that every cluster has; that it answers is enough."""
        await self._blocking("asking the cluster for an answer", self._ask)

    def _ask(self) -> None:
        # Not describe_cluster(): a broker that is fenced knows of no brokers, and at such an answer librdkafka (2.16)
        # ends the whole process by an assertion in rd_kafka_admin_response_parse. It cannot be empty of topics.
        self._trouble = None
        timeout = min(ANSWER, max(0.5, self._settings.url.engine.publish_timeout))
        try:
            asked = self._admin.describe_topics(TopicCollection([EVERYWHERE]), request_timeout=timeout)
            _result(asked[EVERYWHERE])
        except KafkaException as error:
            if unknown(error_of(error)) or error_of(error).code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return
            self._admin.poll(0)  # has `_on_error` called
            raise KafkaException(self._trouble or error_of(error)) from None

    def _on_error(self, error: KafkaError) -> None:
        """What stands behind "timed out": a refused login must not look like a broker that is away."""
        if refused_login(error):
            self._trouble = error

    async def _blocking(self, doing: str, call: Callable[[], ResultT]) -> ResultT:
        """Call in a thread of ours, and translate its error."""
        if self._threads is None:
            raise ConfigError(f"{self._settings.url.display} is not open")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except KafkaException as error:
            raise translated(error_of(error), doing) from error

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic. Groups need nothing: one without a commit begins at the earliest."""
        check_topic(topic)
        for group in groups:
            check_group(group)
            if self._share:
                await self._begin_share(group, "earliest")
        await self._blocking(f"declaring {topic!r}", lambda: self._declare(topic, groups))

    def _declare(self, topic: str, groups: Sequence[str]) -> None:
        if self._leaders(topic):
            return
        options = self._settings.options
        kept = DEAD_LETTER_GROUP in groups or is_retry_topic(topic)
        new = NewTopic(
            topic,
            num_partitions=options.partitions,
            replication_factor=options.replication,
            config=self._settings.topic_settings(kept=kept),
        )
        try:
            _result(
                self._admin.create_topics([new], operation_timeout=VISIBLE, request_timeout=VISIBLE)[topic]
            )
        except KafkaException as error:
            if error_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        self._await(lambda: self._leaders(topic), f"the topic {topic!r} has no leaders yet")

    def _leaders(self, topic: str) -> bool:
        """Whether the topic is there, and every partition has a leader that takes messages."""
        partitions = self._describe(topic)
        return bool(partitions) and all(each.leader is not None for each in partitions)

    def _describe(self, topic: str) -> list[Any]:
        """The partitions of a topic, none if it is missing. Unlike list_topics() this never creates one."""
        try:
            described = self._admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER)[topic]
            return list(_result(described).partitions)
        except KafkaException as error:
            if unknown(error_of(error)):
                return []
            raise

    def _await(self, done: Callable[[], bool], otherwise: str) -> None:
        ends = time.monotonic() + VISIBLE
        while not done():
            if time.monotonic() > ends:
                raise away(otherwise)
            time.sleep(0.02)

    async def remove(self, topic: str) -> None:
        """Delete the topic; Kafka forgets the offsets that groups have committed for it."""
        self._sizes.forget(topic)
        if possible_topic(topic):
            await self._blocking(f"removing {topic!r}", lambda: self._remove(topic))

    def _remove(self, topic: str) -> None:
        try:
            _result(
                self._admin.delete_topics([topic], operation_timeout=VISIBLE, request_timeout=VISIBLE)[topic]
            )
        except KafkaException as error:
            if not unknown(error_of(error)):
                raise
        self._await(lambda: not self._describe(topic), f"the topic {topic!r} is not gone yet")

    # --- sending and receiving

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Hand them to librdkafka, and wait for all delivery reports."""
        sizes = self._sizes
        await sizes.learn({message.topic for message in messages})
        results = await self._sending.send(messages, sizes.smaller)
        if any(results):
            large = [index for index, result in enumerate(results) if isinstance(result, MessageTooLarge)]
            shrunk = await sizes.shrunk({messages[index].topic for index in large}) if large else set()
            again = [index for index in large if messages[index].topic in shrunk]
            latest = await self._sending.send([messages[index] for index in again], sizes.smaller)
            for index, result in zip(again, latest, strict=True):
                results[index] = result
        return results

    async def _largest(self, topics: Iterable[str]) -> dict[str, int | None]:
        """What each topic takes, as far as we may know."""
        return await self._blocking("asking for the settings of topics", lambda: self._ask_largest(topics))

    def _ask_largest(self, topics: Iterable[str]) -> dict[str, int | None]:
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
        largest: dict[str, int | None] = {}
        for resource, asked in self._admin.describe_configs(resources, request_timeout=ANSWER).items():
            try:
                largest[resource.name] = int(_result(asked)["max.message.bytes"].value)
            except KafkaException as error:
                if error_of(error).code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    largest[resource.name] = None
                elif not unknown(error_of(error)):
                    raise
        return largest

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """Join the group, or read as nobody's member for an ephemeral one."""
        check_topic(subscription.topic)
        check_group(subscription.group)
        if subscription.create:
            await self.declare(subscription.topic, ())
        elif not await self._blocking("looking for the topic", lambda: self._describe(subscription.topic)):
            raise ConfigError(f"there is no topic {subscription.topic!r}: declare it first")
        kind = await self._kind(subscription)
        self._receivers = {receiver for receiver in self._receivers if receiver.thread.is_alive()}
        receiver = kind(self._settings, subscription)
        self._receivers.add(receiver)
        await receiver.join(JOIN)
        return receiver

    async def _kind(self, subscription: Subscription) -> "type[Member]":
        if subscription.ephemeral:
            return EphemeralReceiver
        if not self._share:
            return KafkaReceiver
        if subscription.ordering != "none":
            raise UnsupportedError(
                f'a share group keeps no order: group_type=share goes with ordering="none", not {subscription.ordering!r}'
            )
        await self._begin_share(subscription.group, subscription.start)
        return _share_receiver()

    async def _begin_share(self, group: str, start: Start) -> None:
        """Where a share group begins is a setting of the group, which counts when its first member comes."""
        setting = ConfigEntry("share.auto.offset.reset", start, incremental_operation=AlterConfigOpType.SET)
        asked = ConfigResource(ConfigResource.Type.GROUP, group, incremental_configs=[setting])
        doing = f"setting up the share group {group!r}"
        await self._blocking(
            doing, lambda: [_result(each) for each in self._admin.incremental_alter_configs([asked]).values()]
        )

    # --- lag

    async def lag(self, topic: str, group: str) -> int | None:
        """What lies behind the committed offsets, less what their metadata says is finished."""
        if self._share:
            return None  # the client cannot ask for it
        if not possible_topic(topic):
            return 0
        check_group(group)
        return await self._blocking(f"asking for the lag of {topic!r}", lambda: self._lag(topic, group))

    def _lag(self, topic: str, group: str) -> int:
        partitions = [TopicPartition(topic, each.id) for each in self._describe(topic)]
        if not partitions:
            return 0
        committed = self._committed(group, partitions)
        ends = self._offsets(partitions, _LATEST)
        fresh = [each for each in partitions if committed[each.partition].offset == OFFSET_INVALID]
        starts = self._offsets(fresh, _EARLIEST) if fresh else {}
        lag = 0
        for partition, end in ends.items():
            place = committed[partition]
            begin = starts.get(partition, place.offset)
            finished = decode(begin, place.metadata)
            lag += max(0, end - begin) - sum(min(stop, end) - min(start, end) for start, stop in finished)
        return max(0, lag)

    def _committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[int, TopicPartition]:
        asked = ConsumerGroupTopicPartitions(group, list(partitions))
        try:
            found = _result(self._admin.list_consumer_group_offsets([asked], request_timeout=ANSWER)[group])
        except KafkaException as error:
            if error_of(error).code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise
            return {each.partition: TopicPartition(each.topic, each.partition) for each in partitions}
        return {each.partition: each for each in found.topic_partitions}

    def _offsets(self, partitions: Sequence[TopicPartition], spec: Any) -> dict[int, int]:
        asked = self._admin.list_offsets(dict.fromkeys(partitions, spec), request_timeout=ANSWER)
        return {each.partition: _result(future).offset for each, future in asked.items()}

    # --- findings

    async def examine(self, question: "Question") -> "Sequence[Finding]":
        """What `things-kit doctor` has to say of the cluster, the topic and the group."""
        from things_kit.brokers.kafka.doctor.examination import examine  # noqa: PLC0415 - nobody else needs it

        return await self._blocking(
            "examining the cluster", lambda: examine(self._admin, self._settings, question)
        )


def _share_receiver() -> "type[ShareReceiver]":
    try:
        from things_kit.brokers.kafka.share import ShareReceiver  # noqa: PLC0415 - older clients have none
    except ImportError as error:
        raise ConfigError("group_type=share needs confluent-kafka 2.16 or newer") from error
    return ShareReceiver


def _result(future: "Future[Any]") -> Any:
    """An admin call's answer: librdkafka ends it in time, and this is for the case that it does not."""
    try:
        return future.result(2 * VISIBLE)
    except TimeoutError as error:
        raise away("no answer") from error
