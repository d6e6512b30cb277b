"""A large batch far from the server: stored by COPY, while another connection asks which of its topics there are."""

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, join, message, names, take
from things_kit.brokers.postgres import driver
from things_kit.brokers.postgres.connections import Connections
from things_kit.brokers.postgres.driver import MANY
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.messaging.message import Message

pytestmark = pytest.mark.usefixtures("far")

LARGE = [message(b"a%d" % n, b"a") for n in range(MANY)]
EXPECTED = [f"a{n}" for n in range(MANY)]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """However near the server is."""
    monkeypatch.setattr(driver, "FAR", 0.0)


async def test_a_large_batch_is_on_its_way_while_its_topics_are_asked_for(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is far from the server pays for each round trip."""
    fetch, copy = asyncpg.Connection.fetch, asyncpg.Connection.copy_records_to_table
    begun = asyncio.Event()

    async def behind(self: Any, statement: str, *arguments: Any, **options: Any) -> Any:
        if statement.startswith("SELECT name FROM "):
            await begun.wait()
        return await fetch(self, statement, *arguments, **options)

    async def beginning(self: Any, *arguments: Any, **options: Any) -> Any:
        begun.set()
        return await copy(self, *arguments, **options)

    broker = await connect()
    await broker.declare("t", ["g"])
    monkeypatch.setattr(asyncpg.Connection, "fetch", behind)
    monkeypatch.setattr(asyncpg.Connection, "copy_records_to_table", beginning)
    async with asyncio.timeout(20):
        assert not any(await broker.send(LARGE))
    assert names(await take(await join(broker))) == EXPECTED


@pytest.mark.parametrize("options", ["&pool=1", ""], ids=["no other", "another"])
async def test_only_what_has_a_topic_is_stored(connect: Open, options: str) -> None:
    """Also where there is no other connection to ask over."""
    broker = await connect(options)
    await broker.declare("t", ["g"])
    async with asyncio.timeout(20):
        results = await broker.send([*LARGE, message(b"b", topic="nowhere")])
    assert [type(result) for result in results] == [type(None)] * MANY + [UnknownTopic]
    assert names(await take(await join(broker))) == EXPECTED


async def test_many_large_batches_at_once_wait_for_no_connection_that_the_others_hold(connect: Open) -> None:
    broker = await connect("&pool=2")
    topics = [f"t{n}" for n in range(8)]
    for topic in topics:
        await broker.declare(topic, ["g"])

    def batch(topic: str) -> Sequence[Message]:
        return [message(b"a%d" % n, b"a", topic) for n in range(MANY)]

    async with asyncio.timeout(20):
        for results in await asyncio.gather(*(broker.send(batch(topic)) for topic in topics)):
            assert not any(results)


async def test_nothing_is_stored_where_nobody_answers_which_topics_there_are(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The COPY that has begun is given up, so what the engine sends again arrives once."""
    rows, lost = Connections.rows, list[str]()

    async def losing(self: Connections, doing: str, *arguments: Any, **options: Any) -> list[Any]:
        if doing == "publishing" and not lost:
            lost.append(doing)
            raise ConnectionLost("the line is cut")
        return await rows(self, doing, *arguments, **options)

    broker = await connect()
    await broker.declare("t", ["g"])
    monkeypatch.setattr(Connections, "rows", losing)
    with pytest.raises(ConnectionLost):
        await broker.send(LARGE)
    assert not any(await broker.send(LARGE))
    assert names(await take(await join(broker))) == EXPECTED
