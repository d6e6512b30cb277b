"""The outbox: what is published with a session is there if its transaction commits, and gone if it does not."""

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from things_kit.engine.broker import Broker
from things_kit.engine.clock import steady
from things_kit.engine.outbound import checked_batch, prepare
from things_kit.engine.prefixed import Prefix
from things_kit.engine.url import BrokerURL, EngineOptions
from things_kit.messaging.errors import ConfigError, PublishError
from things_kit.messaging.keys import Key
from things_kit.messaging.message import Message
from things_kit.messaging.plain import plain
from things_kit.messaging.policy import Seconds
from things_kit.messaging.producer import message_to_publish
from things_kit.messaging.schedule import due_at
from things_kit.messaging.topic import UNSET, Topic, Unset
from things_kit.patterns.bridge import GROUP
from things_kit.patterns.outbox.creating import create
from things_kit.patterns.outbox.relay import Relay
from things_kit.patterns.outbox.sessions import Transaction, opened, opened_async, run, run_async
from things_kit.patterns.outbox.writing import Dialect, Later, Steps, ddl, known, refusal, write

if TYPE_CHECKING:
    from sqlalchemy import MetaData

T = TypeVar("T")

LARGEST: Final = 16 * 1024 * 1024
"""Bytes: the largest message of the two brokers, unless their URLs say something else."""

PARTITION: Final = re.compile(r"message_(default|\d+_\d+)")
"""The names of a PostgreSQL broker's partitions, which come and go with the hours."""


