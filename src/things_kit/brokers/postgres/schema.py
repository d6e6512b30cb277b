"""The tables of the PostgreSQL broker, how another transaction writes into them, and how they are made.

A foreign transaction publishes by one INSERT (`wire.INSERT`), and needs to do nothing else: no lock, no NOTIFY, no
call. The message is there when the transaction commits, and never was when it rolls back. A message for later goes
into `scheduled` instead (`wire.SCHEDULE`), where a `schedule_id` is unique for a topic and the same again replaces; that
INSERT alone may wait, for another open transaction with the same `schedule_id`.

What is written there has no place in its topic yet. Ids are drawn before a commit and become visible in another order,
so that whoever followed them would skip. A place, the offset, is given after the commit: `topic.seen` is the snapshot up
to which a topic's messages have places, and those to come next are exactly the ones that this snapshot did not show and the
present one does. Their transactions were open then (`pg_snapshot_xip`) or had not begun (`pg_snapshot_xmax`), and an
index finds both. So an open transaction holds back nobody's messages but its own, and one that was rolled back leaves no gap.
"""

from typing import Final

SCHEMA_VERSION: Final = 1

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('things_kit.' || {schema}, 0))"
"""For whoever makes tables, until the end of the transaction; `{schema}` is for the place of a parameter."""

TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS {s}.installation (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        version integer NOT NULL,
        source text NOT NULL DEFAULT gen_random_uuid()::text)""",
    """CREATE TABLE IF NOT EXISTS {s}.topic (
        id serial PRIMARY KEY,
        name text NOT NULL UNIQUE,
        next bigint NOT NULL DEFAULT 0,
        seen pg_snapshot NOT NULL DEFAULT '1:1:') WITH (fillfactor = 50{busy})""",
    "CREATE SEQUENCE IF NOT EXISTS {s}.message_seq",
    # A foreign transaction may write any time that PostgreSQL has: one that no client can read would hold up its group for ever.
    # Partitions are dropped whole, so they go by the hour in which a transaction began; rows are never changed.
    # The hour is reckoned for each row, as a float: as the numeric that `extract` answers it would be a quarter of an insert.
    """CREATE TABLE IF NOT EXISTS {s}.message (
        bucket integer NOT NULL DEFAULT floor(date_part('epoch', now()) / 3600)::integer,
        seq bigint NOT NULL DEFAULT nextval('{l}.message_seq'::regclass),
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        time timestamptz NOT NULL DEFAULT now() CHECK (time BETWEEN {calendar}),
        topic text NOT NULL,
        id text NOT NULL DEFAULT gen_random_uuid()::text,
        key bytea,
        value bytea NOT NULL,
        headers text,
        target text) PARTITION BY RANGE (bucket)""",
    "CREATE INDEX IF NOT EXISTS message_new ON {s}.message (topic, xid)",
    "CREATE INDEX IF NOT EXISTS message_targeted ON {s}.message (topic) WHERE target IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS message_placed ON {s}.message (seq)",
    "CREATE TABLE IF NOT EXISTS {s}.message_default PARTITION OF {s}.message DEFAULT",
    """CREATE TABLE IF NOT EXISTS {s}.scheduled (
        seq bigserial PRIMARY KEY,
        due timestamptz NOT NULL CHECK (due BETWEEN {calendar}),
        time timestamptz NOT NULL DEFAULT now() CHECK (time BETWEEN {calendar}),
        topic text NOT NULL,
        schedule_id text,
        id text NOT NULL DEFAULT gen_random_uuid()::text,
        key bytea,
        value bytea NOT NULL,
        headers text,
        target text,
        UNIQUE (topic, schedule_id))""",
    "CREATE INDEX IF NOT EXISTS scheduled_due ON {s}.scheduled (topic, due, seq)",
    # Which messages stand at the offsets from `first` on, up to SEGMENT of them: a row for each step of a topic.
    """CREATE TABLE IF NOT EXISTS {s}.segment (
        topic integer NOT NULL,
        first bigint NOT NULL,
        low integer NOT NULL,
        high integer NOT NULL,
        stored timestamptz NOT NULL DEFAULT now(),
        seqs bigint[] NOT NULL,
        PRIMARY KEY (topic, first))""",
    "ALTER TABLE {s}.segment ALTER COLUMN seqs SET STORAGE PLAIN",
    """CREATE TABLE IF NOT EXISTS {s}.consumer_group (
        id serial PRIMARY KEY,
        topic integer NOT NULL,
        name text NOT NULL,
        cursor bigint NOT NULL,
        ephemeral boolean NOT NULL,
        unnoted text,
        low bigint NOT NULL DEFAULT 0,
        free timestamptz NOT NULL DEFAULT '-infinity',
        UNIQUE (topic, name)) WITH (fillfactor = 20{busy})""",
    """CREATE TABLE IF NOT EXISTS {s}.receiver (
        id bigserial PRIMARY KEY,
        grp integer NOT NULL,
        expires timestamptz NOT NULL) WITH (fillfactor = 50{busy})""",
    "CREATE INDEX IF NOT EXISTS receiver_group ON {s}.receiver (grp)",
    # A row of `loan` is handed out: one message, or all from `off` to `last` while nothing is noted of any. A row of
    # `queued` waits: from `due` on it is free to be handed out; with no `due` it is behind another message of its lane. What is in neither and below the group's cursor is settled. In each lane
    # of `queued` the free rows come first, and one lane's loans have one owner. A group whose `unnoted` names an ordering
    # has one receiver and nothing queued: its loans need not say in which lane of that ordering they are.
    # Nothing of a group in either is below its `low`, and nothing is free before its `free`: so no look has to go through all
    # that was settled and is not vacuumed yet, nor can be while another transaction is open.
    """CREATE TABLE IF NOT EXISTS {s}.loan (
        owner bigint NOT NULL,
        off bigint NOT NULL,
        last bigint NOT NULL,
        grp integer NOT NULL,
        lane bigint,
        attempt integer NOT NULL,
        suspect integer NOT NULL DEFAULT 0,
        PRIMARY KEY (owner, off)) WITH ({churn})""",
    "CREATE INDEX IF NOT EXISTS loan_lane ON {s}.loan (lane, off) WHERE lane IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS {s}.queued (
        grp integer NOT NULL,
        off bigint NOT NULL,
        lane bigint,
        due timestamptz,
        attempt integer NOT NULL,
        suspect integer NOT NULL DEFAULT 0,
        PRIMARY KEY (grp, off)) WITH ({churn})""",
    "CREATE INDEX IF NOT EXISTS queued_due ON {s}.queued (grp, due, off) WHERE due IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS queued_lane ON {s}.queued (lane, off) WHERE lane IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS {s}.inbox (
        grp text NOT NULL,
        topic text NOT NULL,
        id text NOT NULL,
        expires double precision NOT NULL,
        PRIMARY KEY (grp, topic, id)) WITH ({churn})""",
    "CREATE INDEX IF NOT EXISTS inbox_expires ON {s}.inbox (expires)",
)
"""What Alembic or an outbox may make just as well: the first connect adds functions, partitions and the version."""

_CHURN: Final = (
    "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0, "
    "autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000"
)
CALENDAR: Final = "'0001-01-01 00:00+00' AND '9999-12-31 23:59:59.999999+00'"
"""The times that Python has."""

_BUSY: Final = ", autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500"


LONGEST_NAME: Final = 63
"""Bytes of an identifier; the server cuts off the rest without a word."""


def check_schema(name: str) -> None:
    """Raise ValueError for what can be no schema of the broker's."""
    if not name or len(name.encode()) > LONGEST_NAME or "\0" in name:
        raise ValueError(f"schema must be a name of 1 to {LONGEST_NAME} bytes")
    if name.startswith("pg_"):
        raise ValueError("schema must not begin with pg_, which is PostgreSQL's own")


def quoted(name: str) -> str:
    """A name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def filled(text: str, schema: str) -> str:
    """SQL with the schema's name in it: `{s}` where it is an identifier, `{l}` inside a literal."""
    name = quoted(schema)
    text = text.replace("{busy}", _BUSY).replace("{churn}", _CHURN).replace("{calendar}", CALENDAR)
    return text.replace("{s}", name).replace("{l}", name.replace("'", "''"))


def ddl(schema: str) -> list[str]:
    """The statements that make the tables in this schema, where they are missing."""
    return [filled(text, schema) for text in TABLES]
