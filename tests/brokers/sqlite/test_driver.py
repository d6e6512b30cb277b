"""The file, its thread, and what becomes of them."""

# ruff: noqa: ASYNC240 - a test may block for the moment that a small file takes
import asyncio
import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.sqlite.given import (
    Open,
    consistent,
    driver,
    join,
    message,
    names,
    publish,
    run_in_thread,
    select,
    take,
)
from things_kit.brokers.sqlite import admin
from things_kit.brokers.sqlite import worker as sqlite_worker
from things_kit.brokers.sqlite.schema import APPLICATION_ID
from things_kit.brokers.sqlite.store import Store
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.messaging.errors import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    PublishError,
)


async def test_messages_for_a_missing_topic_leave_the_rest_of_the_batch_confirmed(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    results = await broker.send([message(b"good"), message(b"x", topic="missing"), message(b"good too")])
    assert [type(result) for result in results] == [type(None), UnknownTopic, type(None)]
    assert names(await take(await join(broker))) == ["good", "good too"]


async def test_what_waits_together_is_committed_together(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    commits: list[str] = []
    gate = threading.Event()

    def trace(store: Store) -> None:
        store.connection.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        gate.wait(10)

    tracing = asyncio.ensure_future(run_in_thread(broker, trace))
    await asyncio.sleep(0)
    sending = [asyncio.ensure_future(publish(broker, f"a{number}")) for number in range(50)]
    refused = asyncio.ensure_future(join(broker, "missing", create=False))
    waiting = asyncio.ensure_future(receiver.receive(100, 5))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(tracing, *sending)
    with pytest.raises(ConfigError):
        await refused
    assert names(await waiting) == [f"a{number}" for number in range(50)]
    assert len(commits) <= 2
    await run_in_thread(broker, lambda store: store.connection.set_trace_callback(None))


async def test_a_job_that_fails_undoes_only_itself(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])

    def half(store: Store) -> None:
        admin.declare(store, "half", [])
        raise ConfigError("no")

    results = await asyncio.gather(
        publish(broker, "a1"), run_in_thread(broker, half), publish(broker, "a2"), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), ConfigError, type(None)]
    assert names(await take(await join(broker))) == ["a1", "a2"]
    assert isinstance((await broker.send([message(topic="half")]))[0], UnknownTopic)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await driver(tmp_path / "no" / "events.db").open()
    with pytest.raises(ConfigError, match="is a folder"):
        await driver(tmp_path).open()


async def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/proc/events\.db"):
        await driver(Path("/proc/events.db")).open()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no user ids")
async def test_a_read_only_file_is_a_config_error(file: Path, connect: Open) -> None:
    await (await connect()).close()
    file.chmod(0o444)
    folders = [
        folder for folder in file.parents if folder.stat().st_uid == os.geteuid() and folder != Path("/")
    ]
    modes = [(folder, folder.stat().st_mode) for folder in folders]
    root = os.geteuid() == 0
    try:
        if root:  # root may write everything, so somebody else looks
            for folder, mode in modes:
                folder.chmod(mode | 0o055)
            os.seteuid(65534)
        with pytest.raises(ConfigError, match=r"read-only|cannot be opened"):
            await driver(file).open()
    finally:
        if root:
            os.seteuid(0)
        for folder, mode in modes:
            folder.chmod(mode)


