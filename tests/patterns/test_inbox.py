"""A message's mark, what its handler does and what it publishes are there together, or not at all."""

import asyncio
import random
import sqlite3
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from things_kit import (
    Batch,
    BatchError,
    ConfigError,
    Message,
    PublishError,
    Reject,
    RetryPolicy,
    Topic,
    connect,
)
from things_kit.engine import clock
from things_kit.engine.broker import Broker
from things_kit.patterns import Inbox, Outbox
from things_kit.patterns.inbox.transactions import AsyncTransaction
from things_kit.testing.servers.postgres import PostgresServer

LEASE = 30.0
SOON = RetryPolicy(attempts=5, first=0.01, factor=1.0)
bills = Topic("bills", dict[str, str])


@asynccontextmanager
async def engine_of(url: str) -> AsyncIterator[AsyncEngine]:
    driver = "aiosqlite" if url.startswith("sqlite") else "asyncpg"
    engine = create_async_engine(url.replace("://", f"+{driver}://"), poolclass=NullPool)
    await Outbox().create(engine)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS effects (name TEXT)")
    yield engine
    await engine.dispose()


async def effects(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return [name for (name,) in await connection.execute(text("SELECT name FROM effects ORDER BY name"))]


async def write(session: AsyncSession, name: str) -> None:
    await session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": name})


def message(name: str, topic: str = "orders") -> Message:
    return Message(topic, name.encode(), id=name)


async def settled(broker: Broker, topic: str = "orders", group: str = "g") -> None:
    async with asyncio.timeout(20):
        while await broker.lag(topic, group):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)


async def test_a_message_that_comes_twice_is_handled_once(database: str) -> None:
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(message: Message) -> None:
            await write(inbox.session(), message.value.decode())

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox]):
            await broker.producer().publish_batch([message("a"), message("a"), message("b")])
            await settled(broker)
        assert await effects(engine) == ["a", "b"]


async def test_of_two_consumers_that_have_the_same_messages_at_once_one_handles_each(database: str) -> None:
    async with engine_of(database) as engine, connect("memory://") as one, connect("memory://") as other:
        inboxes = {broker: Inbox(engine) for broker in (one, other)}

        async def serve(broker: Broker) -> None:
            inbox = inboxes[broker]

            async def handle(message: Message) -> None:
                await write(inbox.session(), message.value.decode())

            async with broker.consumer(
                "orders", group="g", handler=handle, middleware=[inbox], concurrency=4
            ):
                await broker.producer().publish_batch([message(str(number)) for number in range(30)])
                await settled(broker)

        await asyncio.gather(serve(one), serve(other))
        assert await effects(engine) == sorted(map(str, range(30)))


async def test_what_failed_leaves_nothing_and_is_handled_again(database: str) -> None:
    attempts = 0
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(message: Message, session: AsyncSession) -> None:
            nonlocal attempts
            attempts += 1
            await write(session, f"{message.id}-{attempts}")
            if attempts < 3:
                raise OSError

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox], retry=SOON):
            await broker.producer().publish(message("a"))
            await settled(broker)
        assert await effects(engine) == ["a-3"]


async def test_commit_is_a_savepoint_and_rollback_undoes_what_came_after_it(database: str) -> None:
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)
        fails = True

        async def handle(message: Message, session: AsyncSession) -> None:
            nonlocal fails
            await write(session, "kept")
            await session.commit()
            await write(session, "undone")
            await session.rollback()
            await write(session, "kept too")
            if fails:
                fails = False
                raise OSError

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox], retry=SOON):
            await broker.producer().publish(message("a"))
            await settled(broker)
        assert await effects(engine) == ["kept", "kept too"]


