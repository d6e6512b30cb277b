"""Requests, beyond what every broker is seen to do."""

import asyncio
import gc
import logging
import os
import pickle
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.engine.scenario import turns, until, virtual
from things_kit import (
    DISCARD,
    Batch,
    Broker,
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    DecodeError,
    Message,
    NobodyListens,
    Reject,
    RemoteError,
    RetryPolicy,
    Topic,
    connect,
)
from things_kit.engine.answers import misses_deadline
from things_kit.engine.looking import topics_of
from things_kit.engine.naming import REPLIES, inbox_expired
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.stub import StubDriver, broker_of

REQUESTS = int(os.environ.get("REQUESTS", "5000"))
"""How many one test asks; `REQUESTS=100000` looks for slower leaks."""

NOISE = 8000
"""Blocks of memory by which a process that stands still differs from itself."""


class Order(msgspec.Struct):
    id: str


class Invoice(msgspec.Struct):
    order: str


orders = Topic("orders", Order, reply=Invoice)
invoices = Topic("invoices", Invoice)


async def bill(order: Order) -> Invoice:
    return Invoice(order.id)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with connect("memory://") as broker:
        yield broker


async def test_the_contract_says_what_comes_back(broker: Broker) -> None:
    async with broker.consumer(orders, group="g", handler=bill):
        assert await broker.request(orders, Order("o-1"), timeout=20) == Invoice("o-1")
        raw = await broker.request(orders, Order("o-1"), reply=Message, timeout=20)
        assert raw.value == b'{"order":"o-1"}'


async def test_a_thousand_at_once(broker: Broker) -> None:
    async with broker.consumer(orders, group="g", handler=bill, concurrency=16):
        asked = [Order(f"o-{number}") for number in range(1000)]
        got = await asyncio.gather(*(broker.request(orders, order, timeout=20) for order in asked))
    assert got == [Invoice(order.id) for order in asked]


async def test_requests_that_end_badly_leave_nothing(broker: Broker) -> None:
    await broker.declare("quiet", groups=["g"])
    async with broker.consumer(orders, group="g", handler=bill):
        await broker.request(orders, Order("first"), timeout=20)
        before = asyncio.all_tasks()
        ask = [broker.request(orders, Order("o"), timeout=20) for _ in range(500)]
        ask += [broker.request(Message("quiet", b""), timeout=0.05) for _ in range(500)]
        cancelled = [asyncio.ensure_future(broker.request(Message("quiet", b""))) for _ in range(500)]
        results = await asyncio.gather(*ask, return_exceptions=True)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await eventually(lambda: asyncio.all_tasks() <= before, 20, "all tasks have ended")

    assert [type(each) for each in results[499:501]] == [Invoice, TimeoutError]
    inbox = broker._requests._inbox
    assert inbox is not None
    assert inbox._waiting == {}


