"""What a transaction publishes for later waits from its commit on, and comes when it is due."""

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.patterns.outbox.sessions import POSTGRES, SQLITE
from things_kit import ConfigError, Message, PublishError, Topic, connect
from things_kit.engine.broker import Broker
from things_kit.patterns import Outbox

orders = Topic("orders", dict[str, int], headers={"source": "shop"})
KINDS = [*(("sqlite", kind) for kind in SQLITE), *(("postgresql", kind) for kind in POSTGRES)]
ONE_OF_EACH = [("sqlite", "aiosqlite"), ("postgresql", "asyncpg")]


@pytest.fixture
async def broker(database: str) -> AsyncIterator[Broker]:
    async with connect(database) as broker:
        await broker.declare("orders", ["g"])
        yield broker


@pytest.fixture
def opened(database: str, kind: str) -> Any:
    opening = (SQLITE if database.startswith("sqlite") else POSTGRES)[kind]
    return lambda: opening(database, Outbox())


async def values(broker: Broker, count: int) -> list[bytes]:
    """The values of so many messages, in the order in which they come."""
    got: list[bytes] = []
    enough = asyncio.Event()

    async def handle(message: Message) -> None:
        got.append(message.value)
        if len(got) == count:
            enough.set()

    async with (
        broker.consumer("orders", group="g", handler=handle, ordering="partition"),
        asyncio.timeout(20),
    ):
        await enough.wait()
    return got


@pytest.mark.parametrize(("database", "kind"), KINDS, indirect=["database"])
async def test_what_is_for_later_waits_from_the_commit_on(broker: Broker, opened: Any) -> None:
    noon = datetime(2200, 1, 1, 12, tzinfo=UTC)
    async with opened() as given:
        await given.publish(Message("orders", b"rolled back"), at=noon)
        await given.rollback()
    assert await broker.schedules("orders") == []
    later = datetime.now(UTC) + timedelta(seconds=3600)
    async with opened() as given:
        await given.publish(Message("orders", b"replaced"), after=1800, schedule_id="r")
        await given.publish(
            orders, {"id": 1}, key="k", headers={"more": "€"}, id="o-1", at=noon, schedule_id="r"
        )
        with pytest.raises(PublishError):
            await given.publish_batch([Message("orders", b"good"), Message("", b"bad")], after=3600)
        await given.publish_batch([Message("orders", b"1"), Message("orders", b"2")], after=3600)
        await given.commit()
    first, second, third = await broker.schedules("orders")
    assert (first.message.value, second.message.value) == (b"1", b"2")
    assert first.schedule_id is None
    assert first.due == second.due
    assert later <= first.due < later + timedelta(seconds=60)
    assert (third.schedule_id, third.due) == ("r", noon)
    assert (third.message.value, third.message.key, third.message.id) == (b'{"id":1}', b"k", "o-1")
    assert third.message.headers["more"] == "€"
    assert third.message.timestamp
    assert await broker.lag("orders", "g") == 0
    assert await broker.cancel("orders", "r")


@pytest.mark.parametrize(("database", "kind"), ONE_OF_EACH, indirect=["database"])
async def test_what_is_due_before_its_commit_comes_at_once(broker: Broker, opened: Any) -> None:
    async with opened() as given:
        await given.publish(Message("orders", b"now"), at=datetime(2000, 1, 1, tzinfo=UTC))
        await given.publish(Message("orders", b"soon"), after=0.05, schedule_id="r")
        await asyncio.sleep(0.06)
        await given.commit()
    assert await values(broker, 2) == [b"now", b"soon"]


@pytest.mark.parametrize(("database", "kind"), ONE_OF_EACH[:1], indirect=["database"])
async def test_what_is_due_is_overtaken_by_nothing_that_a_transaction_publishes_then(
    broker: Broker, opened: Any
) -> None:
    async with opened() as given:
        await given.publish(Message("orders", b"was due"), after=0.05)
        await given.commit()
    await asyncio.sleep(0.06)
    async with opened() as given:
        await given.publish(Message("orders", b"published then"))
        await given.publish(Message("orders", b"last"), after=0.001, schedule_id="r")
        await given.commit()
    assert await values(broker, 3) == [b"was due", b"published then", b"last"]


@pytest.mark.parametrize(("database", "kind"), ONE_OF_EACH, indirect=["database"])
async def test_what_is_no_time_is_refused_and_the_transaction_goes_on(broker: Broker, opened: Any) -> None:
    message = Message("orders", b"1")
    moment = datetime(2200, 1, 1, tzinfo=UTC)
    wrong: list[dict[str, Any]] = [
        {"after": 1, "at": moment},
        {"at": moment.replace(tzinfo=None)},
        {"after": math.nan},
        {"after": -1},
        {"schedule_id": "r"},
        {"schedule_id": "", "after": 1},
        {"schedule_id": "a\0b", "after": 1},
        {"schedule_id": "\ud800", "after": 1},
    ]
    async with opened() as given:
        for times in wrong:
            with pytest.raises(ConfigError):
                await given.publish(message, **times)
            if "schedule_id" not in times:
                with pytest.raises(ConfigError):
                    await given.publish_batch([message], **times)
        await given.publish(message)
        await given.commit()
    assert await broker.lag("orders", "g") == 1


@pytest.mark.parametrize(("database", "kind"), ONE_OF_EACH[1:], indirect=["database"])
async def test_what_postgresql_cannot_keep_is_refused_before_it_breaks_the_transaction(
    broker: Broker, opened: Any
) -> None:
    async with opened() as given:
        with pytest.raises(PublishError, match="null character"):
            await given.publish(Message("orders", b"1", id="a\0b"))
        with pytest.raises(PublishError, match="null character") as caught:
            await given.publish_batch([Message("orders", b"1"), Message("orders", b"2", id="\0")])
        assert list(caught.value.failures) == [1]
        await given.publish(Message("orders", b"1"))
        await given.commit()
    assert await broker.lag("orders", "g") == 1