async def test_a_plain_handler_gets_a_session_of_an_engine(database: str) -> None:
    async with engine_of(database) as there, connect("memory://") as broker:
        engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
        inbox = Inbox(engine)

        def handle(message: Message, session: Session) -> None:
            session.execute(text("INSERT INTO effects VALUES (:name)"), {"name": message.value.decode()})
            assert inbox.session() is session

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox]):
            await broker.producer().publish_batch([message("a"), message("a")])
            await settled(broker)
        assert await effects(there) == ["a"]
        assert inbox.forget("g", "orders", "a") == 1
        assert inbox.sweep() == 0
        engine.dispose()


async def test_results_are_published_in_the_same_transaction(database: str) -> None:
    outbox, fails = Outbox(), True
    async with engine_of(database) as engine, connect(database) as broker:
        await broker.declare("bills", ["reader"])
        inbox = Inbox(engine, outbox=outbox)

        async def handle(message: Message, session: AsyncSession) -> dict[str, str]:
            nonlocal fails
            await write(session, message.value.decode())
            await outbox.publish(session, Message("bills", b"in the handler"))
            if fails:
                fails = False
                raise OSError
            return {"bill": message.value.decode()}

        async with broker.consumer(
            "orders", group="g", handler=handle, middleware=[inbox], publish=bills, retry=SOON
        ):
            await broker.producer().publish_batch([message("a"), message("a"), message("b")])
            await settled(broker)
        assert await effects(engine) == ["a", "b"]
        assert await broker.lag("bills", "reader") == 4


async def test_of_a_batch_all_are_marked_but_those_that_failed(database: str) -> None:
    batches: list[list[str]] = []
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(messages: list[Message]) -> None:
            names = [message.value.decode() for message in messages]
            batches.append(names)
            for name in names:
                if name != "bad" or len(batches) > 1:
                    await write(inbox.session(), name)
            if len(batches) == 1:
                raise BatchError({names.index("bad"): OSError()})

        await broker.declare("orders", ["g"])
        names = ["a", "bad", "b", "a", "bad"]
        await broker.producer().publish_batch([message(name) for name in names])
        async with broker.consumer(
            "orders", group="g", handler=handle, middleware=[inbox], batch=Batch(5, 0.5), retry=SOON
        ):
            await settled(broker)
        assert batches[0] == ["a", "bad", "b"]
        assert await effects(engine) == ["a", "b", "bad"]


async def test_of_a_batch_that_fails_as_a_whole_nothing_is_there(database: str) -> None:
    calls = 0
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(messages: list[Message]) -> None:
            nonlocal calls
            calls += 1
            for each in messages:
                await write(inbox.session(), each.value.decode())
            if calls == 1:
                raise OSError

        await broker.declare("orders", ["g"])
        await broker.producer().publish_batch([message(name) for name in "ab"])
        async with broker.consumer(
            "orders", group="g", handler=handle, middleware=[inbox], batch=Batch(2, 0.5), retry=SOON
        ):
            await settled(broker)
        assert await effects(engine) == ["a", "b"]


async def test_a_dead_letter_has_no_mark_and_is_handled_when_it_is_replayed(database: str) -> None:
    well = False
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(message: Message, session: AsyncSession) -> None:
            await write(session, message.value.decode())
            if not well:
                raise Reject("not today")

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox]):
            await broker.producer().publish(message("a"))
            await settled(broker)
            assert await effects(engine) == []
            well = True
            assert await broker.replay("orders-dlq") == 1
            await settled(broker)
        assert await effects(engine) == ["a"]


async def test_a_reply_is_sent_after_the_commit(database: str) -> None:
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(message: Message, session: AsyncSession) -> dict[str, str]:
            await write(session, message.value.decode())
            return {"billed": message.value.decode()}

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox]):
            reply = await broker.request(message("a"), reply=dict[str, str], timeout=20)
            assert await effects(engine) == ["a"]
        assert reply == {"billed": "a"}