async def test_who_asks_for_long_grows_by_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "things_kit")  # what pytest keeps of the log is no leak

    async def discard(_: list[Message]) -> None: ...

    async def refuse(_: Message) -> None:
        raise Reject("no")

    async def ask_a_thousand(broker: Broker) -> None:
        quiet = [Message("quiet", b"") for _ in range(200)]
        slow = [broker.request(each, timeout=0.02) for each in quiet]
        refused = [broker.request(Message("refused", b""), timeout=20) for _ in range(200)]
        answered = [broker.request(orders, Order("o"), timeout=20) for _ in range(400)]
        cancelled = [asyncio.ensure_future(broker.request(each)) for each in quiet]
        results = await asyncio.gather(*slow, *refused, *answered, return_exceptions=True)
        for task in cancelled:
            task.cancel()
        results += await asyncio.gather(*cancelled, return_exceptions=True)
        ended = Counter(type(each) for each in results)
        assert ended == {TimeoutError: 200, RemoteError: 200, Invoice: 400, asyncio.CancelledError: 200}

    async with (
        connect("memory://?retain=0") as broker,
        broker.consumer(orders, group="g", handler=bill, concurrency=16),
        broker.consumer("quiet", group="g", handler=discard, batch=Batch(size=100)),
        broker.consumer("refused", group="g", handler=refuse, dead_letter=DISCARD),
    ):
        await broker.request(orders, Order("first"), timeout=20)
        blocks, tasks = list[int](), asyncio.all_tasks()
        for _ in range(1 + REQUESTS // 1000):
            await ask_a_thousand(broker)
            await eventually(lambda: asyncio.all_tasks() <= tasks, 20, "all is settled")
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[0] < NOISE + REQUESTS / 50, f"it grew: {blocks}"


async def test_an_empty_reply_is_none_where_the_type_allows_it(broker: Broker) -> None:
    async def nothing(_: Message) -> None:
        return None

    async with broker.consumer("orders", group="g", handler=nothing):
        ask: Any = broker.request
        assert await ask(Message("orders", b""), reply=Invoice | None, timeout=20) is None
        with pytest.raises(DecodeError, match="the reply is empty, not Invoice"):
            await broker.request(Message("orders", b""), reply=Invoice, timeout=20)


async def test_a_whole_message_can_be_the_reply(broker: Broker) -> None:
    async def answer(_: Message) -> Message:
        return Message("ignored", b"v", headers={"a": "b", "error-type": "X", "reply-to": "elsewhere"})

    async with broker.consumer("orders", group="g", handler=answer):
        reply = await broker.request(Message("orders", b""), timeout=20)
    assert (reply.value, reply.headers["a"]) == (b"v", "b")
    assert not {"error-type", "reply-to"} & reply.headers.keys()


@pytest.mark.parametrize("value", [object(), {1: object()}, "\ud800"], ids=["object", "inside", "surrogate"])
async def test_what_no_reply_can_carry_is_rejected(broker: Broker, value: object) -> None:
    async def answer(_: Message) -> object:
        return value

    async with broker.consumer("orders", group="g", handler=answer):
        with pytest.raises(RemoteError, match="returned what no reply can carry"):
            await broker.request(Message("orders", b""), timeout=20)


async def test_a_reply_that_is_too_large_is_rejected() -> None:
    async def answer(_: Message) -> bytes:
        return b"x" * 5000

    async with (
        connect("memory://?max_message_bytes=4000") as broker,
        broker.consumer("orders", group="g", handler=answer),
    ):
        with pytest.raises(RemoteError, match="its reply was refused"):
            await broker.request(Message("orders", b""), timeout=20)


async def test_with_publish_the_result_is_published_and_replied(broker: Broker) -> None:
    await broker.declare(invoices, groups=["seen"])
    async with broker.consumer(orders, group="g", handler=bill, publish=invoices):
        assert await broker.request(orders, Order("o-1"), timeout=20) == Invoice("o-1")
        assert await broker.lag(invoices, group="seen") == 1


async def test_the_router_answers_too(broker: Broker) -> None:
    from things_kit import MessageRouter  # noqa: PLC0415

    router = MessageRouter(by="type", default=lambda message: message.value.decode())

    @router.on("double")
    async def double(value: int) -> int:
        return 2 * value

    async with broker.consumer("sums", group="g", handler=router):
        asked = Message("sums", b"21", headers={"type": "double"})
        assert await broker.request(asked, reply=int, timeout=20) == 42
        assert await broker.request(Message("sums", b"other"), reply=str, timeout=20) == "other"


async def test_middleware_is_around_the_answer_and_sees_no_more_than_ever(broker: Broker) -> None:
    seen: list[object] = []

    def note(handle: Any) -> Any:
        async def noted(message: Message) -> None:
            seen.append(await handle(message))

        return noted

    async with broker.consumer(orders, group="g", handler=bill, middleware=[note]):
        assert await broker.request(orders, Order("o-1"), timeout=20) == Invoice("o-1")
    assert seen == [None]


async def test_a_handler_of_batches_answers_nobody(broker: Broker) -> None:
    async def handle(_: list[Order]) -> None: ...

    with pytest.raises(ConfigError, match="a handler of batches answers nobody"):
        broker.consumer(orders, group="g", handler=handle, batch=Batch(size=2))


@virtual(wall_clock=True)
async def test_what_is_kept_for_ever_lets_who_asked_wait() -> None:
    attempts: list[int] = []

    async def fail(message: Message) -> None:
        attempts.append(message.attempt)
        raise ValueError("down")

    quick = RetryPolicy(attempts=2, first=0.01, limit=0.02, jitter=0.0)
    async with (
        connect("memory://") as broker,
        broker.consumer("orders", group="g", handler=fail, dead_letter=None, retry=quick) as consumer,
    ):
        with pytest.raises(TimeoutError):
            await broker.request(Message("orders", b""), timeout=0.3)
        await until(lambda: consumer.expired == 1)
    assert len(attempts) > 2


async def test_a_request_that_nobody_could_get_is_refused_at_once(broker: Broker) -> None:
    refusing = broker.transmission.driver

    async def send(messages: Any) -> list[Exception | None]:
        return [NobodyListens("nobody") for _ in messages]

    refusing.send = send  # type: ignore[method-assign]
    with pytest.raises(NobodyListens):
        await broker.request(Message("orders", b""), timeout=20)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no route to amqp://shop:sesame@rabbit:5672/", "no route to amqp://…@rabbit:5672/"),
        ("x" * 200_000, "x" * 1024),
        ("x" * 1000 + " amqp://shop:sesame-sesame-sesame@rabbit", "x" * 1000 + " amqp://…@rabbit"),
    ],
)
async def test_who_asks_is_told_no_secret_and_no_200_kib(broker: Broker, said: str, told: str) -> None:
    async def fail(message: Message) -> None:
        raise Reject(said)

    async with broker.consumer("orders", group="g", handler=fail):
        with pytest.raises(RemoteError) as caught:
            await broker.request(Message("orders", b""), timeout=20)
    assert caught.value.error == told


