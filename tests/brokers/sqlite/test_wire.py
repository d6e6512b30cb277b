"""Messages as rows, and back."""

import random
from datetime import UTC, datetime

import pytest

from tests.brokers.sqlite.given import Open, exactly, join, message, take
from things_kit.brokers.sqlite import lending
from things_kit.engine.collected import collect
from things_kit.engine.driver import Release, Subscription
from things_kit.messaging.message import Message


@pytest.mark.parametrize(
    "sent",
    [
        message(b""),
        message(bytes(range(256)) * 20, key=bytes(range(256))),
        message(b"empty key is a key", key=b""),
        message(b"x", headers={"nöt äscii": "日本語 \0 \n \" ' \\ \U0001f600", "": ""}),
        message(b"x", headers={f"h{i}": "v" * 2048 for i in range(30)}),
        Message("t", b"old", timestamp=datetime.min.replace(tzinfo=UTC), id="ïd \0 \"'"),
        Message("t", b"far", timestamp=datetime.max.replace(tzinfo=UTC), id="\n"),
    ],
)
async def test_a_message_arrives_as_it_was_sent(connect: Open, sent: Message) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    assert await broker.send([sent, sent]) == [None, None]
    first, second = await take(await join(broker))
    assert first.message == sent.replace(offset=0)
    assert second.message == sent.replace(offset=1)


async def test_keys_and_headers_of_a_batch_stay_with_their_messages(connect: Open) -> None:
    broker = await connect()
    await broker.declare("t", ["g"])
    chance = random.Random(1)
    sent = [
        message(
            chance.randbytes(chance.randrange(5)),
            chance.choice([None, b"", b"a", b"long key"]),
            headers=chance.choice([{}, {"n": str(number)}]),
        )
        for number in range(1500)
    ]
    assert not any(await broker.send(sent))
    got = await exactly(await join(broker), 1500)
    assert [one.message for one in got] == [each.replace(offset=place) for place, each in enumerate(sent)]


async def test_pages_are_bounded_in_bytes(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "PAGE_BYTES", 250)
    broker = await connect()
    await broker.declare("t", ["g"])
    await broker.send([message(b"x" * size) for size in (100, 100, 100, 1000, 1, 1)])
    receiver = await join(broker)
    sizes = []
    while page := await take(receiver):
        sizes.append([len(one.message.value) for one in page])
        await receiver.settle([], [Release(one) for one in page[1:]])
        await receiver.settle(page[:1], [])
    assert [page[0] for page in sizes] == [100, 100, 100, 1000, 1, 1]
    assert all(sum(page) <= 250 or len(page) == 1 for page in sizes)


@pytest.mark.parametrize(
    "name", ["../../etc", "a/b", "*", "%_", "'; DROP TABLE message; --", "a\nb", "a\0b", "ü", " "]
)
async def test_hostile_names_are_carried(connect: Open, name: str) -> None:
    broker = await connect()
    await broker.declare(name, [name])
    await broker.declare("t", ["g"])
    assert await broker.send([message(b"mine", topic=name)]) == [None]
    receiver = await collect(broker, Subscription(topic=name, group=name))
    (got,) = await take(receiver)
    assert got.message.topic == name
    assert await broker.lag(name, name) == 1
    assert await broker.lag("t", "g") == 0
