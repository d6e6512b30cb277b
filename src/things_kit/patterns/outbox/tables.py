"""The broker's tables as SQLAlchemy's metadata, for Alembic's `env.py` and `create_all`.

Imported by whoever asks for it: SQLAlchemy is no dependency of an outbox.
"""

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BLOB,
    INTEGER,
    REAL,
    TEXT,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import UserDefinedType

from things_kit.brokers.postgres.schema import CALENDAR, filled
from things_kit.patterns.outbox.writing import Dialect, check_schema, ddl

OURS: Final = "things_kit"
"""The key of a table's `info` that says in which dialect and schema it is one of the broker's."""


class _ServerType(UserDefinedType[Any]):
    """A type that SQLAlchemy has no word for."""

    cache_ok = True
    name = ""

    def get_col_spec(self, **_: Any) -> str:
        """Its name in SQL."""
        return self.name


class TransactionId(_ServerType):
    """PostgreSQL's `xid8`."""

    name = "xid8"


class Snapshot(_ServerType):
    """PostgreSQL's `pg_snapshot`."""

    name = "pg_snapshot"


# So that looking at the tables finds these types, too
for _type in (TransactionId, Snapshot):
    PGDialect.ischema_names.setdefault(_type.name, _type)


def metadata_of(dialect: Dialect, schema: str) -> MetaData:
    """The tables of one schema. Raises ConfigError where it can be none."""
    check_schema(dialect, schema)
    metadata = MetaData() if dialect == "sqlite" else MetaData(schema=schema)
    tables = _in_sqlite(metadata, f"{schema}_") if dialect == "sqlite" else _in_postgres(metadata, schema)
    for table in tables:
        table.info[OURS] = (dialect, schema)
    return metadata


def _needed(name: str, kind: Any, default: str | None = None) -> Column[Any]:
    return Column(name, kind, nullable=False, server_default=None if default is None else text(default))


def _key(*names: str, kinds: tuple[Any, ...]) -> list[Column[Any]]:
    """The columns of a primary key that nobody counts up."""
    return [
        Column(name, kind, primary_key=True, autoincrement=False)
        for name, kind in zip(names, kinds, strict=True)
    ]


# --- PostgreSQL


def _in_postgres(metadata: MetaData, schema: str) -> list[Table]:
    tables = [*_log_in_postgres(metadata), *_groups_in_postgres(metadata)]
    make_schema, *_ = ddl("postgresql", schema)
    default = filled("CREATE TABLE {s}.message_default PARTITION OF {s}.message DEFAULT", schema)
    event.listen(metadata, "before_create", _running(make_schema))
    event.listen(metadata.tables[f"{schema}.message"], "after_create", _running(default))
    return tables


def _running(statement: str) -> Any:
    def run(_: object, connection: Any, **__: object) -> None:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    return run


def _log_in_postgres(metadata: MetaData) -> list[Table]:
    time = DateTime(timezone=True)
    readable = f"time BETWEEN {CALENDAR}"
    places = Sequence("message_seq", metadata=metadata)
    message = Table(
        "message",
        metadata,
        _needed(
            "bucket",
            Integer,
            "(floor((date_part('epoch'::text, now()) / (3600)::double precision)))::integer",
        ),
        Column("seq", BigInteger, nullable=False, server_default=places.next_value()),
        _needed("xid", TransactionId(), "pg_current_xact_id()"),
        _needed("time", time, "now()"),
        CheckConstraint(readable),
        _needed("topic", Text),
        _needed("id", Text, "(gen_random_uuid())::text"),
        Column("key", LargeBinary),
        _needed("value", LargeBinary),
        Column("headers", Text),
        Column("target", Text),
        postgresql_partition_by="RANGE (bucket)",
    )
    Index("message_new", message.c.topic, message.c.xid)
    Index("message_targeted", message.c.topic, postgresql_where=text("target IS NOT NULL"))
    Index("message_placed", message.c.seq)
    scheduled = Table(
        "scheduled",
        metadata,
        Column("seq", BigInteger, primary_key=True),
        _needed("due", time),
        _needed("time", time, "now()"),
        CheckConstraint(readable),
        CheckConstraint(f"due BETWEEN {CALENDAR}"),
        _needed("topic", Text),
        Column("schedule_id", Text),
        _needed("id", Text, "(gen_random_uuid())::text"),
        Column("key", LargeBinary),
        _needed("value", LargeBinary),
        Column("headers", Text),
        Column("target", Text),
        UniqueConstraint("topic", "schedule_id", name="scheduled_topic_schedule_id_key"),
    )
    Index("scheduled_due", scheduled.c.topic, scheduled.c.due, scheduled.c.seq)
    return [message, scheduled]