class Outbox:
    """Publishes in the caller's transaction, into the tables of the `postgres://` or `sqlite://` broker.

    What is published so is a message of that broker when the transaction commits: consume it there, or let a bridge carry
    it on. A session is SQLAlchemy's `AsyncSession`, `AsyncConnection`, `Session` or `Connection`, a connection of asyncpg,
    psycopg, sqlite3 or aiosqlite, or Django's `connection`. The tables are made by connecting to the broker, by `create`,
    or from `ddl`; never by publishing.

    In PostgreSQL publishing waits for no other transaction. A SQLite file has one writer: there it waits for whoever writes.

    Args:
        schema: The schema of the broker's tables; in SQLite what their names begin with.
        max_message_bytes: The largest message; the broker's own by default.
        topic_prefix: What the names of topics begin with at the broker: as `?topic_prefix=` of its URL.
        lock_keys: In PostgreSQL, lock (topic, key) until the commit: of transactions that are open at once, the messages of
            one key then come in the order of the commits.
    """

    def __init__(
        self,
        schema: str = "things_kit",
        *,
        max_message_bytes: int = LARGEST,
        topic_prefix: str = "",
        lock_keys: bool = False,
    ) -> None:
        if not schema:
            raise ConfigError("an outbox needs the schema of the broker's tables")
        if (
            isinstance(max_message_bytes, bool)
            or not isinstance(max_message_bytes, int)
            or max_message_bytes < 1
        ):
            raise ConfigError(f"max_message_bytes must be a whole number from 1; it is {max_message_bytes!r}")
        try:
            EngineOptions(topic_prefix=topic_prefix)
        except (AttributeError, ValueError) as error:
            raise ConfigError(f"an outbox's topic_prefix can be no {topic_prefix!r}: {error}") from error
        self.schema = schema
        self._largest = max_message_bytes
        self._prefix = Prefix(topic_prefix) if topic_prefix else None
        self._lock_keys = lock_keys
        self._metadata: dict[Dialect, MetaData] = {}

    # --- publishing

    @overload
    async def publish(
        self,
        session: Any,
        message: Message,
        /,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    @overload
    async def publish(
        self,
        session: Any,
        topic: Topic[T],
        payload: T,
        /,
        *,
        key: Key | Unset = UNSET,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        timestamp: datetime | None = None,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    async def publish(
        self,
        session: Any,
        message: Message | Topic[Any],
        payload: Any = UNSET,
        /,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
        **fields: Any,
    ) -> None:
        """Publish one message, or the payload of one by its topic's contract, in the session's transaction.

        With `after` (seconds, or a `timedelta`, from this call) or `at` it comes then, or with the commit if that is later; what has the
        `schedule_id` of a message that still waits in that topic replaces it. In PostgreSQL that waits for another open
        transaction with the same `schedule_id`.

        Raises:
            PublishError: The message was refused; `MessageTooLarge` where it is too large. The transaction stays usable.
            ConfigError: The session cannot be used so, the tables are missing, or the time is none, or both are given, or a
                `schedule_id` without one.
            TypeError: The payload is not of the topic's type, or the arguments do not go together.
        """
        later = _later(after, at, schedule_id)
        if isinstance(message, Topic):
            await message.prepare()
        one = message_to_publish(message, payload, fields)
        transaction = await opened_async(session)
        await run_async(self._one(transaction, one, later), transaction)

    async def publish_batch(
        self,
        session: Any,
        messages: Sequence[Message],
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
    ) -> None:
        """Publish many in the session's transaction, all of them for the same time where one is given: all, or none.

        Raises:
            PublishError: `failures` maps the index of each refused message to its error; the transaction stays usable.
            ConfigError: As for `publish`.
        """
        later = _later(after, at)
        transaction = await opened_async(session)
        await run_async(self._many(transaction, messages, later), transaction)

    @overload
    def publish_sync(
        self,
        session: Any,
        message: Message,
        /,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    @overload
    def publish_sync(
        self,
        session: Any,
        topic: Topic[T],
        payload: T,
        /,
        *,
        key: Key | Unset = UNSET,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        timestamp: datetime | None = None,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    def publish_sync(
        self,
        session: Any,
        message: Message | Topic[Any],
        payload: Any = UNSET,
        /,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
        **fields: Any,
    ) -> None:
        """`publish`, for synchronous sessions."""
        later = _later(after, at, schedule_id)
        one = message_to_publish(message, payload, fields)
        transaction = opened(session)
        run(self._one(transaction, one, later), transaction)

    def publish_batch_sync(
        self,
        session: Any,
        messages: Sequence[Message],
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
    ) -> None:
        """`publish_batch`, for synchronous sessions."""
        later = _later(after, at)
        transaction = opened(session)
        run(self._many(transaction, messages, later), transaction)

    # --- tables

    def ddl(self, dialect: str) -> list[str]:
        """The statements that make the tables, where they are missing; of "sqlite" or "postgresql"."""
        return ddl(dialect, self.schema)

    def create(self, engine: Any) -> Any:
        """Make the tables where they are missing; awaited with an `AsyncEngine`, plain with an `Engine`."""
        return create(engine, self.ddl, self.schema)

    @property
    def metadata(self) -> "MetaData":
        """The tables in PostgreSQL, for Alembic's `target_metadata`, with `include_schemas=True`."""
        return self.metadata_for("postgresql")

    def metadata_for(self, dialect: str) -> "MetaData":
        """The tables as SQLAlchemy's metadata, in "sqlite" or "postgresql".

        A migration made from it does what connecting does, but for the version, the functions and the partitions of the
        hours: the first connect adds them. Raises ConfigError for another dialect.
        """
        from things_kit.patterns.outbox.tables import metadata_of  # noqa: PLC0415 - needs SQLAlchemy

        if importlib.util.find_spec("alembic") is not None:
            importlib.import_module("things_kit.patterns.outbox.migrating")
        wanted = known(dialect)
        if wanted not in self._metadata:
            self._metadata[wanted] = metadata_of(wanted, self.schema)
        return self._metadata[wanted]

    def include_name(self, name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
        """For Alembic's `include_name`: all but the partitions, which the broker makes and drops by itself."""
        return not (
            type_ == "table"
            and parent_names.get("schema_name") == self.schema
            and PARTITION.fullmatch(name or "")
        )

    # --- carrying on

    def relay(
        self,
        source: Broker | str,
        target: Broker | str,
        topics: Sequence[str | Topic[Any]],
        *,
        group: str = GROUP,
        rename: Mapping[str, str] | None = None,
        target_groups: Sequence[str] = (),
        dead_letter: str | None = None,
    ) -> Relay:
        """What carries the messages of some topics to another broker, while it is entered with `async with`.

        `things-kit bridge` does the same, and may take over: all of one group share the work, and keep the order of each
        key. `source` is the broker of the outbox's tables, `target` where messages go: brokers, which are opened if they are
        not, or their URLs. The other arguments are those of `things_kit.patterns.bridge.Bridge`.
        """
        self._check_source(BrokerURL.parse(source) if isinstance(source, str) else source.url)
        return Relay(
            source,
            target,
            topics,
            group=group,
            rename=rename,
            target_groups=target_groups,
            dead_letter=dead_letter,
        )

    # --- parts

    def _check_source(self, url: BrokerURL) -> None:
        """A relay that reads elsewhere than the outbox writes would carry nothing, and say nothing."""
        ours = self._prefix.prefix if self._prefix is not None else ""
        there = url.engine.topic_prefix
        if there != ours:
            raise ConfigError(
                f"the outbox writes topics with the prefix {ours!r}, and its relay would read those of {there!r}: say the same "
                "in Outbox(topic_prefix=...) and ?topic_prefix= of the source's URL"
            )
        schema = url.query.get("schema", "things_kit")
        if url.scheme in {"sqlite", "postgres", "postgresql"} and schema != self.schema:
            raise ConfigError(
                f"the relay reads the schema {schema!r}, and the outbox writes {self.schema!r}: say ?schema= in the URL"
            )

    def _one(self, transaction: Transaction, message: Message, later: Later | None) -> Steps:
        ready, refused = self._prepared(transaction.dialect, [message])
        if refused:
            raise refused[0]
        return self._written(transaction, ready, later)

    def _many(self, transaction: Transaction, messages: Sequence[Message], later: Later | None) -> Steps:
        messages = checked_batch(messages)
        ready, refused = self._prepared(transaction.dialect, messages)
        if refused:
            index, first = next(iter(sorted(refused.items())))
            raise PublishError(
                f"{len(refused)} of {len(messages)} messages were refused, so that none was published; message {index}: {first}",
                refused,
            ) from first
        return self._written(transaction, ready, later)

    def _written(self, transaction: Transaction, ready: Sequence[Message], later: Later | None) -> Steps:
        return write(
            transaction.dialect,
            self.schema,
            ready,
            place=transaction.place,
            lock_keys=self._lock_keys,
            later=later,
        )

    def _prepared(
        self, dialect: Dialect, messages: Sequence[Message]
    ) -> tuple[list[Message], dict[int, Exception]]:
        """Messages with id and time, and by index the errors of those that the database cannot have."""
        ready, refused = prepare(messages, self._largest)
        for index, message in enumerate(messages):
            if index not in refused and (error := refusal(dialect, message)):
                refused[index] = error
        if self._prefix is not None:
            ready = [self._prefix.message_there(message) for message in ready]
        return ready, refused


def _later(after: Seconds | None, at: datetime | None, schedule_id: str | None = None) -> Later | None:
    """When and by which name, if not at once. Raises ConfigError."""
    now = steady()
    due = due_at(now, after, at, schedule_id)
    if due is None or (schedule_id is None and due.timestamp() <= now):
        return None
    return Later(due, plain(schedule_id))