async def test_a_sweep_and_a_handler_do_not_wait_for_each_other_in_postgresql(
    postgres: PostgresServer,
) -> None:
    with postgres.database() as url:
        async with engine_of(url) as engine, connect("memory://") as broker:
            inbox = Inbox(engine)
            began, go_on = asyncio.Event(), asyncio.Event()

            async def handle(message: Message, session: AsyncSession) -> None:
                await write(session, message.value.decode())
                if message.id == "held":
                    began.set()
                    await go_on.wait()

            expired = [{"id": name} for name in ("held", "1", "2")]
            async with engine.begin() as connection:
                await connection.execute(
                    text("INSERT INTO things_kit.inbox VALUES ('g', 'orders', :id, 1)"), expired
                )
            async with broker.consumer(
                "orders", group="g", handler=handle, middleware=[inbox], concurrency=2
            ):
                await broker.producer().publish(message("held"))
                await began.wait()
                async with asyncio.timeout(20), engine.begin() as sweeping:
                    swept = await sweeping.execute(text(inbox.marks.sweep), {"now": 2, "most": 1000})
                    assert swept.rowcount == 2, "all but the mark that a handler writes anew"
                    await broker.producer().publish(message("new"))
                    while await broker.lag("orders", "g") != 1:  # noqa: ASYNC110 - only the broker knows
                        await asyncio.sleep(0.01)  # a handler with a new mark ends meanwhile
                go_on.set()
                await broker.producer().publish(message("held"))
                await settled(broker)
            assert await effects(engine) == ["held", "new"]


async def test_marks_are_a_groups_own_and_can_be_forgotten_and_swept(database: str) -> None:
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine, retain=timedelta(days=1))
        short = Inbox(engine, retain=0)

        def counting(name: str, inbox: Inbox) -> Any:
            async def handle(message: Message) -> None:
                await write(inbox.session(), f"{name} {message.value.decode()}")

            return broker.consumer("orders", group=name, handler=handle, middleware=[inbox])

        async with counting("one", inbox), counting("other", inbox), counting("short", short):
            await broker.producer().publish_batch([message("a"), message("a")])
            for name in ("one", "other", "short"):
                await settled(broker, group=name)
            assert await effects(engine) == ["one a", "other a", "short a", "short a"]
            assert await inbox.forget("one", "orders", "a") == 1
            await broker.producer().publish(message("a"))
            for name in ("one", "other", "short"):
                await settled(broker, group=name)
        assert (await effects(engine)).count("one a") == 2
        assert (await effects(engine)).count("other a") == 1
        async with engine.begin() as connection:
            table = "things_kit_inbox" if database.startswith("sqlite") else "things_kit.inbox"
            numbers = [{"id": str(number)} for number in range(2500)]
            await connection.execute(text(f"INSERT INTO {table} VALUES ('g', 't', :id, 1)"), numbers)
        assert await inbox.sweep() in {2500, 2501}
        assert await inbox.sweep() == 0
        async with engine.connect() as connection:
            rows = await connection.execute(text(f"SELECT grp FROM {table} ORDER BY grp"))
            assert [group for (group,) in rows] == ["one", "other"]


LONG = "".join(random.Random(1).choices(string.ascii_letters, k=9000))
"""No database can compress it."""

NAMES = [
    ("g", "orders", LONG),
    (LONG[:2000], LONG[2000:4000], LONG[4000:]),
    (LONG[:2000], LONG[2000:4000], "short"),
    ("é" * 1000, LONG[:1000], LONG[1000:1600]),
    ("g", "orders", "null\0character"),
]


