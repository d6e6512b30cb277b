"""Transforms, each and in pairs."""

import asyncio
import gzip
import logging
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine.scenario import virtual
from things_kit import (
    Broker,
    BrokerUnavailable,
    ConfigError,
    DecodeError,
    Message,
    MessageTooLarge,
    PublishError,
    Topic,
    connect,
)
from things_kit.engine.transforming import apply, undoing
from things_kit.middleware import Store, claim_check, compress, encrypt
from things_kit.middleware.folder_store import FolderStore
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually

KEY, OLD = b"k" * 32, b"o" * 32
TEXT = b"some text " * 500


async def there(transforms: Any, message: Message) -> Message:
    return await apply(transforms, message, 5)


async def back(transforms: Any, message: Message) -> Message:
    undo = undoing(transforms, {})
    assert undo is not None
    return await undo(message)


def made(value: bytes = TEXT, **fields: Any) -> Message:
    return Message("orders", value, id="m-1", **fields)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- compress


@pytest.mark.parametrize("algorithm", ["zstd", "gzip"])
async def test_values_get_smaller_and_come_back(algorithm: Any) -> None:
    sent = await there([compress(algorithm)], made())
    assert len(sent.value) < len(TEXT) / 5
    assert sent.headers == {"content-encoding": algorithm}
    assert await back([compress("gzip")], sent) == made()  # whichever it writes, it reads both


@pytest.mark.parametrize("value", [b"short", os.urandom(5000)], ids=["small", "random"])
async def test_what_would_not_get_smaller_is_left(value: bytes) -> None:
    assert await there([compress()], made(value)) == made(value)


@pytest.mark.parametrize("algorithm", ["zstd", "gzip"])
async def test_what_unpacks_to_more_than_the_limit_is_a_decode_error(algorithm: Any) -> None:
    bomb = await there([compress(algorithm)], made(b"\0" * 1_000_000))
    assert (await back([compress(limit=1_000_000)], bomb)).value == b"\0" * 1_000_000
    with pytest.raises(DecodeError, match="unpacks to more than 999999 bytes"):
        await back([compress(limit=999_999)], bomb)


@pytest.mark.parametrize(
    "value",
    [b"", b"no gzip at all", gzip.compress(TEXT)[:-9], gzip.compress(TEXT) + b"x"],
    ids=["nothing", "something else", "cut off", "followed by more"],
)
async def test_what_is_no_gzip_is_a_decode_error(value: bytes) -> None:
    with pytest.raises(DecodeError):
        await back([compress()], made(value, headers={"content-encoding": "gzip"}))


async def test_several_members_are_one_value() -> None:
    value = gzip.compress(b"one ") + gzip.compress(b"two")
    assert (await back([compress()], made(value, headers={"Content-Encoding": "GZIP"}))).value == b"one two"


# --- encrypt


async def test_a_value_is_sealed_and_opened() -> None:
    sent = await there([encrypt({"a": KEY})], made(key=b"k", headers={"h": "v"}))
    assert TEXT[:10] not in sent.value
    assert sent.headers == {"h": "v", "content-encoding": "aes-gcm", "encrypted-topic": "orders"}
    assert await back([encrypt({"a": KEY})], sent) == made(key=b"k", headers={"h": "v"})


async def test_a_key_is_rotated_without_a_stop() -> None:
    sent = await there([encrypt({"old": OLD})], made())
    assert (await back([encrypt({"new": KEY, "old": OLD})], sent)).value == TEXT
    with pytest.raises(DecodeError, match=r"a key that is not here: b'old'"):
        await back([encrypt({"new": KEY})], sent)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "m-2"},
        {"value": b"\x01a" + b"0" * 60},
        {"value": b""},
        {"value": b"\xff"},
    ],
    ids=["another id", "another value", "nothing", "cut off"],
)
async def test_what_was_tampered_with_is_a_decode_error(change: Any) -> None:
    sent = await there([encrypt({"a": KEY})], made())
    with pytest.raises(DecodeError):
        await back([encrypt({"a": KEY})], sent.replace(**change))


async def test_a_value_belongs_to_its_topic() -> None:
    sent = await there([encrypt({"a": KEY})], made())
    moved = sent.replace(topic="salaries")
    with pytest.raises(DecodeError, match=r"for the topic 'orders', not 'salaries'"):
        await back([encrypt({"a": KEY})], moved)
    lied = moved.replace(headers={**moved.headers, "encrypted-topic": "salaries"})
    with pytest.raises(DecodeError, match="cannot be decrypted"):
        await back([encrypt({"a": KEY})], lied)
    for orders in ("orders", Topic("orders", bytes)):
        assert (await back([encrypt({"a": KEY}, topics=[orders])], moved)).value == TEXT
    dead = moved.replace(headers={**moved.headers, "original-topic": "orders"})
    assert (await back([encrypt({"a": KEY})], dead)).value == TEXT


async def test_plain_values_can_be_refused() -> None:
    assert await back([encrypt({"a": KEY})], made()) == made()
    with pytest.raises(DecodeError, match="was not made by encrypt, which is required"):
        await back([encrypt({"a": KEY}, required=True)], made())


