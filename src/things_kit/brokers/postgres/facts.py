"""How things are in the database of the broker."""

from typing import TYPE_CHECKING, Any, Final

from things_kit.brokers.postgres.schema import quoted
from things_kit.engine.facts import Facts, GroupFacts, Need, Question, Server, TopicFacts

if TYPE_CHECKING:
    from things_kit.brokers.postgres.driver import PostgresDriver

LONG: Final = 300.0
"""Seconds after which an open transaction is worth a word: vacuum cleans up nothing that it might see."""

MANY_DEAD: Final = 100_000

RIGHTS: Final = {
    "message": ("INSERT", "publish"),
    "scheduled": ("INSERT", "publish for later"),
    "consumer_group": ("UPDATE", "consume"),
    "loan": ("DELETE", "consume"),
    "queued": ("DELETE", "consume"),
}


async def facts_of(driver: "PostgresDriver", question: Question) -> Facts:
    """Everything there is to tell; reads only."""
    facts = Facts()
    ask = driver.connections.rows
    schema = driver.options.schema
    (row,) = await ask("asking for the version", "SELECT current_setting('server_version')")
    needs = [Need((13, 0), "Snapshots cannot be kept as values.")]
    facts.servers.append(Server(driver.settings.url.display, "PostgreSQL", row[0].split(" ")[0], needs))
    _ways(facts, driver)
    with facts.looking("rights"):
        await _rights(facts, ask, schema)
    with facts.looking("transactions"):
        await _transactions(facts, ask)
    with facts.looking("tables"):
        await _tables(facts, ask, schema)
    await _topics(facts, driver, question)
    return facts


def _ways(facts: Facts, driver: "PostgresDriver") -> None:
    options = driver.options
    if driver.connections.pooled:
        what = "A pooler such as PgBouncer stands before the server"
        if driver.connections.unprepared:
            facts.find("ok", "pooler", f"{what}; statements are not prepared.")
        else:
            remedy = "Leave the option prepared out, unless the pooler is in session mode or keeps prepared statements."
            facts.find("warning", "pooler", f"{what}, and statements are prepared all the same.", remedy)
        late = f"Through a pooler notifications may not arrive: then messages come up to {options.poll:g} s later."
        facts.find("ok" if options.poll <= 1 else "warning", "notifications", late)
    if not options.notify:
        late = f"NOTIFY is off: messages come up to {options.poll:g} s later."
        facts.find("ok" if options.poll <= 1 else "warning", "notifications", late)


async def _rights(facts: Facts, ask: Any, schema: str) -> None:
    names = list(RIGHTS)
    rows = await ask(
        "asking for rights",
        """SELECT has_schema_privilege($1, 'CREATE'), array(SELECT n FROM unnest($2::text[], $3::text[]) x(n, r)
            WHERE NOT has_table_privilege(quote_ident($1) || '.' || n, r))""",
        schema, names, [RIGHTS[name][0] for name in names],
    )  # fmt: skip
    may_create, missing = rows[0]
    for name in missing:
        right, verb = RIGHTS[name]
        what = f"The user may not {verb}: {right} on {schema}.{name} is missing."
        facts.find("warning", "rights", what, f"GRANT {right} ON {quoted(schema)}.{name} to it, if it is to.")
    if not may_create:
        what = "The user may make no partitions, so another process must, or rows stay in the default one."
        remedy = "Let one process that may (CREATE on the schema, owner of the tables) connect every day."
        facts.find("ok" if await _has_partition(ask, schema) else "warning", "partitions", what, remedy)


async def _has_partition(ask: Any, schema: str) -> bool:
    rows = await ask(
        "looking at the default partition",
        f"SELECT NOT EXISTS (SELECT FROM {quoted(schema)}.message_default)",  # noqa: S608 - an identifier
    )
    return bool(rows[0][0])


async def _transactions(facts: Facts, ask: Any) -> None:
    rows = await ask(
        "asking for transactions",
        """SELECT pid, coalesce(application_name, ''), extract(epoch FROM now() - xact_start)::float8
        FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL
            AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) AND pid <> pg_backend_pid()
        ORDER BY xact_start LIMIT 1""",
    )
    if rows and rows[0][2] > LONG:
        pid, program, age = rows[0]
        who = f" of {program!r}" if program else ""
        what = f"A transaction{who} (process {pid}) has been open for {age:.0f} s: meanwhile nothing is vacuumed, and what it published waits."
        facts.find("warning", "transactions", what, "Commit it, or set idle_in_transaction_session_timeout.")
    else:
        facts.find("ok", "transactions", "None has been open for long.")


async def _tables(facts: Facts, ask: Any, schema: str) -> None:
    rows = await ask(
        "asking for dead rows",
        """SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = $1
        AND relname IN ('loan', 'queued', 'consumer_group', 'receiver', 'topic') ORDER BY n_dead_tup DESC LIMIT 1""",
        schema,
    )
    if rows and rows[0][1] > MANY_DEAD:
        what = f"The table {rows[0][0]} has {rows[0][1]:,} dead rows: handing out becomes slow."
        facts.find(
            "warning", "tables", what, "See that autovacuum is on, and no transaction is open for long."
        )
    else:
        facts.find("ok", "tables", "There are few dead rows.")


async def _topics(facts: Facts, driver: "PostgresDriver", question: Question) -> None:
    known = await driver.topics()
    s = quoted(driver.options.schema)
    rows = await driver.connections.rows(
        "asking for groups",
        f"""SELECT t.name, g.name,
            g.cursor < t.next OR EXISTS (SELECT FROM {s}.queued q WHERE q.grp = g.id AND q.due <= clock_timestamp()),
            EXISTS (SELECT FROM {s}.receiver r JOIN {s}.loan l ON l.owner = r.id WHERE r.grp = g.id),
            (SELECT count(*) FROM {s}.receiver r WHERE r.grp = g.id AND r.expires > clock_timestamp())
        FROM {s}.consumer_group g JOIN {s}.topic t ON t.id = g.topic
        WHERE NOT g.ephemeral AND ($1::text IS NULL OR t.name = $1) ORDER BY 1, 2""",  # noqa: S608 - an identifier
        question.topic,
    )
    for topic, group, waits, held, receivers in rows:
        # Receivers with nothing to hold renew no lease: only what is ready shows whether there are any.
        ready = await driver.lag(topic, group) if waits or held else 0
        consumers = receivers if waits or held else None
        facts.groups.append(GroupFacts(name=group, topic=topic, ready=ready, consumers=consumers))
    groups = {(group.topic, group.name) for group in facts.groups}
    for topic, wanted in question.wanted:
        there = topic in known
        facts.topics.append(TopicFacts(name=topic, there=there, others=() if there else known))
        if there and wanted is not None and (topic, wanted) not in groups:
            facts.groups.append(GroupFacts(name=wanted, topic=topic, there=False))
