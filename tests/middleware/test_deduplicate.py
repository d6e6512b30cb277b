"""What was handled is not handled again."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from tests.engine.scenario import virtual
from things_kit import Batch, BatchError, ConfigError, Message, RetryPolicy, connect
from things_kit.middleware import Marks, MemoryStore, deduplicate
from things_kit.middleware.marks import marks_of
from things_kit.testing.conformance.recorder import Recorder, failing
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.redis import RedisServer

QUICK = RetryPolicy(attempts=3, first=0.01, jitter=0.0)

server = shared(RedisServer, "redis")


@pytest.fixture(params=["memory", "async engine", "engine", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "async engine":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/marks.db")
        yield engine
        await engine.dispose()
    elif request.param == "engine":
        plain = create_engine(f"sqlite:///{tmp_path}/marks.db")
        yield plain
        plain.dispose()
    else:
        async with redis.asyncio.Redis(port=request.getfixturevalue("server").port) as client:
            yield client


MINE = uuid4().hex
"""What tells this process's marks from those of others: a server may be shared."""


def own(name: str) -> str:
    return f"{name}-{MINE}"


def copies(number: int, *ids: str) -> list[Message]:
    return [Message("orders", each.encode(), id=each) for _ in range(number) for each in ids]


async def middleware(store: Any, **said: Any) -> Any:
    once = deduplicate(store, **said)
    await once.create()
    return once


async def test_a_message_that_comes_twice_is_handled_once(store: Any) -> None:
    once, recorder = await middleware(store), Recorder()
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group=own("once"), handler=recorder, concurrency=3, middleware=[once]),
    ):
        await broker.producer().publish_batch(copies(3, "1", "2"))

        async def empty() -> bool:
            return await broker.lag("orders", group=own("once")) == 0

        await eventually(empty, 20, "all is acknowledged")
    assert sorted(recorder.values) == [b"1", b"2"]


async def test_a_failure_leaves_no_mark(store: Any) -> None:
    once, recorder = await middleware(store), Recorder(failing(2))
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group=own("fails"), handler=recorder, retry=QUICK, middleware=[once]),
    ):
        await broker.producer().publish_batch(copies(1, "1"))
        await recorder.until_done(1, 10)
    assert recorder.attempts == [1, 2, 3]


async def test_of_two_who_ask_at_once_one_gets_it(store: Any) -> None:
    await middleware(store)
    marks = marks_of(store)
    answers = await asyncio.gather(*(marks.claim(own("m"), f"owner-{number}", 600) for number in range(5)))
    assert sorted(answers) == ["ours", *["taken"] * 4]
    owner = f"owner-{answers.index('ours')}"
    assert await marks.claim(own("m"), owner, 600) == "ours"
    await marks.release(own("m"), "somebody")
    assert await marks.claim(own("m"), "somebody", 600) == "taken"
    await marks.done(own("m"), owner, 600)
    assert await marks.claim(own("m"), "somebody", 600) == "done"


async def test_a_mark_ends_with_its_lease_which_is_the_one_that_was_said_last(store: Any) -> None:
    await middleware(store)
    marks = marks_of(store)
    assert await marks.claim(own("lease"), "dead", 0.2) == "ours"
    assert await marks.claim(own("renewed"), "dying", 600) == "ours"
    assert await marks.claim(own("renewed"), "other", 600) == "taken"
    await marks.renew(own("renewed"), "somebody", 0.1)
    await marks.renew(own("renewed"), "dying", 0.2)
    assert await marks.claim(own("kept"), "alive", 600) == "ours"
    await marks.renew(own("kept"), "somebody", 0.1)

    async def free(mark: str) -> bool:
        return await marks.claim(own(mark), "other", 600) == "ours"

    for mark in ("lease", "renewed"):
        await eventually(partial(free, mark), 20, "it has ended")
    assert await marks.claim(own("kept"), "other", 600) == "taken"


@virtual
async def test_a_handler_longer_than_the_lease_keeps_its_mark() -> None:
    store = MemoryStore()
    begun, go_on = asyncio.Event(), asyncio.Event()
    calls = 0

    async def slow(_: Message) -> None:
        nonlocal calls
        calls += 1
        begun.set()
        await go_on.wait()

    async with connect("memory://") as broker:
        first = broker.consumer(
            "orders", group="g", handler=slow, middleware=[deduplicate(store, lease=15)], concurrency=2
        )
        async with first:
            await broker.producer().publish_batch(copies(2, "1"))
            await begun.wait()
            await asyncio.sleep(60)  # four leases
            go_on.set()

            async def empty() -> bool:
                return await broker.lag("orders", group="g") == 0

            await eventually(empty, 10, "all is acknowledged")
    assert calls == 1


async def test_of_a_list_those_that_are_known_are_left_out(store: Any) -> None:
    once = await middleware(store)
    calls: list[list[bytes]] = []

    async def handle(messages: list[Message]) -> None:
        calls.append([message.value for message in messages])
        if len(calls) == 1:
            raise BatchError({1: ValueError("not this time")})

    async with (
        connect("memory://") as broker,
        broker.consumer(
            "orders",
            group=own("list"),
            handler=handle,
            batch=Batch(size=6, wait=0.3),
            retry=QUICK,
            middleware=[once],
        ),
    ):
        await broker.producer().publish_batch(copies(2, "1", "2", "3"))

        async def empty() -> bool:
            return await broker.lag("orders", group=own("list")) == 0

        await eventually(empty, 20, "all is acknowledged")
    assert calls[0] == [b"1", b"2", b"3"]
    assert sorted(value for call in calls for value in call) == [b"1", b"2", b"2", b"3"]


