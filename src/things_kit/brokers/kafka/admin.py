"""What the cluster is asked for and told beside messages: topics, settings, places of groups.

librdkafka's admin client answers from threads of its own, so no call blocks. One that got no answer is replaced: it
may have forgotten its last broker (see `standing`), and a new one begins at the addresses of the URL.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import msgspec
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
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

from things_kit.brokers.kafka.errors import (
    ERRORS,
    REFUSED_LOGIN,
    UNKNOWN,
    UNREACHABLE,
    away,
    error_of,
    unanswered,
)  # fmt: skip
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.parting import answered, part, parted
from things_kit.brokers.kafka.readers import GroupReaders
from things_kit.engine.offsets import decode
from things_kit.engine.retry_topics import retry_topics
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.policy import Start

ResultT = TypeVar("ResultT")
KeyT = TypeVar("KeyT")

ANSWER: Final = 5.0
"""Seconds that the broker may take to answer a question."""

NEVER: Final = 3600.0
"""Seconds for which librdkafka itself waits for a group's coordinator: the client is replaced long before. One that gives up,
and finds the coordinator then, reads what it has freed (2.16, its pull request 5397)."""

KNOWN: Final = 300.0
"""Seconds for which a client is sure to know the leaders that it has heard of; librdkafka forgets them after `metadata.max.age.ms`, 900 s."""

VISIBLE: Final = 10.0
"""Seconds until a topic that was created or removed is so for everybody."""

LOOK: Final = 0.02
"""Seconds between two looks at whether it is."""

EVENTS: Final = 0.1
"""Seconds between two looks at what librdkafka has to say while an answer is awaited."""

MISSING: Final = frozenset({KafkaError.GROUP_ID_NOT_FOUND})
"""What a broker says of a group that it does not have."""

EVERYWHERE: Final = "__consumer_offsets"
"""The topic in which Kafka itself keeps the groups' places."""

_Spec: Any = OffsetSpec  # which has no annotations


class Place(msgspec.Struct, frozen=True):
    """How far a group is in a partition: `committed` is None before its first commit."""

    partition: int
    start: int
    end: int
    committed: int | None = None
    metadata: str | None = None

    @property
    def waiting(self) -> int:
        """Offsets that are not finished and still there."""
        return self._unfinished(self.start, self.end)

    @property
    def lost(self) -> int:
        """Offsets that were not finished and are deleted."""
        return 0 if self.committed is None else self._unfinished(0, self.start)

    def _unfinished(self, start: int, end: int) -> int:
        committed = self.start if self.committed is None else self.committed
        begin = max(start, committed)
        done = (
            max(0, min(stop, end) - max(first, begin)) for first, stop in decode(committed, self.metadata)
        )
        return max(0, end - begin - sum(done))


class _Client:
    """The one reference to a client: what is asked, and the errors that keep what was asked, know only this.

    Whoever drops the last reference to a client waits for its end. So that is a thread of its own, and never the loop.

    Attributes:
        described: When it heard of a topic's leaders last.
    """

    def __init__(self, settings: Settings) -> None:
        self.described: dict[str, float] = {}
        self._clients: list[Any] = [settings.created(AdminClient, settings.common(), error_cb=self._on_error)]
        self._refused: KafkaError | None = None
        self._unreachable: KafkaError | None = None
        self._all_down = False

    @property
    def client(self) -> Any:
        """Raises KafkaException once it is to end."""
        if not self._clients:
            raise self.reason or away("the client was replaced, or closed")
        return self._clients[0]

    def end(self) -> None:
        """Let it go. Blocks."""
        clients, self._clients = self._clients, []
        clients.clear()

    def begin(self) -> None:
        """Something is asked anew: what it says of the past concerns nobody."""
        self.client.poll(0)
        self._refused, self._unreachable, self._all_down = None, None, False

    def _on_error(self, error: KafkaError) -> None:
        """What stands behind "timed out": called by librdkafka inside of `poll`."""
        if error.code() in REFUSED_LOGIN:
            self._refused = error
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._all_down = True
        elif error.code() in UNREACHABLE:
            self._unreachable = error

    @property
    def reason(self) -> KafkaException | None:
        """Why there is no answer, if it has said so."""
        found = self._refused or self._unreachable
        return None if found is None else KafkaException(found)

    async def answer(self, future: "Future[Any]", within: float) -> Any:
        """The answer, or the KafkaException that is one. Raises where there is none."""
        answer, loop = asyncio.wrap_future(future), asyncio.get_running_loop()
        answer.add_done_callback(_heard)
        ends = loop.time() + within + 1.0  # librdkafka ends it in time; if not, we do
        while not answer.done():
            await asyncio.wait({answer}, timeout=EVENTS)
            self.client.poll(0)
            if answer.done():
                break
            if self._refused is not None or self._all_down:
                raise self.reason or away("no broker can be reached")
            if loop.time() > ends:
                raise self.reason or away("no answer")
        error = answer.exception()
        if error is not None and not isinstance(error, KafkaException):
            raise error
        return error or answer.result()