def _groups_in_postgres(metadata: MetaData) -> list[Table]:
    time = DateTime(timezone=True)
    installation = Table(
        "installation",
        metadata,
        Column("one", Boolean, CheckConstraint("one"), primary_key=True, server_default=text("true")),
        _needed("version", Integer),
        _needed("source", Text, "(gen_random_uuid())::text"),
    )
    topic = Table(
        "topic",
        metadata,
        Column("id", Integer, primary_key=True),
        _needed("name", Text),
        _needed("next", BigInteger, "'0'::bigint"),
        _needed("seen", Snapshot(), "'1:1:'::pg_snapshot"),
        UniqueConstraint("name", name="topic_name_key"),
    )
    segment = Table(
        "segment",
        metadata,
        *_key("topic", "first", kinds=(Integer, BigInteger)),
        _needed("low", Integer),
        _needed("high", Integer),
        _needed("stored", time, "now()"),
        _needed("seqs", ARRAY(BigInteger)),
    )
    group = Table(
        "consumer_group",
        metadata,
        Column("id", Integer, primary_key=True),
        _needed("topic", Integer),
        _needed("name", Text),
        _needed("cursor", BigInteger),
        _needed("ephemeral", Boolean),
        Column("unnoted", Text),
        _needed("low", BigInteger, "'0'::bigint"),
        _needed("free", time, "'-infinity'::timestamp with time zone"),
        UniqueConstraint("topic", "name", name="consumer_group_topic_name_key"),
    )
    receiver = Table(
        "receiver",
        metadata,
        Column("id", BigInteger, primary_key=True),
        _needed("grp", Integer),
        _needed("expires", time),
    )
    Index("receiver_group", receiver.c.grp)
    return [installation, topic, segment, group, receiver, *_waiting_in_postgres(metadata)]


def _waiting_in_postgres(metadata: MetaData) -> list[Table]:
    loan = Table(
        "loan",
        metadata,
        *_key("owner", "off", kinds=(BigInteger, BigInteger)),
        _needed("last", BigInteger),
        _needed("grp", Integer),
        Column("lane", BigInteger),
        _needed("attempt", Integer),
        _needed("suspect", Integer, "0"),
    )
    has_lane, is_due = "lane IS NOT NULL", "due IS NOT NULL"
    Index("loan_lane", loan.c.lane, loan.c.off, postgresql_where=text(has_lane))
    queued = Table(
        "queued",
        metadata,
        *_key("grp", "off", kinds=(Integer, BigInteger)),
        Column("lane", BigInteger),
        Column("due", DateTime(timezone=True)),
        _needed("attempt", Integer),
        _needed("suspect", Integer, "0"),
    )
    Index("queued_due", queued.c.grp, queued.c.due, queued.c.off, postgresql_where=text(is_due))
    Index("queued_lane", queued.c.lane, queued.c.off, postgresql_where=text(has_lane))
    inbox = Table(
        "inbox",
        metadata,
        *_key("grp", "topic", "id", kinds=(Text, Text, Text)),
        _needed("expires", Double),
    )
    Index("inbox_expires", inbox.c.expires)
    return [loan, queued, inbox]


# --- SQLite


def _in_sqlite(metadata: MetaData, prefix: str) -> list[Table]:
    return [*_log_in_sqlite(metadata, prefix), *_groups_in_sqlite(metadata, prefix)]