@virtual
async def test_a_store_that_is_away_costs_no_attempt_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Away(MemoryStore):
        away = True

        async def claim(self, mark: str, owner: str, lease: float, /) -> Any:
            if self.away:
                raise OSError("away")
            return await super().claim(mark, owner, lease)

    store = Away()
    recorder, once = Recorder(), deduplicate(store)
    async with (
        connect("memory://") as broker,
        broker.consumer(
            "orders", group="g", handler=recorder, retry=RetryPolicy(attempts=1), middleware=[once]
        ) as consumer,
    ):
        assert [each.state for each in consumer.health().middleware] == ["ready"]
        await broker.producer().publish_batch(copies(1, "1"))
        await eventually(lambda: consumer.health().put_off, 10, "it waits for the store")
        assert [each.state for each in consumer.health().middleware] == ["store away"]
        store.away = False
        await recorder.until_done(1, 10)
    assert recorder.attempts == [1]
    assert [record.getMessage() for record in caplog.records if record.name == "things_kit.deduplicate"] == [
        "messages wait, as the store of deduplicate is away: away",
        "the store of deduplicate is there again",
    ]


@pytest.mark.parametrize("store", ["async engine", "engine"], indirect=True)
async def test_a_missing_table_is_said_at_start(store: Any) -> None:
    async with connect("memory://") as broker:
        consumer = broker.consumer("orders", group="g", handler=Recorder(), middleware=[deduplicate(store)])
        with pytest.raises(
            ConfigError, match="the table things_kit_deduplicate of deduplicate is missing in sqlite"
        ):
            await consumer.start()


async def test_a_store_that_is_away_at_start_is_waited_for(tmp_path: Path) -> None:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/folder/marks.db"
    )  # there is no such folder yet
    recorder, once = Recorder(), deduplicate(engine)
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group="g", handler=recorder, middleware=[once]) as consumer,
    ):
        assert [each.state for each in consumer.health().middleware] == ["store away"]
        (tmp_path / "folder").mkdir()
        await once.create()
        await broker.producer().publish_batch(copies(1, "1"))
        await recorder.until_done(1, 10)
        assert [each.state for each in consumer.health().middleware] == ["ready"]
    await engine.dispose()


async def test_what_was_handled_is_no_failure_though_it_could_not_be_noted() -> None:
    class Forgetful(MemoryStore):
        async def done(self, mark: str, owner: str, window: float, /) -> None:
            raise OSError("away")

    recorder, once = Recorder(), deduplicate(Forgetful())
    async with connect("memory://") as broker:
        consumer = broker.consumer(
            "orders", group="g", handler=recorder, retry=RetryPolicy(attempts=1), middleware=[once]
        )
        async with consumer:
            await broker.producer().publish_batch(copies(1, "1"))
            await eventually(lambda: consumer.handled == 1, 10, "it is acknowledged")
        assert await broker.lag("orders-dlq", group="dead-letters") == 0
    assert recorder.values == [b"1"]


async def test_two_consumers_of_a_group_handle_each_message_once(store: Any) -> None:
    await middleware(store)
    seen = Recorder()
    async with connect("memory://") as broker:
        consumers = [
            broker.consumer(
                "orders", group=own("two"), handler=seen, concurrency=4, middleware=[deduplicate(store)]
            )
            for _ in range(2)
        ]
        for consumer in consumers:
            await consumer.start()
        await broker.producer().publish_batch(copies(3, *(str(number) for number in range(20))))

        async def empty() -> bool:
            return await broker.lag("orders", group=own("two")) == 0

        await eventually(empty, 30, "all is acknowledged")
    assert sorted(seen.values) == sorted(str(number).encode() for number in range(20))


async def test_a_request_that_was_handled_before_gets_no_second_answer() -> None:
    """What its answer was is not known any more; an empty one would be taken for it."""
    calls = 0

    async def answer(_: Message) -> str:
        nonlocal calls
        calls += 1
        return "the answer"

    async with connect("memory://") as broker:
        consumer = broker.consumer(
            "orders", group="g", handler=answer, middleware=[deduplicate(MemoryStore())]
        )
        async with consumer:
            asked = Message("orders", b"", id="1")
            assert await broker.request(asked, reply=str, timeout=20) == "the answer"
            with pytest.raises(TimeoutError):
                await broker.request(asked, reply=str, timeout=0.3)
            await eventually(lambda: consumer.handled == 2, 20, "it is acknowledged all the same")
    assert calls == 1


async def test_each_group_has_marks_of_its_own() -> None:
    store, first, second = MemoryStore(), Recorder(), Recorder()
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group="a", handler=first, middleware=[deduplicate(store)]),
        broker.consumer("orders", group="b", handler=second, middleware=[deduplicate(store)]),
    ):
        await broker.producer().publish_batch(copies(1, "1"))
        await first.until_done(1, 20)
        await second.until_done(1, 20)


async def test_one_object_is_of_one_group() -> None:
    once = deduplicate(MemoryStore())
    async with connect("memory://") as broker:
        await broker.consumer("orders", group="a", handler=Recorder(), middleware=[once]).start()
        with pytest.raises(ConfigError, match="of one group"):
            await broker.consumer("orders", group="b", handler=Recorder(), middleware=[once]).start()


@pytest.mark.parametrize("store", [None, 5, MemoryStore, "redis://"], ids=repr)
def test_what_is_no_store_is_said(store: Any) -> None:
    with pytest.raises(ConfigError, match="deduplicate keeps its marks in"):
        deduplicate(store)


def test_durations_are_checked() -> None:
    assert isinstance(MemoryStore(), Marks)
    for said in ({"window": 0}, {"lease": 0}, {"window": -1}, {"lease": "5"}):
        with pytest.raises(ConfigError, match=r"window|lease"):
            deduplicate(MemoryStore(), **said)
