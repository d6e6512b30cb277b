"""Messages that are to come later."""

from datetime import UTC, datetime, timedelta

from tests.brokers.postgres.given import NOW, Open, join, message, names, take
from things_kit.engine.driver import Scheduled, UnknownTopic
from things_kit.messaging.message import Message


def at(seconds: float, value: bytes, schedule_id: str | None = None, topic: str = "t") -> Scheduled:
    return Scheduled(
        message(value, b"k", topic, headers={"a": "b"}),
        datetime.now(UTC) + timedelta(seconds=seconds),
        schedule_id,
    )


async def test_it_comes_when_it_is_due_to_whoever_waits(connect: Open) -> None:
    """The one that waits looks by itself every hour; it is told when something will be due."""
    broker, other = await connect(), await connect("&poll=3600")
    await broker.declare("t", ["g"])
    receiver = await join(other)
    await take(receiver)
    assert not any(await broker.schedule([at(1.2, b"third"), at(1.0, b"first"), at(1.0, b"second")]))
    assert await broker.lag("t", "g") == 0
    got: list[str] = []
    while len(got) < 3:
        got += names(await take(receiver, wait=10))
    assert got == ["first", "second", "third"]
    assert await broker.lag("t", "g") == 3


async def test_what_is_past_comes_now(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    assert not any(await broker.schedule([at(-5, b"past", "p")]))
    assert not await broker.cancel("t", "p")
    assert names(await take(await join(broker))) == ["past"]


async def test_the_same_name_replaces_also_within_one_call(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.schedule([at(60, b"1", "s"), at(50, b"2", "s"), at(40, b"other", "o")])
    await broker.schedule([at(70, b"3", "s")])
    assert [(e.schedule_id, e.message.value) for e in await broker.upcoming("t", 10)] == [
        ("o", b"other"),
        ("s", b"3"),
    ]
    assert len(await broker.upcoming("t", 1)) == 1


async def test_what_is_cancelled_never_comes(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.schedule([at(60, b"1", "s")])
    assert await broker.cancel("t", "s")
    assert not await broker.cancel("t", "s")
    assert not await broker.upcoming("t", 10)


async def test_it_is_told_as_it_was_published(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.schedule([at(60, b"1")])
    [entry] = await broker.upcoming("t", 10)
    assert entry.message == Message("t", b"1", b"k", {"a": "b"}, timestamp=NOW, id="id")


async def test_a_topic_that_is_missing_is_said_and_one_that_is_removed_has_nothing(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    unknown, fine = await broker.schedule([at(60, b"1", topic="other"), at(60, b"1")])
    assert isinstance(unknown, UnknownTopic)
    assert fine is None
    await broker.remove("t")
    assert not await broker.upcoming("t", 10)
