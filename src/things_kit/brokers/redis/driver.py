"""`redis://` and `rediss://`: streams of Redis (6.2 or newer) and Valkey, through redis-py.

    redis://localhost:6379/0
    redis://user:password@localhost              with a login; rediss:// with TLS
    redis://a:7000,b:7000?cluster=true           nodes of a Redis Cluster
    redis://a:26379,b:26379?sentinel=orders      sentinels, and the name of their master

The options are those of `RedisOptions`. A topic is the stream of that key, a group a consumer group of it. What a group has put
back waits in a sorted set beside the stream (see `scripts`). An ephemeral group is no group of Redis, only a place in the stream.

Order is kept within a process: Redis hands out the entries of a stream to all consumers of a group alike.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from redis.asyncio import RedisCluster
from redis.exceptions import ResponseError

from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.admin import Admin
from things_kit.brokers.redis.calls import answers_of
from things_kit.brokers.redis.ephemeral import EphemeralReceiver
from things_kit.brokers.redis.errors import ERRORS, result_of
from things_kit.brokers.redis.keys import CONSUMER, check_topic, group_keys, topic_keys
from things_kit.brokers.redis.options import Settings, sentinels_of
from things_kit.brokers.redis.reading import Reading
from things_kit.brokers.redis.receiver import FAREWELL, RedisReceiver, leave
from things_kit.brokers.redis.timetable import CHUNK, MOST_WORDS, Timetable
from things_kit.brokers.redis.wire import Layout, position
from things_kit.engine.driver import (
    Capabilities,
    ConnectionLost,
    Receiver,
    Scheduled,
    Subscription,
)
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question

LONG_IDLE: Final = 600.0
"""Seconds after which a consumer without messages, whose process must be dead, is deleted."""


class RedisDriver:
    """A pool of connections, and one connection more for each receiver."""

    def __init__(self, settings: Settings) -> None:
        options = settings.options
        self.capabilities = Capabilities(
            delay=True,
            attempts=True,
            retained=True,
            suspects=True,
            schedule_ids=True,
            schedules=True,
            lease=options.lease,
            max_message_bytes=options.max_message_bytes,
        )
        self.layout = Layout(options.value_field, options.key_field)
        self.client: Any = None
        self._settings = settings
        self._options = options
        self._admin: Admin | None = None
        self._timetable: Timetable | None = None
        # What receivers leave behind for those that come after them, by topic and group: consumers that could not put
        # back what they had; where a group that is gone was, and what it held; where an ephemeral one reads on
        self.left: dict[tuple[str, str], set[str]] = {}
        self.gone: dict[tuple[str, str], tuple[bytes, Sequence[bytes]]] = {}
        self.resume: dict[tuple[str, str], bytes] = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver for `redis://HOST:PORT/DATABASE?OPTION=VALUE`."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Ask the server for an answer, so that a wrong address or login shows at once."""
        self.client = self.client or self._settings.client()
        with ERRORS.during("connecting"):
            await self.client.initialize()
        await self.ping()

    async def close(self) -> None:
        """Disconnect. Consumers that were cut off put their messages back first, if the server lets them."""
        client, self.client, self._admin = self.client, None, None
        timetable, self._timetable = self._timetable, None
        if client is None:
            return
        if timetable is not None:
            await timetable.close()
        with contextlib.suppress(TimeoutError, ConnectionLost, ConfigError), ERRORS.during("closing"):
            async with asyncio.timeout(FAREWELL):
                for topic, group in list(self.left):
                    await self._free(client, topic, group)
        with contextlib.suppress(ConnectionLost, ConfigError), ERRORS.during("closing"):
            await client.aclose()
            for sentinel in sentinels_of(client):
                await sentinel.aclose()  # which the master's client leaves open

    async def ping(self) -> None:
        """Ask the server, or every node of a cluster, for an answer."""
        with ERRORS.during("asking the server for an answer"):
            await self._opened.ping()

    @property
    def _opened(self) -> Any:
        if self.client is None:
            raise ConfigError(f"{self._settings.url.display} is not open")
        return self.client

    @property
    def admin(self) -> Admin:
        """Asks about topics and groups."""
        if self._admin is None:
            self._admin = Admin(self._opened, self._options.retain)
        return self._admin

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create a stream without entries, and groups."""
        check_topic(topic)
        await self.admin.declare(topic, groups)

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the stream, what its groups have put back and what comes later; with a group that one alone."""
        for kept in (self.left, self.gone, self.resume):
            for known in [each for each in kept if each[0] == topic and group in {None, each[1]}]:
                del kept[known]
        await self.admin.remove(topic, group)

    async def lag(self, topic: str, group: str) -> int | None:
        """What is due or not delivered yet, what is pending, and what was put back."""
        return await self.admin.lag(topic, group)

    # --- sending

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Add them to their streams, behind what is due there, in as few round trips as their size allows."""
        results: list[Exception | None] = []
        topics: list[str] = []
        commands: list[list[Any]] = []
        looked: set[str] = set()  # where the first of the commands looks for what is due
        size = 0
        words_of = self.words
        for message in messages:
            topic, words = message.topic, words_of(message)
            if topic in looked or len(words) > MOST_WORDS:
                commands.append(["XADD", topic, "NOMKSTREAM", *words])
            else:
                commands.append(scripts.PUBLISH.command(topic_keys(topic), *words))
                looked.add(topic)
            topics.append(topic)
            size += len(message.value)
            if size > CHUNK:
                results += await self._add(topics, commands)
                topics, commands, looked, size = [], [], set(), 0
        if commands:
            results += await self._add(topics, commands)
        return results

    def words(self, message: Message) -> list[Any]:
        """What an XADD says of a message behind its stream."""
        limit = ("MAXLEN", "~", self._options.maxlen) if self._options.maxlen else ()
        return [*limit, "*", *self.layout.pack(message)]

    async def _add(self, topics: Sequence[str], commands: Sequence[Sequence[Any]]) -> list[Exception | None]:
        answers = await self.run(commands, "publishing")
        if all(type(answer) is bytes for answer in answers):
            return [None] * len(answers)
        return [result_of(answer, topic) for answer, topic in zip(answers, topics, strict=True)]

    async def run(self, commands: Sequence[Sequence[Any]], doing: str) -> list[Any]:
        """Write in one round trip: an answer or an error for each command, as replicas have it that must. Raises ConnectionLost."""
        replicas = self._options.wait_replicas
        if replicas:
            commands = [*commands, ["WAIT", replicas, round(self._options.wait_timeout * 1000)]]
        with ERRORS.during(doing):
            answers = await self._answers(commands)
        if replicas:
            there = answers.pop()
            if isinstance(there, Exception):
                raise ERRORS.translate(there, "waiting for replicas")
            if there < replicas:
                return [self._alone(there)] * len(answers)
        return answers

    async def command(self, *words: Any) -> Any:
        """What the server answers to a command that each message pays for. Raises the client's errors."""
        client = self._opened
        if isinstance(client, RedisCluster):
            return await client.execute_command(*words)
        [answer] = await answers_of(client.connection_pool, [words])
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def _answers(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        client = self._opened
        if not isinstance(client, RedisCluster):
            return await answers_of(client.connection_pool, commands)
        async with client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    def _alone(self, there: int) -> PublishError:
        options = self._options
        return PublishError(
            f"{there} of {options.wait_replicas} replicas had this batch within {options.wait_timeout:g} s; "
            "the master has it, so it may be handled all the same"
        )

    # --- publishing for later

    @property
    def timetable(self) -> Timetable:
        """Keeps what comes later."""
        if self._timetable is None:
            self._timetable = Timetable(self, self._opened)
        return self._timetable

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep them beside their streams."""
        return await self.timetable.schedule(entries)

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Forget a message that is not due."""
        return await self.timetable.cancel(topic, schedule_id)

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What is not due yet, soonest first."""
        return await self.timetable.upcoming(topic, limit)

    # --- what there is

    async def topics(self) -> Sequence[str]:
        """All streams of the database."""
        return await self.admin.topics()

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each stream its groups."""
        return {topic: await self.admin.groups(topic) for topic in topics}

    # --- receiving

    async def subscribe(self, subscription: Subscription) -> Receiver:
        """Join the group, or find out where the stream ends for an ephemeral one."""
        check_topic(subscription.topic)
        doing = f"subscribing to {subscription.topic!r}"
        with ERRORS.during(doing):
            if subscription.ephemeral:
                place = await self._place(subscription)
            else:
                await self._free(self._opened, subscription.topic, subscription.group)
                place = await self._join(subscription)
            pool, own = self._pool(subscription.topic)
        reading = Reading(pool, own=own)
        await reading.open()
        if subscription.ephemeral:
            return EphemeralReceiver(self, subscription, reading, place)
        return RedisReceiver(self, subscription, reading, place, self._options.lease)

    def _pool(self, topic: str) -> tuple[Any, bool]:
        """Connections to the server that has the stream, and whether they are to be closed by who asks."""
        if not isinstance(self.client, RedisCluster):
            return self._opened.connection_pool, False
        node = self.client.get_node_from_key(topic)
        if node is None:
            raise ConnectionLost(f"no node of the cluster has the slot of {topic!r}")
        return self._settings.pool(node.host, int(node.port)), True

    async def _join(self, subscription: Subscription) -> bytes:
        topic, group, create = subscription.topic, subscription.group, subscription.create
        keys = group_keys(topic, group)
        start = "$" if subscription.start == "latest" else "0"
        place, held = self.gone.get((topic, group), (start, ()))
        if isinstance(place, bytes):
            last_there = await self.admin.end(
                topic
            )  # it may be another stream by now, which has not come so far
            place = place if last_there is not None and position(last_there) >= position(place) else b"0"
        found, *last = await scripts.JOIN(self._opened, keys, group, place, int(create), *held)
        if not last:
            what = f"topic {topic!r}" if found == b"topic" else f"group {group!r} of {topic!r}"
            raise ConfigError(f"there is no {what}: declare it first")
        self.gone.pop((topic, group), None)
        idle = round(1000 * max(LONG_IDLE, 10 * self._options.lease))
        await scripts.SWEEP(self._opened, keys, group, CONSUMER, idle)
        return bytes(last[0])

    async def _place(self, subscription: Subscription) -> bytes:
        topic = subscription.topic
        end = await self.admin.end(topic)
        if end is None:
            if not subscription.create:
                raise ConfigError(f"there is no topic {topic!r}: declare it first")
            await self.declare(topic, ())
            end = b"0-0"
        return self.resume.pop((topic, subscription.group), b"0-0" if subscription.past else end)

    async def _free(self, client: Any, topic: str, group: str) -> None:
        """Have the messages of consumers that were cut off put back."""
        consumers = self.left.get((topic, group), set())
        for consumer in list(consumers):
            await leave(client, group_keys(topic, group), group, consumer)
            consumers.discard(consumer)
        self.left.pop((topic, group), None)

    async def facts(self, question: "Question") -> "Facts":
        """How things are at the server."""
        from things_kit.brokers.redis.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        with ERRORS.during("examining the server"):
            return await facts_of(self._opened, self._options, question)