def test_no_key_is_ever_shown() -> None:
    assert repr(encrypt({"a": KEY})) == "encrypt(a)"
    with pytest.raises(ConfigError) as wrong:
        encrypt({"a": b"too short"})
    assert "too short" not in str(wrong.value)


@pytest.mark.parametrize("keys", [{}, None, {"": KEY}, {"a": "k" * 32}, {"a": KEY[:16]}, {3: KEY}])
def test_wrong_keys_are_said(keys: Any) -> None:
    with pytest.raises(ConfigError):
        encrypt(keys)


@pytest.mark.parametrize(
    "said",
    [
        {"topics": "orders"},
        {"topics": Topic("orders", bytes)},
        {"topics": [5]},
        {"topics": 5},
        {"required": "no"},
    ],
)
def test_what_encrypt_does_not_understand_is_said(said: Any) -> None:
    """It would accept what it should not, or nothing that it should."""
    with pytest.raises(ConfigError, match=r"encrypt\("):
        encrypt({"a": KEY}, **said)


# --- claim check


class Away:
    """A store that does not answer, until it does."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.away = True
        self.asked = 0

    async def put(self, key: str, value: bytes, /) -> None:
        self.asked += 1
        if self.away:
            raise OSError("the store is away")
        self.kept[key] = value

    async def get(self, key: str, /) -> bytes | None:
        self.asked += 1
        if self.away:
            raise OSError("the store is away")
        return self.kept.get(key)

    async def sweep(self, before: datetime, /) -> None: ...


async def test_a_large_value_is_kept_elsewhere(tmp_path: Path) -> None:
    sent = await there([claim_check(tmp_path, above=100)], made())
    assert len(sent.value) < 250
    assert sent.headers == {"content-encoding": "claim-check"}
    assert await back([claim_check(tmp_path)], sent) == made()
    assert await there([claim_check(tmp_path, above=100)], made(b"small")) == made(b"small")


async def test_a_value_that_has_gone_or_changed_is_a_decode_error(tmp_path: Path) -> None:
    sent = await there([claim_check(tmp_path, above=100)], made())
    (file,) = files_in(tmp_path)
    file.write_bytes(b"another")
    with pytest.raises(DecodeError, match="not the one that was put there"):
        await back([claim_check(tmp_path)], sent)
    file.unlink()
    with pytest.raises(DecodeError, match="has gone"):
        await back([claim_check(tmp_path)], sent)


@pytest.mark.parametrize(
    "value",
    [
        b"{}",
        b"x",
        b'{"key": "../../etc/passwd", "size": 1, "sha256": ""}',
        b'{"key": "/etc/passwd", "size": 1, "sha256": ""}',
    ],
)
async def test_a_claim_names_nothing_but_values_of_the_store(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="claim"):
        await back([claim_check(tmp_path)], made(value, headers={"content-encoding": "claim-check"}))


async def test_claims_go_by_age(tmp_path: Path) -> None:
    old, young = (
        f"{datetime.now(UTC) - timedelta(days=40):%Y-%m-%d}",
        f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%d}",
    )
    store = FolderStore(tmp_path)
    for day in (old, young):
        await store.put(f"{day}/{'0' * 32}", b"x")
    await there([claim_check(tmp_path, above=10)], made())
    await eventually(lambda: not (tmp_path / old).exists(), 20, "the old day is gone")
    assert (tmp_path / young).exists()


@virtual
async def test_nothing_is_published_before_its_value_is_in_the_store() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Away):
        away = False

        async def put(self, key: str, value: bytes, /) -> None:
            began.set()
            await go_on.wait()
            self.kept[key] = value

    async with connect("memory://") as broker:
        await broker.declare("orders", ["g"])
        producer = broker.producer(transforms=[claim_check(Slow(), above=10)])
        publishing = asyncio.create_task(producer.publish(made()))
        await began.wait()
        assert await broker.lag("orders", group="g") == 0
        go_on.set()
        await publishing
        assert await broker.lag("orders", group="g") == 1


@virtual
async def test_a_store_that_is_away_is_an_outage_for_who_publishes() -> None:
    store = Away()
    async with connect("memory://?publish_timeout=0.3") as broker:
        producer = broker.producer(transforms=[claim_check(store, above=10)])
        with pytest.raises(BrokerUnavailable, match=r"claim_check failed for 0\.3 s: the store is away"):
            await producer.publish(made())
        with pytest.raises(PublishError) as failed:
            await producer.publish_batch([made(b"1"), made(), made(b"2")])
        assert sorted(failed.value.failures) == [1, 2]
        assert store.asked > 2


@virtual
async def test_a_store_that_is_away_is_waited_for_by_who_consumes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    store = Away()
    store.away = False
    async with connect("memory://") as broker:
        recorder = Recorder()
        transforms = [claim_check(store, above=10)]
        await broker.producer(transforms=transforms).publish_batch([made(key=b"k"), made(b"after", key=b"k")])
        store.away = True
        consumer = broker.consumer("orders", group="g", handler=recorder, transforms=transforms)
        async with consumer:
            await eventually(lambda: store.asked > 3, 10, "it asks again")
            assert recorder.began == []
            store.away = False
            seen = await recorder.until_done(2, 10)
    assert [(each.value, each.attempt) for each in seen] == [(TEXT, 1), (b"after", 1)]


def test_what_would_lose_every_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 0 seconds"):
        claim_check(tmp_path, keep=0)
    with pytest.raises(ConfigError, match="would unpack nothing"):
        compress("gzip", limit=0)


def test_a_store_is_checked() -> None:
    assert isinstance(Away(), Store)
    for wrong in (None, 5, "http://x", "s3://", "s3://b?nonsense=1", Away):
        with pytest.raises(ConfigError):
            claim_check(wrong)  # type: ignore[arg-type]


# --- together


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with connect("memory://") as broker:
        yield broker


async def test_a_users_own_encoding_stays_in_front() -> None:
    sent = await there([compress()], made(headers={"content-encoding": "br"}))
    assert sent.headers["content-encoding"] == "br, zstd"
    assert (await back([compress()], sent)).headers == {"content-encoding": "br"}


@pytest.mark.parametrize(
    ("header", "token"),
    [("br", "br"), ("aes-gcm", "aes-gcm"), ("aes-gcm, gzip", "aes-gcm"), ("gzip, br", "br")],
)
async def test_an_encoding_that_nobody_undoes_is_a_decode_error(header: str, token: str) -> None:
    message = made(gzip.compress(b"x"), headers={"content-encoding": header})
    with pytest.raises(DecodeError, match=f"nothing here undoes the content-encoding '{token}'"):
        await back([compress()], message)


async def test_the_size_that_counts_is_that_of_what_is_sent() -> None:
    async with connect("memory://?max_message_bytes=3000") as broker:
        await broker.producer(transforms=[compress()]).publish(made())
        with pytest.raises(MessageTooLarge):
            await broker.producer(transforms=[encrypt({"a": KEY})]).publish(made(b"x" * 2990))


async def test_messages_of_a_key_keep_their_order_whatever_takes_long(broker: Broker) -> None:
    class Slow(Away):
        async def put(self, key: str, value: bytes, /) -> None:
            await asyncio.sleep(0.05 if len(value) > 1000 else 0)
            self.kept[key] = value

    store = Slow()
    store.away = False
    chain = [claim_check(store, above=10)]
    producer, recorder = broker.producer(transforms=chain), Recorder()
    values = [b"x" * 5000, b"y" * 20, b"z"]
    async with broker.consumer("orders", group="g", handler=recorder, transforms=chain):
        await asyncio.gather(*(producer.publish(Message("orders", value, key=b"k")) for value in values))
        seen = await recorder.until_done(3, 20)
    assert [message.value for message in seen] == values


async def test_a_message_that_is_refused_is_named_and_the_rest_is_sent(broker: Broker) -> None:
    producer = broker.producer(transforms=[compress()])
    with pytest.raises(PublishError) as failed:
        await producer.publish_batch([made(), Message("orders", "text"), made()])  # type: ignore[arg-type]
    assert list(failed.value.failures) == [1]


class Order(msgspec.Struct):
    id: str


async def test_a_topics_messages_can_be_published_by_anybody(broker: Broker) -> None:
    orders = Topic("orders", Order, transforms=[encrypt({"a": KEY}, required=True)])
    seen: list[Order] = []

    async def handle(order: Order) -> None:
        seen.append(order)

    async with broker.consumer(orders, group="g", handler=handle):
        await broker.producer().publish(orders, Order("o-1"))
        await broker.producer().publish_batch(orders.messages([Order("o-2")]))
        await eventually(lambda: len(seen) == 2, 20, "both are handled")
    assert seen == [Order("o-1"), Order("o-2")]
    assert orders.renamed("other").transforms == orders.transforms


def test_what_has_to_wait_is_no_part_of_a_contract(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use claim_check, which has to wait for a store"):
        Topic("orders", Order, transforms=[claim_check(tmp_path)])


@pytest.mark.parametrize("transforms", [compress, [compress], [5], "gzip", 7], ids=repr)
async def test_what_is_no_transform_is_said(broker: Broker, transforms: Any) -> None:
    for make in (
        lambda: broker.producer(transforms=transforms),
        lambda: broker.consumer("orders", group="g", handler=Recorder(), transforms=transforms),
        lambda: Topic("orders", Order, transforms=transforms),
    ):
        with pytest.raises(ConfigError, match="transform"):
            make()


def test_publishing_without_a_loop_transforms_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    with connect(url).blocking(transforms=[compress("gzip")]) as producer:
        producer.publish(made())

    async def read() -> list[Message]:
        recorder = Recorder()
        async with connect(url) as broker, broker.consumer("orders", group="g", handler=recorder):
            return await recorder.until_done(1, 10)

    (message,) = asyncio.run(read())
    assert gzip.decompress(message.value) == TEXT