@pytest.mark.parametrize("content", [b"hello", b"hello" * 1000])
async def test_what_is_no_database_is_left_alone(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="not a SQLite database"):
        await driver(file).open()
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "statement", ["PRAGMA application_id = 7", "PRAGMA user_version = 3", "PRAGMA journal_mode = WAL"]
)
async def test_it_lives_in_the_file_of_an_application(connect: Open, file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE topic (theirs)")
        connection.execute("INSERT INTO topic VALUES ('left alone')")
        connection.execute(statement)
        connection.commit()
    (numbers,) = select(file, "SELECT * FROM pragma_application_id(), pragma_user_version()")
    broker = await connect()
    await broker.declare("t", ["g"])
    await publish(broker, "a1")
    assert names(await take(await join(broker))) == ["a1"]
    assert select(file, "SELECT theirs FROM topic") == [("left alone",)]
    assert select(file, "SELECT * FROM pragma_application_id(), pragma_user_version()") == [numbers]


async def test_two_schemas_of_a_file_are_two_brokers(connect: Open) -> None:
    one, other = await connect(), await connect("?schema=other")
    await one.declare("t", ["g"])
    await publish(one, "a1")
    assert await other.topics() == []
    await other.declare("t", ["g"])
    assert await other.lag("t", "g") == 0
    assert await one.lag("t", "g") == 1


async def test_where_nothing_is_to_be_created_the_tables_must_be_there(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(ConfigError, match="no tables of the schema 'things_kit'"):
        await driver(file, "?declare=false").open()
    assert select(file, "SELECT name FROM sqlite_master") == [("theirs",)]


async def test_a_file_of_a_newer_version_is_refused(file: Path, connect: Open) -> None:
    await (await connect()).close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE things_kit_installation SET version = 99")
        connection.commit()
    with pytest.raises(ConfigError, match="schema 99"):
        await driver(file).open()


async def test_damage_is_named(file: Path, connect: Open) -> None:
    first = await connect()
    await first.declare("t", ["g"])
    await publish(first, *(["a" * 50] * 500))
    await first.close()
    content = bytearray(file.read_bytes())
    for place in range(4096, len(content), 4096):
        content[place : place + 2000] = b"\xff" * 2000
    file.write_bytes(content)
    with pytest.raises(BrokerUnavailable, match="damaged") as caught:
        await (await connect()).send([message()])
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


async def test_a_full_disk_is_said_to_publishers_while_a_consumer_waits(connect: Open) -> None:
    """What the send would have woken is no part of what is tried again one by one."""
    broker = await connect()
    receiver = await join(broker)
    waiting = asyncio.ensure_future(receiver.receive(1, 30))
    await run_in_thread(broker, lambda store: store.connection.execute("PRAGMA max_page_count = 1"))
    results = await broker.send([message(b"x" * 100_000)])
    assert "the disk is full" in str(results[0])
    await run_in_thread(broker, lambda store: store.connection.execute("PRAGMA max_page_count = 1000000"))
    await publish(broker, "a1")
    with contextlib.suppress(ConnectionLost):  # it may have been told of the full disk, too
        assert names(await waiting) == ["a1"]


@pytest.mark.parametrize("version", [1, 2])
async def test_a_file_of_0_1_goes_on(connect: Open, file: Path, version: int) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await publish(broker, "a1")
    await broker.close()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as old:
        old.execute("DROP TABLE things_kit_installation")
        for (name,) in old.execute(
            "SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE INDEX%'"
        ).fetchall():
            old.execute(f"DROP INDEX {name}")
        for table in ("topic", "message", "consumer_group", "receiver", "loan", "queued"):
            old.execute(f"ALTER TABLE things_kit_{table} RENAME TO {table}")
        old.execute("CREATE INDEX message_targeted ON message (seq, target) WHERE target IS NOT NULL")
        old.execute("CREATE INDEX loan_lane ON loan (grp, lane, owner) WHERE lane IS NOT NULL")
        old.execute("CREATE INDEX queued_due ON queued (grp, due, off) WHERE due IS NOT NULL")
        old.execute("CREATE INDEX queued_lane ON queued (grp, lane, due, off) WHERE lane IS NOT NULL")
        for table in ("loan", "queued") if version == 1 else ():
            old.execute(f"ALTER TABLE {table} DROP COLUMN suspect")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute(f"PRAGMA user_version = {version}")
    again = await connect()
    assert names(await take(await join(again))) == ["a1"]
    consistent(file)
    made = {name for (name,) in select(file, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}
    assert {name for name in made if not name.startswith("things_kit_")} == set()


async def test_a_full_disk_refuses_sends_and_lets_settling_go_on(connect: Open) -> None:
    broker = await connect()
    receiver = await join(broker)
    await publish(broker, "a1", "b1")
    page = await take(receiver, 1)

    def fill(store: Store) -> None:
        (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
        store.connection.execute(f"PRAGMA max_page_count = {pages}")

    await run_in_thread(broker, fill)
    sending = broker.send([message(b"x" * 100_000)] * 3 + [message(topic="missing")])
    results, _, _ = await asyncio.gather(sending, receiver.settle(page, []), broker.ping())
    assert all(isinstance(result, PublishError) for result in results[:3])
    assert "the disk is full" in str(results[0])
    assert isinstance(results[0].__cause__ if results[0] else None, sqlite3.OperationalError)
    assert await broker.lag("t", "g") == 1


async def test_a_lock_of_another_process_is_waited_for_and_then_named(
    connect: Open, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_worker, "LOCK_PATIENCE", 0.2)
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.ping()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConnectionLost, match="locked by another process") as caught:
            await broker.send([message()])
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        with pytest.raises(ConnectionLost, match="locked by another process"):
            await broker.ping()
        sending = asyncio.ensure_future(broker.send([message()]))
        await asyncio.sleep(0)
        locker.execute("COMMIT")
        assert await sending == [None]


async def test_nothing_is_confirmed_into_a_file_that_was_deleted(connect: Open, file: Path) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    file.rename(file.with_name("moved.db"))
    with pytest.raises(ConnectionLost, match="moved"):
        await broker.send([message()])
    with pytest.raises(ConnectionLost, match="moved"):
        await broker.ping()


async def test_many_processes_create_one_file_at_once(connect: Open) -> None:
    drivers = await asyncio.gather(*(connect() for _ in range(8)))
    await asyncio.gather(*(each.declare("t", ["g"]) for each in drivers))
    await asyncio.gather(*(publish(each, f"{number}") for number, each in enumerate(drivers)))
    assert len(await take(await join(drivers[0]))) == 8


async def test_a_fault_of_the_thread_fails_all_that_wait(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await connect()
    waiting = asyncio.ensure_future((await join(broker)).receive(1, 60))
    await broker.ping()

    def fault(*_: Any) -> None:
        raise RuntimeError("fault")

    monkeypatch.setattr(sqlite_worker.Worker, "_commit", fault)
    with pytest.raises(BrokerUnavailable, match="fault"):
        await broker.send([message()])
    with pytest.raises(BrokerUnavailable, match="fault"):
        await waiting
    with pytest.raises(ClosedError):
        await broker.ping()


async def test_closing_leaves_nothing_behind(file: Path) -> None:
    before = threading.active_count()
    broker = driver(file)
    await broker.open()
    receiver = await join(broker)
    await publish(broker, "a1")
    last = asyncio.ensure_future(publish(broker, "a2"))
    waiting = asyncio.ensure_future(receiver.receive(1, 0))
    await asyncio.sleep(0)
    await waiting
    await receiver.close()
    await asyncio.gather(broker.close(), broker.close())
    await broker.close()
    await last
    assert threading.active_count() == before
    assert [path.name for path in file.parent.iterdir()] == ["events.db"]
    assert select(file, "SELECT count(*) FROM things_kit_message") == [(2,)]
    await receiver.close()
    for call in (broker.ping(), broker.send([message()]), receiver.receive(1, 1), broker.lag("t", "g")):
        with pytest.raises(ClosedError):
            await call


async def test_closing_ends_a_receive_that_still_waits(file: Path) -> None:
    broker = driver(file)
    await broker.open()
    waiting = asyncio.ensure_future((await join(broker)).receive(1, 60))
    await asyncio.sleep(0)
    await broker.close()
    with pytest.raises(ClosedError):
        await waiting


async def test_a_failed_or_cancelled_open_leaves_no_thread(file: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError):
        await driver(tmp_path).open()
    opening = asyncio.ensure_future(driver(file).open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert threading.active_count() == before


async def test_messages_stay_through_twenty_restarts(connect: Open) -> None:
    for number in range(20):
        broker = await connect()
        await broker.declare("t", ["g"])
        await publish(broker, f"a{number}")
        receiver = await join(broker)
        (got,) = await take(receiver)
        assert got.message.offset == number
        await receiver.settle([got], [])
        await receiver.close()
        await broker.close()