async def test_an_answer_for_who_has_gone_holds_up_nobody(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "things_kit.consumer")
    gone = {"reply-to": f"{REPLIES}0-gone", "correlation-id": "1"}
    handled: list[bytes] = []

    async def handle(message: Message) -> str:
        handled.append(message.value)
        return "x"

    remove = broker.transmission.driver.send

    async def send(messages: Any) -> Any:
        if messages[0].topic.startswith(REPLIES):
            return [NobodyListens("gone") for _ in messages]
        return await remove(messages)

    broker.transmission.driver.send = send  # type: ignore[method-assign]
    async with broker.consumer("orders", group="g", handler=handle, drain_timeout=0.1):
        producer = broker.producer()
        await producer.publish(Message("orders", b"1", key=b"k", headers=gone))
        await producer.publish(Message("orders", b"2", key=b"k"))
        await eventually(lambda: handled == [b"1", b"2"], 20, "both are handled")
        await eventually(lambda: "is not there any more" in caplog.text, 20, "it is said that nobody waits")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5", timedelta(0)], ids=repr)
async def test_a_timeout_that_is_none_is_refused(broker: Broker, timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        await broker.request(Message("orders", b""), timeout=timeout)


async def test_what_is_no_message_is_refused(broker: Broker) -> None:
    ask: Any = broker.request
    with pytest.raises(TypeError, match="request takes a Message or a Topic, not bytes"):
        await ask(b"orders", timeout=20)
    with pytest.raises(TypeError, match="needs a payload"):
        await ask(orders, timeout=20)
    with pytest.raises(TypeError, match="request takes key= for a Topic alone"):
        await ask(Message("orders", b""), key="k", timeout=20)
    with pytest.raises(TypeError, match="request has no argument 'after'"):
        await ask(Message("orders", b""), after=60, timeout=20)


@virtual(wall_clock=True)
async def test_an_inbox_that_is_being_made_when_its_broker_closes_is_removed() -> None:
    """What has been sent to a server is done there, whoever is cancelled meanwhile."""
    begun = asyncio.Event()
    there: list[asyncio.Future[None]] = []
    async with connect("memory://shop") as looking, connect("memory://shop") as asking:
        driver: Any = asking.transmission.driver
        declare = driver.declare

        async def at_the_server(topic: str, groups: Any) -> None:
            await asyncio.sleep(0.02)
            await declare(topic, groups)

        async def slow(topic: str, groups: Any) -> None:
            begun.set()
            there.append(asyncio.ensure_future(at_the_server(topic, groups)))
            await asyncio.shield(there[-1])

        driver.declare = slow
        request = asyncio.create_task(asking.request(Message("orders", b""), timeout=20))
        await begun.wait()
        await asking.close()
        with pytest.raises(ClosedError):
            await request
        await asyncio.gather(*there)
        found: Any = looking.transmission.driver
        assert not [name for name in await found.topics() if REPLIES in name]


async def test_a_broker_that_is_closed_asks_nobody() -> None:
    broker = connect("memory://")
    with pytest.raises(ClosedError, match="not open"):
        await broker.request(Message("orders", b""), timeout=20)
    async with broker:
        pass
    with pytest.raises(ClosedError, match="closed"):
        await broker.request(Message("orders", b""), timeout=20)


async def test_a_handler_that_drains_may_still_ask() -> None:
    """Closing ends what others ask for only after the handlers have had their time."""
    began, go_on = asyncio.Event(), asyncio.Event()
    answers: list[str] = []
    async with connect("memory://drain") as server, connect("memory://drain") as broker:

        async def echo(message: Message) -> str:
            return message.value.decode()

        async def forward(message: Message) -> None:
            began.set()
            await go_on.wait()
            answers.append(await broker.request(message.replace(topic="echo"), reply=str, timeout=20))

        async with server.consumer("echo", group="g", handler=echo):
            await broker.consumer("orders", group="g", handler=forward).start()
            await server.producer().publish(Message("orders", b"hello"))
            await began.wait()
            closing = asyncio.create_task(broker.close())
            go_on.set()
            await closing
    assert answers == ["hello"]


async def test_inboxes_of_the_dead_are_removed_by_the_next_who_asks(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    dead, young = f"{REPLIES}5f000000-dead", f"{REPLIES}ffffffff-young"
    async with connect(url) as broker, broker.consumer(orders, group="g", handler=bill):
        await broker.declare(dead)
        await broker.declare(young)
        await broker.request(orders, Order("o-1"), timeout=20)
        driver: Any = broker.transmission.driver

        async def swept() -> bool:
            return dead not in await driver.topics()

        await eventually(swept, 10, "the old inbox is gone")
        assert young in await driver.topics()


@pytest.mark.parametrize(
    ("name", "expired"),
    [
        (f"{REPLIES}10-a", True),
        (f"{REPLIES}ffffffff-a", False),
        ("orders", False),
        (f"{REPLIES}xyz-a", False),
    ],
)
def test_an_inbox_says_until_when_it_is_used(name: str, expired: bool) -> None:
    assert inbox_expired(name, 1_800_000_000.0) is expired


@pytest.mark.parametrize("prefix", ["", "test-"])
async def test_an_inbox_is_not_among_the_topics(tmp_path: Any, prefix: str) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    async with (
        connect(f"{url}?topic_prefix={prefix}") as asking,
        connect(url) as looking,
        asking.consumer(orders, group="g", handler=bill),
    ):
        await asking.request(orders, Order("o-1"), timeout=20)
        found = await topics_of(looking)
    assert f"{prefix}orders" in found
    assert not [name for name in found if REPLIES in name]


@pytest.mark.parametrize(
    ("deadline", "missed"),
    [
        ((datetime.now(UTC) - timedelta(seconds=5)).isoformat(), True),
        ((datetime.now(UTC) + timedelta(hours=5)).isoformat(), False),
        ("2020-01-01T00:00:00", True),
        ("tomorrow", False),
        (None, False),
    ],
    ids=["passed", "to come", "without a zone", "no time", "none"],
)
def test_a_deadline_is_a_time_in_rfc_3339(deadline: str | None, missed: bool) -> None:
    headers = {} if deadline is None else {"deadline": deadline}
    assert misses_deadline(Message("orders", b"", headers=headers)) is missed


def test_a_remote_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(RemoteError("ValueError", "no")))
    assert (error.error_type, error.error, str(error)) == ("ValueError", "no", "ValueError: no")


async def test_a_deadline_alone_means_nothing(broker: Broker) -> None:
    handled = asyncio.Event()

    async def handle(_: Message) -> None:
        handled.set()

    async with broker.consumer("orders", group="g", handler=handle, dead_letter=DISCARD):
        await broker.producer().publish(Message("orders", b"", headers={"deadline": "2020-01-01T00:00:00Z"}))
        await asyncio.wait_for(handled.wait(), 20)


@virtual
async def test_requests_to_a_broker_that_is_away_do_not_wait_for_one_another() -> None:
    driver = StubDriver()
    async with broker_of(driver, "?publish_timeout=5") as broker:
        driver.hold("declare")
        began = asyncio.get_running_loop().time()
        asked = [broker.request(Message("t", b""), timeout=5) for _ in range(10)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(result) for result in results} == {BrokerUnavailable}
        assert asyncio.get_running_loop().time() - began < 6


@virtual
async def test_a_cancelled_first_request_leaves_the_inbox_to_those_who_wait_for_it() -> None:
    async def echo(message: Message) -> bytes:
        return message.value

    driver = StubDriver()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=echo):
        go_on = driver.hold("declare")
        first, second = (asyncio.create_task(broker.request(Message("t", b"5"), timeout=5)) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        go_on.set()
        assert (await second).value == b"5"
        assert first.cancelled()
        assert sum(topic.startswith(REPLIES) for topic in driver.topics) == 1