@pytest.mark.parametrize(("group", "topic", "name"), NAMES, ids=range(len(NAMES)))
async def test_a_message_is_marked_whatever_it_and_its_group_are_called(
    database: str, group: str, topic: str, name: str
) -> None:
    async with engine_of(database) as engine, connect("memory://") as broker:
        inbox = Inbox(engine)

        async def handle(message: Message, session: AsyncSession) -> None:
            assert (message.topic, message.id) == (topic, name + message.value.decode())
            await write(session, message.value.decode())

        async def publish(*values: str) -> None:
            await broker.producer().publish_batch(
                [Message(topic, value.encode(), id=name + value) for value in values]
            )
            await settled(broker, topic, group)

        async with broker.consumer(topic, group=group, handler=handle, middleware=[inbox], retry=SOON):
            await publish("a", "a", "b")
            assert await effects(engine) == ["a", "b"]
            assert await inbox.forget(group, topic, f"{name}a") == 1
            await publish("a", "b")
        assert await effects(engine) == ["a", "a", "b"]


async def test_batches_that_have_the_same_messages_in_another_order_do_not_lock_each_other_out(
    postgres: PostgresServer,
) -> None:
    with postgres.database() as url:
        async with engine_of(url) as engine, connect("memory://") as one, connect("memory://") as other:
            names = [str(number) for number in range(100)]
            failed: list[BaseException] = []

            def watched(handle: Any) -> Any:
                return handle

            watched.handle_batch = lambda handle: watching(handle, failed)  # type: ignore[attr-defined]

            async def serve(broker: Broker, names: list[str]) -> None:
                inbox = Inbox(engine)

                async def handle(messages: list[Message]) -> None:
                    for each in messages:
                        await write(inbox.session(), each.value.decode())

                await broker.declare("orders", ["g"])
                await broker.producer().publish_batch([message(name) for name in names])
                async with broker.consumer(
                    "orders",
                    group="g",
                    handler=handle,
                    middleware=[watched, inbox],
                    batch=Batch(100, 5),
                    retry=SOON,
                ):
                    await settled(broker)

            await asyncio.gather(serve(one, names), serve(other, names[::-1]))
            assert failed == []
            assert await effects(engine) == sorted(names)


def watching(handle: Any, failed: list[BaseException]) -> Any:
    async def watched(messages: list[Message]) -> None:
        try:
            await handle(messages)
        except BaseException as error:
            failed.append(error)
            raise

    return watched


async def test_in_memory_where_all_have_one_connection_handlers_have_it_one_after_another() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    await Outbox().create(engine)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE effects (name TEXT)")
    inboxes = [Inbox(engine), Inbox(engine)]
    async with connect("memory://") as one, connect("memory://") as other:

        async def serve(broker: Broker, inbox: Inbox) -> None:
            async def handle(message: Message, session: AsyncSession) -> None:
                await write(session, message.value.decode())
                await asyncio.sleep(0)
                if message.attempt == 1:
                    raise OSError

            async with broker.consumer(
                "orders", group="g", handler=handle, middleware=[inbox], concurrency=4, retry=SOON
            ):
                await broker.producer().publish_batch([message(str(number)) for number in range(20)])
                await settled(broker)

        sweeping = asyncio.create_task(inboxes[0].sweep())
        await asyncio.gather(*map(serve, (one, other), inboxes))
        await sweeping
        assert sorted(await effects(engine)) == sorted(map(str, range(20)))
    await engine.dispose()