def _log_in_sqlite(metadata: MetaData, prefix: str) -> list[Table]:
    topic = Table(
        f"{prefix}topic",
        metadata,
        _counted("id"),
        _needed("name", TEXT),
        *(_needed(name, INTEGER, "0") for name in ("next", "swept", "largest")),
        UniqueConstraint("name"),
        sqlite_autoincrement=True,
    )
    message = Table(
        f"{prefix}message",
        metadata,
        _counted("seq"),
        Column("key", BLOB),
        _needed("value", BLOB),
        *(Column(name, TEXT) for name in ("headers", "id", "time")),
        _needed("stored", INTEGER),
        Column("target", TEXT),
    )
    targeted = text("target IS NOT NULL")
    Index(f"{prefix}message_targeted", message.c.seq, message.c.target, sqlite_where=targeted)
    scheduled = Table(
        f"{prefix}scheduled",
        metadata,
        _counted("seq"),
        _needed("topic", INTEGER),
        _needed("due", REAL),
        Column("schedule_id", TEXT),
        Column("key", BLOB),
        _needed("value", BLOB),
        *(Column(name, TEXT) for name in ("headers", "id", "time", "target")),
        UniqueConstraint("topic", "schedule_id"),
        sqlite_autoincrement=True,
    )
    Index(f"{prefix}scheduled_due", scheduled.c.topic, scheduled.c.due, scheduled.c.seq)
    return [topic, message, scheduled]


def _groups_in_sqlite(metadata: MetaData, prefix: str) -> list[Table]:
    installation = Table(
        f"{prefix}installation", metadata, _needed("version", INTEGER), _needed("source", TEXT)
    )
    group = Table(
        f"{prefix}consumer_group",
        metadata,
        _counted("id"),
        _needed("topic", INTEGER),
        _needed("name", TEXT),
        _needed("cursor", INTEGER),
        _needed("ephemeral", INTEGER),
        Column("unnoted", TEXT),
        UniqueConstraint("topic", "name"),
        sqlite_autoincrement=True,
    )
    receiver = Table(
        f"{prefix}receiver",
        metadata,
        _counted("id"),
        _needed("grp", INTEGER),
        _needed("expires", REAL),
        sqlite_autoincrement=True,
    )
    return [installation, group, receiver, *_waiting_in_sqlite(metadata, prefix)]


def _waiting_in_sqlite(metadata: MetaData, prefix: str) -> list[Table]:
    loan = Table(
        f"{prefix}loan",
        metadata,
        *_key("owner", "off", kinds=(INTEGER, INTEGER)),
        _needed("grp", INTEGER),
        Column("lane", BLOB),
        _needed("attempt", INTEGER),
        _needed("suspect", INTEGER, "0"),
        sqlite_with_rowid=False,
    )
    has_lane, is_due = text("lane IS NOT NULL"), text("due IS NOT NULL")
    Index(f"{prefix}loan_lane", loan.c.grp, loan.c.lane, loan.c.owner, sqlite_where=has_lane)
    queued = Table(
        f"{prefix}queued",
        metadata,
        *_key("grp", "off", kinds=(INTEGER, INTEGER)),
        Column("lane", BLOB),
        Column("due", REAL),
        _needed("attempt", INTEGER),
        _needed("suspect", INTEGER, "0"),
        sqlite_with_rowid=False,
    )
    c = queued.c
    Index(f"{prefix}queued_due", c.grp, c.due, c.off, sqlite_where=is_due)
    Index(f"{prefix}queued_lane", c.grp, c.lane, c.due, c.off, sqlite_where=has_lane)
    inbox = Table(
        f"{prefix}inbox",
        metadata,
        *_key("grp", "topic", "id", kinds=(TEXT, TEXT, TEXT)),
        _needed("expires", REAL),
        sqlite_with_rowid=False,
    )
    Index(f"{prefix}inbox_expires", inbox.c.expires)
    return [loan, queued, inbox]


def _counted(name: str) -> Column[Any]:
    """SQLite's own number of a row; says nothing of NULL, which cannot be in it."""
    return Column(name, INTEGER, primary_key=True, nullable=True)
