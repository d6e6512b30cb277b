"""`postgres://` and `postgresql://`: topics in the tables of one schema, through asyncpg.

    postgres://user:password@db.example:5432/shop
    postgres://a,b/shop?sslmode=verify-full          of several hosts the one that can be written to

The options are those of `PostgresOptions`. What is confirmed is committed, as durably as the server's
`synchronous_commit` says. All that concerns a group is done in the server, by `functions`; see `schema` for the tables.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from things_kit.brokers.postgres import schedule
from things_kit.brokers.postgres.bell import Bell
from things_kit.brokers.postgres.connections import Connections
from things_kit.brokers.postgres.errors import ERRORS, is_of_a_value
from things_kit.brokers.postgres.options import PostgresOptions, Settings
from things_kit.brokers.postgres.receiver import PostgresReceiver
from things_kit.brokers.postgres.schema import filled, quoted
from things_kit.brokers.postgres.upkeep import Upkeep
from things_kit.brokers.postgres.watch import Member, Watch
from things_kit.brokers.postgres.wire import COLUMNS, INSERT_MANY, Row, pack
from things_kit.engine.cancelling import ended
from things_kit.engine.driver import Capabilities, ConnectionLost, Scheduled, Subscription, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.message import Message

if TYPE_CHECKING:
    from things_kit.engine.facts import Facts, Question

ThingT = TypeVar("ThingT")

SWEEP_EVERY: Final = 30.0

PLACE_EVERY: Final = 5.0
"""Seconds after which a process that publishes sees to the places of what it has published, where nobody consumes it."""

PLACING: Final = 60.0
"""Seconds that giving places may take: up to 3 for a million messages at which nobody has looked yet."""

MANY: Final = 50
"""So many messages are worth a second round trip."""

MEGABYTE: Final = 2**20
SLOW: Final = 4.0
"""MiB a second that a batch gets through at least, before its time is over."""

FAR: Final = 0.008
"""Seconds that an answer takes from a server that is far off, where asking beside what is sent is worth a connection and its work."""

ROW: Final = 512
"""Bytes for which a row counts beside its value there: it is in three indexes."""


class PostgresDriver:
    """Topics, groups and leases as rows."""

    def __init__(self, settings: Settings) -> None:
        self.options: PostgresOptions = settings.options
        self.capabilities = Capabilities(
            delay=True,
            lanes=True,
            lease=self.options.lease,
            retained=True,
            attempts=True,
            targeted=True,
            suspects=True,
            lag=True,
            schedule_ids=True,
            schedules=True,
            max_batch=50_000,  # each send is three round trips, and one COPY
            max_message_bytes=self.options.max_message_bytes,
        )
        schema = self.options.schema
        self.connections = Connections(settings)
        self.watch = Watch(self.connections, schema, self.options.poll)
        self.bell = Bell(self.connections, schema, self.watch)
        self.upkeep = Upkeep(self.connections, schema, self.options.retain)
        self.settings = settings
        self._s = quoted(schema)
        self._insert = filled(INSERT_MANY, schema)
        self._ephemeral: set[Member] = set()
        self._published: set[str] = set()
        self._answered = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._undoing: set[asyncio.Task[Any]] = set()

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver, not yet connected."""
        return cls(Settings.from_url(url))

    async def open(self) -> None:
        """Connect, and have the tables there."""
        await self.connections.open()
        try:
            await self.upkeep.prepare(creates=self.settings.url.engine.declare)
        except BaseException:
            await self.connections.close()
            raise
        self._tasks = [
            asyncio.create_task(self._sweep(), name="things-kit-postgres-sweep"),
            asyncio.create_task(self._keep_alive(), name="things-kit-postgres-leases"),
            asyncio.create_task(self._place(), name="things-kit-postgres-places"),
        ]

    async def close(self) -> None:
        """Disconnect."""
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=2.0)
        tasks = [*self._tasks, *self._undoing]
        self._tasks = []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.bell.close()
        await self.watch.close()
        await self.connections.close()

    async def ask_all(self, doing: str, call: str, *arguments: Any, within: float | None = None) -> list[Any]:
        """What a function of the schema answers."""
        statement = f"SELECT * FROM {self._s}.{call}"  # noqa: S608 - an identifier, and our own text
        return await self.connections.rows(doing, statement, *arguments, within=within)

    async def ask(self, doing: str, call: str, *arguments: Any, within: float | None = None) -> Any:
        """The one row that another answers."""
        return (await self.ask_all(doing, call, *arguments, within=within))[0]

    def say(self, topics: Sequence[str]) -> None:
        """There is something new in these topics: tell our own receivers, and those of other processes."""
        self.watch.nudge(topics)
        if self.options.notify:
            self.bell.ring(topics)

    async def ping(self) -> None:
        """Ask whether it can be written to."""
        statement = "SELECT current_setting('transaction_read_only') = 'on'"
        if (await self.connections.row("asking the server for an answer", statement))[0]:
            raise ConnectionLost("the server is read-only, as a replica is")

    # --- topics

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create what is missing."""
        if groups:
            await self._give_places([topic])
        await self.ask(f"declaring {topic!r}", "declare_groups($1, $2)", topic, list(groups))

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete a topic, or one group; waiting receivers of it lose their subscription."""
        await self.ask(f"removing {topic!r}", "remove($1, $2)", topic, group, within=60.0)
        self.say([topic])

    async def lag(self, topic: str, group: str) -> int | None:
        """How many messages the group has not settled."""
        row = await self.ask(f"asking for the lag of {topic!r}", "lag($1, $2)", topic, group, within=60.0)
        return int(row[0])

    async def topics(self) -> Sequence[str]:
        """All topics of the schema."""
        statement = f"SELECT name FROM {self._s}.topic ORDER BY name"  # noqa: S608 - an identifier
        rows = await self.connections.rows("listing topics", statement)
        return [row[0] for row in rows]

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Of each topic its groups, but those that vanish with their consumers."""
        rows = await self.connections.rows(
            "listing groups",
            f"SELECT t.name, g.name FROM {self._s}.consumer_group g JOIN {self._s}.topic t ON t.id = g.topic "  # noqa: S608
            "WHERE NOT g.ephemeral AND t.name = ANY ($1) ORDER BY 1, 2",
            list(topics),
        )
        found: dict[str, list[str]] = {topic: [] for topic in topics}
        for topic, group in rows:
            found[topic].append(group)
        return found

    async def source(self) -> str:
        """See `Identified`."""
        statement = f"SELECT source FROM {self._s}.installation"  # noqa: S608 - an identifier
        return str((await self.connections.row("asking for the name of the installation", statement))[0])

    async def facts(self, question: "Question") -> "Facts":
        """How things are in the database."""
        from things_kit.brokers.postgres.facts import facts_of  # noqa: PLC0415 - nobody else needs it

        return await facts_of(self, question)

    # --- sending

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Append messages to their topics."""
        return await self._publish(messages, messages, self._store)

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep messages until they are due."""
        messages = [entry.message for entry in entries]
        return await self._publish(
            messages, entries, lambda connection, good: schedule.store(self, connection, good)
        )

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Have a scheduled message never come, unless it is due."""
        return await schedule.cancel(self, topic, schedule_id)

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What waits for its time."""
        return await schedule.upcoming(self, topic, limit)

    async def _publish(
        self,
        messages: Sequence[Message],
        things: Sequence[ThingT],
        store: Callable[[Any, Sequence[ThingT]], Awaitable[set[str]]],
    ) -> Sequence[Exception | None]:
        """Store them in one transaction, where the server refuses none; `store` answers which topics are there."""
        size = sum(len(message.value) for message in messages) + ROW * len(messages)
        within = self.options.timeout + size / (SLOW * MEGABYTE)
        try:
            async with self.connections.use("publishing", within) as connection:
                known = await store(connection, things)
        except (ConfigError, PublishError) as error:
            failure = error.__cause__ or error
            if len(messages) > 1 and is_of_a_value(failure):  # of one of them: the server does not say which
                half = len(messages) // 2
                return [
                    *await self._publish(messages[:half], things[:half], store),
                    *await self._publish(messages[half:], things[half:], store),
                ]
            return [ERRORS.refusal(failure, message.topic) for message in messages]
        self.say(list(known))
        self._published |= known
        return [None if message.topic in known else UnknownTopic(message.topic) for message in messages]

    async def _store(self, connection: Any, messages: Sequence[Message]) -> set[str]:
        """In one statement, few by INSERT, which needs one round trip, many by COPY, which is twice as fast.

        Returns the topics that are there; only their messages were stored. Far from the server, where each round trip is
        dear, COPY begins while another connection asks which they are.
        """
        topics = list({message.topic for message in messages})
        if len(messages) < MANY:
            columns = map(list, zip(*map(pack, messages), strict=True))
            return {row[0] for row in await connection.fetch(self._insert, topics, *columns)}
        if self._answered < FAR or not self.connections.spare:
            known = await self._known(topics, connection.fetch)
            await self._copy(connection, (pack(message) for message in messages if message.topic in known))
            return known
        asking = asyncio.create_task(self._known(topics, partial(self.connections.rows, "publishing")))
        try:
            await self._copy(connection, _records(messages, asking))
        finally:
            await ended(asking)
        return asking.result()

    async def _known(
        self, topics: Sequence[str], fetch: Callable[[str, Sequence[str]], Awaitable[list[Any]]]
    ) -> set[str]:
        """Those that are there."""
        began = asyncio.get_running_loop().time()
        statement = f"SELECT name FROM {self._s}.topic WHERE name = ANY ($1)"  # noqa: S608 - an identifier
        rows = await fetch(statement, topics)
        self._answered = asyncio.get_running_loop().time() - began
        return {row[0] for row in rows}

    async def _copy(self, connection: Any, rows: Iterable[Row] | AsyncIterable[Row]) -> None:
        """Store them. They are packed one by one as they are sent: the server stores some while others are packed."""
        await connection.copy_records_to_table(
            "message", schema_name=self.options.schema, records=rows, columns=COLUMNS
        )

    # --- receiving

    async def subscribe(self, subscription: Subscription) -> PostgresReceiver:
        """Join a group."""
        if self.options.notify:
            self.bell.listen()
        joining = asyncio.create_task(self._join(subscription))
        try:
            member = await asyncio.shield(joining)
        except asyncio.CancelledError:
            undoing = asyncio.create_task(self._leave_again(joining))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise
        if subscription.ephemeral:
            self._ephemeral.add(member)
        return PostgresReceiver(self, member, subscription.inbox)

    async def _join(self, subscription: Subscription) -> Member:
        await self._give_places([subscription.topic])
        latest = not subscription.past if subscription.ephemeral else subscription.start == "latest"
        row = await self.ask(
            f"subscribing to {subscription.topic!r}",
            "subscribe($1, $2, $3, $4, $5, $6)",
            subscription.topic,
            subscription.group,
            latest,
            subscription.ephemeral,
            subscription.create,
            self.options.lease,
        )
        return Member(row[0], row[1], subscription)

    async def _leave_again(self, joining: asyncio.Task[Member]) -> None:
        """Undo a subscription whose caller was cancelled; where that cannot be, the lease does it."""
        with contextlib.suppress(Exception):
            member = await joining
            await PostgresReceiver(self, member, member.subscription.inbox).close()

    async def renew(self, member: Member) -> None:
        """Renew the lease of a receiver."""
        await self.ask(
            "extending leases",
            "renew($1, $2, $3, $4, true)",
            member.id,
            member.group,
            self.options.lease,
            member.held > 0,
        )

    def forget(self, member: Member) -> None:
        """A receiver is being closed."""
        self._ephemeral.discard(member)

    # --- housekeeping

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(ConnectionLost, ConfigError):  # whose time comes again
                await self.upkeep.sweep()
            await asyncio.sleep(SWEEP_EVERY)

    async def _place(self) -> None:
        """See to the places of what this process publishes, so that whoever consumes later need not wait for all of them."""
        while True:
            await asyncio.sleep(PLACE_EVERY)
            topics, self._published = list(self._published), set()
            if topics:
                try:
                    await self._give_places(topics)
                except ConnectionLost:
                    self._published |= set(topics)
                except ConfigError:  # without the right: whoever consumes does it
                    return

    async def _give_places(self, topics: Sequence[str]) -> None:
        """Give places to what has none, with more patience than a look may have.

        Topic by topic: who holds the locks of several, in no order, and others that look at them would wait for each other.
        """
        statement = f"SELECT {self._s}.place(id) FROM {self._s}.topic WHERE name = $1"  # noqa: S608 - identifiers
        for topic in topics:
            await self.connections.rows("giving messages their places", statement, topic, within=PLACING)

    async def _keep_alive(self) -> None:
        """Renew the leases of ephemeral groups, which would vanish although their process is well."""
        while True:
            await asyncio.sleep(self.options.lease / 3)
            for member in list(self._ephemeral):
                with contextlib.suppress(ConnectionLost):  # its own calls tell
                    await self.renew(member)


async def _records(messages: Sequence[Message], asking: Awaitable[set[str]]) -> AsyncIterator[Row]:
    """Those whose topics are there, once that is known."""
    known = await asking
    for message in messages:
        if message.topic in known:
            yield pack(message)