class Admin:
    """The driver's questions to the cluster. All methods raise ConnectionLost or ConfigError, and can be cancelled."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._readers = GroupReaders(settings)
        self._current: _Client | None = None

    def open(self) -> None:
        """Have a client. Raises ConfigError if librdkafka refuses a property."""
        if self._current is None:
            self._current = _Client(self._settings)

    @property
    def client(self) -> Any:
        """Raises ConfigError while it is closed."""
        return self._here().client

    def _here(self) -> _Client:
        if self._current is None:
            raise ConfigError(f"{self._settings.url.display} is not open")
        return self._current

    async def close(self) -> None:
        """End the clients, in bounded time."""
        current, self._current = self._current, None
        ends = [self._readers.close()]
        if current is not None:
            ends.append(parted(current.end, "admin close"))
        await asyncio.gather(*ends)

    # --- asking

    async def _ask(
        self, doing: str, call: Callable[[Any], Mapping[KeyT, "Future[ResultT]"]], within: float = ANSWER
    ) -> dict[KeyT, ResultT | KafkaException]:
        """Every answer, or why there is none. Raises for what concerns the client, not what was asked for."""
        current = self._here()
        try:
            with ERRORS.during(doing):
                current.begin()
                asked = call(current.client)
                answers = {key: await current.answer(future, within) for key, future in asked.items()}
                for each in answers.values():
                    if isinstance(each, KafkaException) and unanswered(error_of(each)):
                        raise current.reason or each
        except Exception:
            if current is self._current:
                self._current = None
                part(current.end, "admin end")
                self.open()
            raise
        return answers

    async def _ask_one(
        self,
        doing: str,
        call: Callable[[Any], Mapping[Any, "Future[ResultT]"]],
        within: float = ANSWER,
        missing: Container[int] = (),
    ) -> ResultT | None:
        """The only answer; None for one of the errors that say it is missing."""
        (answer,) = (await self._ask(doing, call, within)).values()
        if not isinstance(answer, KafkaException):
            return answer
        if error_of(answer).code() in missing:
            return None
        with ERRORS.during(doing):
            raise answer

    async def _listed(self, doing: str, *topic: str) -> Any:
        here = self._here()
        with ERRORS.during(doing):
            return await answered(lambda: here.client.list_topics(*topic, timeout=ANSWER), "list")

    async def ping(self) -> None:
        """Ask any broker about a topic that every cluster has; that it answers is enough.

        Not describe_cluster(): a broker that is fenced knows of no brokers, and at such an answer librdkafka (2.16)
        ends the whole process by an assertion in rd_kafka_admin_response_parse. It cannot be empty of topics.
        """
        within = min(ANSWER, max(0.5, self._settings.url.engine.publish_timeout))
        missing = (*UNKNOWN, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        await self._described(EVERYWHERE, "asking the cluster for an answer", within, missing)

    async def brokers(self) -> Sequence[int]:
        """The ids of those that take part. They are not described, see `ping`."""
        return sorted((await self._listed("asking the cluster for its brokers", EVERYWHERE)).brokers)

    # --- topics

    async def topic(self, topic: str) -> Any:
        """Its description, with its id and partitions; None if it is missing."""
        return await self._described(topic, f"looking for the topic {topic!r}", ANSWER, UNKNOWN)

    async def _know(self, topic: str) -> None:
        """Have the client know the leaders of a topic, before something is asked of each.

        Those that it does not know it looks for in the thread that asks, and in its own, of which one frees what the other uses: the
        process ends by a segmentation fault (librdkafka 2.16, rd_kafka_topic_partition_list_query_leaders_async).
        """
        if time.monotonic() - self._here().described.get(topic, -KNOWN) >= KNOWN:
            await self.topic(topic)

    async def topics(self) -> list[str]:
        """All but Kafka's own."""
        known = await self._listed("asking for all topics")
        return [topic for topic in known.topics if not topic.startswith("__")]

    async def _described(self, topic: str, doing: str, within: float, missing: Container[int]) -> Any:
        """Unlike list_topics() of a name this never creates one."""
        asked, current = TopicCollection([topic]), self._here()
        found = await self._ask_one(
            doing, lambda client: client.describe_topics(asked, request_timeout=within), within, missing
        )
        if found is not None:
            current.described[topic] = time.monotonic()
        return found

    async def declare(
        self, topic: str, *, kept: bool, partitions: int | None = None, settings: Mapping[str, str] = {}
    ) -> None:
        """Create a topic that is missing. What is in one that is to be `kept` is not cleaned by options of the URL."""
        if await self._is_led(topic):
            return
        options, doing = self._settings.options, f"declaring {topic!r}"
        new = NewTopic(
            topic,
            num_partitions=partitions or options.partitions,
            replication_factor=options.replication,
            config={**self._settings.topic_settings(kept=kept), **settings},
        )
        await self._ask_one(
            doing,
            lambda client: client.create_topics([new], operation_timeout=VISIBLE, request_timeout=VISIBLE),
            VISIBLE,
            {KafkaError.TOPIC_ALREADY_EXISTS},
        )
        await self._until(self._is_led, topic, doing, "it has no leaders yet")

    async def _is_led(self, topic: str) -> bool:
        """Whether the topic is there, and every partition has a leader that takes messages."""
        found = await self.topic(topic)
        return found is not None and bool(found.partitions) and all(
            each.leader is not None for each in found.partitions
        )  # fmt: skip

    async def _is_gone(self, topic: str) -> bool:
        return await self.topic(topic) is None

    async def _until(
        self, so: Callable[[str], Awaitable[bool]], topic: str, doing: str, otherwise: str
    ) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + VISIBLE
        while not await so(topic):
            if loop.time() > ends:
                with ERRORS.during(doing):
                    raise away(otherwise)
            await asyncio.sleep(LOOK)

    async def remove(self, topic: str) -> None:
        """Delete a topic; Kafka forgets the offsets that groups have committed for it."""
        doing = f"removing {topic!r}"
        await self._ask_one(
            doing,
            lambda client: client.delete_topics([topic], operation_timeout=VISIBLE, request_timeout=VISIBLE),
            VISIBLE,
            UNKNOWN,
        )
        await self._until(self._is_gone, topic, doing, "it is not gone yet")

    async def trim(self, topic: str, ends: Mapping[int, int]) -> None:
        """Delete what lies before these offsets of its partitions."""
        asked = [TopicPartition(topic, partition, end) for partition, end in ends.items()]
        if not asked:
            return
        await self._know(topic)
        doing = f"deleting what was carried on from {topic!r}"
        answers = await self._ask(doing, lambda client: client.delete_records(asked, request_timeout=ANSWER))
        for answer in answers.values():
            if isinstance(answer, KafkaException) and error_of(answer).code() not in UNKNOWN:
                with ERRORS.during(doing):
                    raise answer

    async def settings(self, kind: Any, name: str, missing: Container[int] = ()) -> Mapping[str, str]:
        """Those of a topic or broker; none for one of the errors that say it is missing."""
        asked = [ConfigResource(kind, name)]
        answer: Mapping[str, Any] | None = await self._ask_one(
            f"asking for the settings of {name!r}",
            lambda client: client.describe_configs(asked, request_timeout=ANSWER),
            missing=missing,
        )
        return {entry.name: entry.value for entry in (answer or {}).values() if entry.value is not None}

    async def largest(self, topic: str) -> int | None:
        """`max.message.bytes` of a topic; None where we may not know, or there is none."""
        unknown = (*UNKNOWN, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        found = (await self.settings(ConfigResource.Type.TOPIC, topic, unknown)).get("max.message.bytes")
        return None if found is None else int(found)

    # --- groups

    async def begin_share(self, group: str, start: Start) -> None:
        """Where a share group begins is a setting of the group, which counts when its first member comes."""
        setting = ConfigEntry("share.auto.offset.reset", start, incremental_operation=AlterConfigOpType.SET)
        asked = ConfigResource(ConfigResource.Type.GROUP, group, incremental_configs=[setting])
        doing = f"setting up the share group {group!r}"
        await self._ask_one(doing, lambda client: client.incremental_alter_configs([asked]))

    async def group(self, group: str) -> Any:
        """Its description, with its state and members; None if it is missing."""
        return await self._ask_one(
            f"asking for the group {group!r}",
            lambda client: client.describe_consumer_groups([group], request_timeout=NEVER),
            missing=MISSING,
        )

    async def groups(self, topics: Sequence[str]) -> dict[str, list[str]]:
        """The groups that have a place in each of these topics, or members who read it."""
        doing = "asking for all groups"
        listed = await self._ask_one(
            doing, lambda client: {"": client.list_consumer_groups(request_timeout=ANSWER)}
        )
        known = sorted(each.group_id for each in (listed.valid if listed else ()))
        described = await self._ask(
            doing,
            lambda client: client.describe_consumer_groups(known, request_timeout=NEVER) if known else {},
        )
        partitions = await self._partitions(topics)
        found: dict[str, list[str]] = {topic: [] for topic in topics}
        for group in known:
            members = getattr(described.get(group), "members", ())  # an exception has none
            held = [each for member in members for each in assigned(member)]
            committed = await self._readers.committed(group, partitions)
            for topic in {each.topic for each in (*committed, *held)} & found.keys():
                found[topic].append(group)
        return found

    async def _partitions(self, topics: Container[str] | None = None) -> list[TopicPartition]:
        """Those of these topics that are there, or of all but Kafka's own."""
        known = (await self._listed("asking for all topics")).topics
        wanted = [
            topic for topic in known if (not topic.startswith("__") if topics is None else topic in topics)
        ]
        return [TopicPartition(topic, each) for topic in wanted for each in known[topic].partitions]

    async def remove_group(self, topic: str, group: str) -> None:
        """Have the group forget its places in the topic, and whatever else it has if that is of retries alone.

        There is no way to take single places out of a group that goes on with other topics: there it begins anew.
        """
        doing = f"removing the group {group!r} of {topic!r}"
        places = await self._readers.committed(group, await self._partitions())
        if {each.topic for each in places} <= {topic, *retry_topics(topic, group)}:
            await self._ask_one(
                doing,
                lambda client: client.delete_consumer_groups([group], request_timeout=NEVER),
                missing=MISSING,
            )
            return
        numbers = [each.partition for each in places if each.topic == topic]
        starts = (await self._offsets(topic, numbers, _Spec.earliest())).items()
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, *each) for each in starts])
        running = {KafkaError.UNKNOWN_MEMBER_ID}
        if numbers and await self._ask_one(
            doing, lambda client: client.alter_consumer_group_offsets([asked], request_timeout=NEVER), missing=running
        ) is None:  # fmt: skip
            raise ConfigError(f"{doing}: it has consumers that run: stop them first")

    async def committed(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, TopicPartition]:
        """The places of a group in these partitions; those without one are left out."""
        self._here()
        asked = [TopicPartition(topic, each) for each in partitions]
        return {each.partition: each for each in await self._readers.committed(group, asked)}

    async def places(self, topic: str, group: str) -> list[Place]:
        """How far a group is in all partitions; none if there is no such topic."""
        found = await self.topic(topic)
        if found is None:
            return []
        numbers = [each.id for each in found.partitions]
        committed = await self.committed(group, topic, numbers)
        ends = await self.ends(topic, numbers)
        starts = await self._offsets(topic, numbers, _Spec.earliest())
        return [
            Place(each, starts[each], ends[each])
            if (place := committed.get(each)) is None
            else Place(each, starts[each], ends[each], place.offset, place.metadata)
            for each in numbers
        ]

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The offset behind the last message that a group can get, of each partition."""
        return await self._offsets(topic, partitions, _Spec.latest())

    async def _offsets(self, topic: str, partitions: Iterable[int], spec: Any) -> dict[int, int]:
        asked = {TopicPartition(topic, each): spec for each in partitions}
        if not asked:
            return {}
        await self._know(topic)
        doing = f"asking for the offsets of {topic!r}"
        committed = IsolationLevel.READ_COMMITTED
        answers = await self._ask(
            doing,
            lambda client: client.list_offsets(asked, isolation_level=committed, request_timeout=ANSWER),
        )
        found = {}
        for each, answer in answers.items():
            if isinstance(answer, KafkaException):
                self._here().described.pop(topic, None)
                with ERRORS.during(doing):
                    raise answer
            found[each.partition] = answer.offset
        return found


def _heard(answer: "asyncio.Future[Any]") -> None:
    """Where nobody waits any more, asyncio would report its error as one that nobody has asked for."""
    if not answer.cancelled():
        answer.exception()


def assigned(member: Any) -> Sequence[TopicPartition]:
    """The partitions that a member of a group has."""
    return member.assignment.topic_partitions if member.assignment else ()


def id_of(topic: Any) -> str:
    """The id of a topic from its description: one that is made under the same name has another."""
    return str(topic.topic_id)  # a Uuid of the client equals nothing but itself