async def test_a_connection_that_cannot_be_used_is_given_back(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/app.db"
    engine = create_async_engine(url, connect_args={"isolation_level": None}, pool_size=1, max_overflow=0)

    async def handle(message: Message) -> None: ...

    async with connect("memory://") as broker:
        for _ in range(2):
            with pytest.raises(ConfigError, match="commits every statement"):
                await broker.consumer("orders", group="g", handler=handle, middleware=[Inbox(engine)]).start()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a pool of several
    await engine.dispose()


async def test_mistakes_are_said_at_the_start(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db", poolclass=NullPool)
    inbox = Inbox(engine)

    async def handle(message: Message) -> dict[str, str] | None:
        return None

    with pytest.raises(ConfigError, match="none runs here"):
        inbox.session()
    async with connect("memory://") as broker:
        with pytest.raises(ConfigError, match="needs an outbox"):
            await broker.consumer(
                "orders", group="g", handler=handle, middleware=[inbox], publish=bills
            ).start()
        with pytest.raises(ConfigError, match="table of marks cannot be read"):
            await broker.consumer("orders", group="g", handler=handle, middleware=[inbox]).start()
    await engine.dispose()


async def test_in_sqlite_a_handler_is_told_not_to_wait_for_its_own_lock(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.db"
    async with engine_of(url) as engine, connect(url) as broker:
        inbox, said = Inbox(engine), list[str]()

        async def handle(message: Message) -> None:
            try:
                await broker.producer().publish(Message("bills", b""))
            except PublishError as error:
                said.append(str(error))

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox]):
            await broker.producer().publish(message("a"))
            await settled(broker)
        (sentence,) = said
        assert "outbox.publish(inbox.session(), ...)" in sentence


async def test_in_sqlite_a_handler_waits_for_the_file_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, several = 0, asyncio.Event()
    attempts: list[int] = []

    async def handle(message: Message) -> None:
        attempts.append(message.attempt)

    async with engine_of(f"sqlite:///{tmp_path}/app.db"), connect("memory://") as broker:
        url = f"sqlite+aiosqlite:///{tmp_path}/app.db"
        engine = create_async_engine(url, connect_args={"timeout": 0.01}, poolclass=NullPool)
        inbox, execute = Inbox(engine), AsyncTransaction.execute

        async def counted(self: AsyncTransaction, statement: str, parameters: Any) -> int:
            nonlocal asked
            asked += 1
            if asked > 5:
                several.set()
            return await execute(self, statement, parameters)

        with closing(sqlite3.connect(tmp_path / "app.db")) as other:
            async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox], retry=SOON):
                other.execute("BEGIN IMMEDIATE")
                monkeypatch.setattr(AsyncTransaction, "execute", counted)
                await broker.producer().publish(message("a"))
                await several.wait()  # it has tried, and been told that the file is locked
                other.execute("ROLLBACK")
                await settled(broker)
    assert attempts == [1]


@pytest.mark.parametrize("fails", [False, True])
async def test_in_sqlite_a_handler_longer_than_the_lease_keeps_its_message(
    tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/app.db?lease={LEASE}"
    calls = 0
    sessions: list[object] = []
    left: list[float] = []
    end = AsyncTransaction.end

    async def end_and_look(self: AsyncTransaction, *, commit: bool) -> None:
        await end(self, commit=commit)
        with closing(sqlite3.connect(tmp_path / "app.db")) as file:
            rows = file.execute("SELECT expires FROM things_kit_receiver").fetchall()
        if getattr(self, "session", None) in sessions:  # others end beside it
            left.extend(expires - clock.steady() for (expires,) in rows)

    monkeypatch.setattr(AsyncTransaction, "end", end_and_look)
    async with engine_of(url.partition("?")[0]) as engine, connect(url) as broker, connect(url) as other:
        inbox = Inbox(engine)
        attempts: list[int] = []
        begun = asyncio.Event()

        async def handle(message: Message) -> None:
            nonlocal calls
            calls += 1
            sessions.append(inbox.session())
            attempts.append(message.attempt)
            begun.set()
            await write(inbox.session(), "once")
            read, ahead = clock._last
            monkeypatch.setattr(clock, "_last", (read, ahead + 5 * LEASE))
            await asyncio.sleep(0.5)  # the other looks for messages whose lease has ended
            if fails and calls == 1:
                raise OSError

        async with broker.consumer("orders", group="g", handler=handle, middleware=[inbox], retry=SOON):
            await broker.producer().publish(message("a"))
            await begun.wait()
            async with other.consumer("orders", group="g", handler=handle, middleware=[inbox], retry=SOON):
                await settled(broker)
        assert await effects(engine) == ["once"]
        assert attempts == ([1, 2] if fails else [1])
        assert min(left) > 0, "a lease had run out when the file was free again"
