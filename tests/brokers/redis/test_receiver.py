"""What is particular to Redis Streams, on a real server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from things_kit import Broker, ConfigError, Message, PublishError, RetryPolicy, connect
from things_kit.brokers.redis import scripts
from things_kit.brokers.redis.driver import RedisDriver
from things_kit.brokers.redis.errors import ERRORS
from things_kit.brokers.redis.keys import CONSUMER, delayed_key, suspects_key
from things_kit.brokers.redis.receiver import RedisReceiver
from things_kit.engine.collected import Collecting, collect
from things_kit.engine.driver import ConnectionLost, Marking, Release, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.patterns.bridge import Bridge
from things_kit.testing.conformance.recorder import Gate, Recorder, failing
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
own_redis = own(RedisServer)

QUICK = RetryPolicy(attempts=3, first=0.02, limit=0.1, jitter=0.0)


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex}"


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[Any]:
    async with Redis(port=redis.port, protocol=3) as client:
        yield client


@pytest.fixture
async def driver(redis: RedisServer) -> AsyncIterator[RedisDriver]:
    driver = RedisDriver.from_url(BrokerURL.parse(redis.url + "?lease=0.3"))
    await driver.open()
    yield driver
    await driver.close()


def marking(receiver: Collecting) -> Marking:
    """The receiver that keeps marks."""
    assert isinstance(receiver.receiver, Marking)
    return receiver.receiver


async def received(receiver: Collecting, count: int, wait: float = 5.0) -> list[Any]:
    """So many deliveries."""
    deliveries: list[Any] = []
    async with asyncio.timeout(10):
        while len(deliveries) < count:
            deliveries += await receiver.receive(count - len(deliveries), wait)
    return deliveries


# --- what others have published


async def test_an_entry_of_any_fields_is_a_message(redis: RedisServer, client: Any, topic: str) -> None:
    entry = await client.xadd(topic, {"type": "order.created", "total": "5"})
    await client.execute_command("XADD", topic, "*", "value", b"\xff", "a", "1", "a", "2", b"b\xff", b"\xfe")
    await client.xadd(topic, {"value": "x", "tk-time": "never", "tk-packed": "[", "tk-id": b"\xff"})
    recorder = Recorder()
    async with connect(redis.url) as broker, broker.consumer(topic, group="g", handler=recorder):
        await recorder.until_done(3, 10)
    fields, plain, odd = recorder.done
    assert fields.value == b'{"type":"order.created","total":"5"}'
    assert fields.headers == {"type": "order.created", "total": "5"}
    assert fields.id == f"{topic}-{entry.decode()}"
    assert fields.timestamp is not None
    assert round(fields.timestamp.timestamp() * 1000) == int(entry.split(b"-")[0])
    assert (plain.value, plain.headers) == (b"\xff", {"a": "2", "b\\xff": "\\xfe"})
    assert (odd.value, odd.headers) == (b"x", {})


async def test_fields_may_have_other_names(redis: RedisServer, client: Any, topic: str) -> None:
    await client.xadd(topic, {"__data__": "x", "by": "k", "value": "a header"})
    recorder = Recorder()
    url = f"{redis.url}?value_field=__data__&key_field=by"
    async with connect(url) as broker, broker.consumer(topic, group="g", handler=recorder):
        await broker.producer().publish(Message(topic, b"y", headers={"by": "a header too"}))
        await recorder.until_done(2, 10)
    assert [(m.value, m.key, m.headers) for m in recorder.done] == [
        (b"x", b"k", {"value": "a header"}),
        (b"y", None, {"by": "a header too"}),
    ]


# --- leases, attempts, putting back


async def test_what_a_receiver_had_is_there_for_the_next_as_soon_as_it_is_closed(
    driver: RedisDriver, client: Any, topic: str
) -> None:
    subscription = Subscription(topic=topic, group="g")
    first = await collect(driver, subscription)
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(5)])
    taken = await received(first, 5)
    await first.settle([taken[0]], [Release(taken[1], attempt=3), Release(taken[2], delay=3600, attempt=2)])
    assert await driver.lag(topic, "g") == 4
    await first.close()
    assert await client.xinfo_consumers(topic, "g") == []
    second = await collect(driver, subscription)
    again = await received(second, 3)
    assert [(d.message.value, d.message.attempt) for d in again] == [(b"1", 3), (b"3", 1), (b"4", 1)]
    assert await second.receive(10, 0) == []
    await second.close()
    assert await driver.lag(topic, "g") == 4


async def test_what_is_held_when_a_receiver_closes_keeps_its_attempt(driver: RedisDriver, topic: str) -> None:
    subscription = Subscription(topic=topic, group="g")
    first = await collect(driver, subscription)
    await driver.send([Message(topic, b"x", id="1")])
    await first.settle([], [Release((await received(first, 1))[0], attempt=3)])
    [again] = await received(first, 1)
    await first.close()
    second = await collect(driver, subscription)
    [handed_on] = await received(second, 1)
    assert (again.message.attempt, handed_on.message.attempt) == (3, 3)
    await second.close()


async def test_only_idle_consumers_of_ours_that_have_nothing_are_swept(
    driver: RedisDriver, client: Any, topic: str
) -> None:
    """Redis forgets what is pending with a consumer that is deleted: nobody would get it again."""
    await driver.declare(topic, ["g"])
    await driver.send([Message(topic, b"x", id="1")])
    crashed, empty, foreign = f"{CONSUMER}crashed", f"{CONSUMER}empty", "of-another-program"
    await client.xreadgroup("g", crashed, {topic: ">"})
    for name in (empty, foreign):
        await client.xgroup_createconsumer(topic, "g", name)
    at_once = -1
    await scripts.SWEEP(client, (topic, delayed_key(topic, "g")), "g", CONSUMER, at_once)
    left = {found["name"].decode() for found in await client.xinfo_consumers(topic, "g")}
    assert left == {crashed, foreign}
    heir = await collect(driver, Subscription(topic=topic, group="g"))
    [taken] = await received(heir, 1)
    assert (taken.message.value, taken.message.attempt) == (b"x", 2)
    await heir.close()


async def test_nobody_settles_what_somebody_else_has_by_now(driver: RedisDriver, topic: str) -> None:
    subscription = Subscription(topic=topic, group="g")
    slow, quick = await collect(driver, subscription), await collect(driver, subscription)
    await driver.send([Message(topic, b"x", id="1")])
    [lost] = await received(slow, 1)
    [taken] = await received(quick, 1)  # as soon as the lease is over
    assert taken.message.attempt == 2
    await slow.extend([lost])
    await slow.settle([], [Release(lost, attempt=9)])
    await quick.extend([taken])
    assert await slow.receive(1, 0) == []
    await quick.settle([taken], [])
    assert await driver.lag(topic, "g") == 0
    await slow.close()
    await quick.close()


async def test_a_mark_comes_again_with_what_a_dead_process_had_and_goes_with_an_outcome(
    driver: RedisDriver, client: Any, topic: str
) -> None:
    subscription = Subscription(topic=topic, group="g")
    dead, heir = await collect(driver, subscription), await collect(driver, subscription)
    await driver.send([Message(topic, b"x", id="1")])
    [suspect] = await received(dead, 1)
    await marking(dead).mark(suspect, 1)
    [again] = await received(heir, 1)  # as soon as the lease is over
    assert (again.message.attempt, again.suspect) == (2, 1)
    await marking(dead).mark(suspect, 9)
    await heir.settle([], [Release(again, attempt=3)])
    [failed] = await received(heir, 1)
    assert (failed.message.attempt, failed.suspect) == (3, 0)
    await marking(heir).mark(failed, 3)
    await marking(heir).mark(failed, 0)
    assert not await client.exists(suspects_key(topic, "g")), "a stop took it back"
    await marking(heir).mark(failed, 3)
    await heir.settle([failed], [])
    assert not await client.exists(suspects_key(topic, "g"))
    await heir.close()
    await dead.close()


async def test_a_cancelled_receive_loses_and_doubles_nothing(driver: RedisDriver, topic: str) -> None:
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    values: list[bytes] = []
    for number in range(20):
        waiting = asyncio.create_task(receiver.receive(10, 5))
        await asyncio.sleep(0)
        sending = asyncio.create_task(driver.send([Message(topic, b"%d" % number, id=str(number))]))
        await asyncio.sleep(0.001 * (number % 4))
        waiting.cancel()
        [came] = await asyncio.gather(waiting, return_exceptions=True)
        values += [d.message.value for d in came] if isinstance(came, list) else []
        await sending
    while len(values) < 20:
        values += [d.message.value for d in await received(receiver, 1)]
    assert values == [b"%d" % number for number in range(20)]
    await receiver.close()


async def test_who_is_cancelled_while_it_closes_has_disconnected_all_the_same(
    driver: RedisDriver, topic: str
) -> None:
    """As when a loop ends that had left it to itself; else the connection is found, unclosed, by whoever collects garbage."""
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    reading = cast("RedisReceiver", receiver.receiver)._reading
    reading._call = asyncio.create_task(asyncio.sleep(3600, 0))
    closing = asyncio.create_task(reading.close())
    await asyncio.sleep(0)
    closing.cancel()
    assert isinstance((await asyncio.gather(closing, return_exceptions=True))[0], asyncio.CancelledError)
    assert reading._client.connection is None


async def test_what_is_put_back_and_taken_again_before_the_answer_is_handed_out(
    driver: RedisDriver, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has put it back and the answer is on its way: whoever looks then gets it, and so does its handler."""
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"x", id="1")])
    [first] = await received(receiver, 1)
    answered, on_its_way = asyncio.Event(), asyncio.Event()
    execute = driver.client.execute_command

    async def late(*words: Any, **options: Any) -> Any:
        answer = await execute(*words, **options)
        if scripts.RELEASE.digest in words:
            on_its_way.set()
            await answered.wait()
        return answer

    monkeypatch.setattr(driver.client, "execute_command", late)
    settling = asyncio.create_task(receiver.settle([], [Release(first, attempt=2)]))
    await on_its_way.wait()
    [again] = await received(receiver, 1)
    answered.set()
    await settling
    assert (again.message.value, again.message.attempt) == (b"x", 2)
    assert not await receiver.receive(1, 0), "and is nobody else's"
    await receiver.settle([again], [])
    assert await driver.lag(topic, "g") == 0
    await receiver.close()


async def test_what_is_on_its_way_back_when_its_lease_ends_is_handed_out_once(
    driver: RedisDriver, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look claims it from ourselves before the server has put it back."""
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"x", id="1")])
    [first] = await received(receiver, 1)
    put_back, on_its_way = asyncio.Event(), asyncio.Event()
    execute = driver.client.execute_command

    async def late(*words: Any, **options: Any) -> Any:
        if scripts.RELEASE.digest in words:
            on_its_way.set()
            await put_back.wait()
        return await execute(*words, **options)

    monkeypatch.setattr(driver.client, "execute_command", late)
    settling = asyncio.create_task(receiver.settle([], [Release(first, attempt=2)]))
    await on_its_way.wait()
    assert not await receiver.receive(1, 1.0), "longer than the lease"
    put_back.set()
    await settling
    [again] = await received(receiver, 1)
    assert again.message.attempt == 2
    assert not await receiver.receive(1, 0)
    await receiver.close()


@pytest.mark.parametrize("group", ["g", None], ids=["group", "ephemeral"])
async def test_what_waits_and_nobody_holds_is_overdue(
    driver: RedisDriver, topic: str, group: str | None
) -> None:
    subscription = Subscription(topic=topic, group=group or "own", ephemeral=group is None)
    collecting = await collect(driver, subscription)
    overdue = collecting.receiver.overdue
    assert await overdue() == 0
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(3)])
    assert await overdue() == (1 if group is None else 3), (
        "of an ephemeral group it is only known that there is something"
    )
    came = await received(collecting, 3)
    assert await overdue() == 0, "what is held is nobody else's"
    if group is not None:
        await collecting.settle([], [Release(came[0], attempt=2), Release(came[1], delay=3600, attempt=2)])
        assert await overdue() == 1, "what is not due is not"
    await collecting.close()


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_what_was_put_back_is_not_late_at_a_quiet_server(
    own_redis: RedisServer, topic: str, ephemeral: bool
) -> None:
    """A call that blocks ends by the server's own clock, which is slow there: up to a second late."""
    own_redis.ask("CONFIG", "SET", "hz", "1")
    driver = RedisDriver.from_url(BrokerURL.parse(own_redis.url))
    await driver.open()
    receiver = await collect(driver, Subscription(topic=topic, group="g", ephemeral=ephemeral))
    await driver.send([Message(topic, b"x", id="1")])
    loop, late = asyncio.get_running_loop(), []
    for _ in range(10):
        [delivery] = await received(receiver, 1)
        released = loop.time()
        await receiver.settle([], [Release(delivery, 0.05, delivery.message.attempt + 1)])
        [delivery] = await received(receiver, 1)
        late.append(loop.time() - released - 0.05)
        await receiver.settle([], [Release(delivery, 0.0, delivery.message.attempt)])
    assert sorted(late)[7] < 0.2
    await receiver.close()
    await driver.close()


# --- what others do to the server


@pytest.mark.parametrize("how", ["flushed", "destroyed"])
async def test_a_group_that_is_gone_begins_again_where_it_was(
    own_redis: RedisServer, topic: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(passing=lambda message: message.value != b"held")
    recorder = Recorder(gate)
    async with (
        connect(own_redis.url) as broker,
        broker.consumer(topic, group="g", handler=recorder, concurrency=4, retry=QUICK),
    ):
        producer = broker.producer()
        await producer.publish_batch([Message(topic, b"done"), Message(topic, b"held")])
        await recorder.until_done(1, 10)
        await recorder.until_began(2, 10)

        async def settled() -> bool:
            return await broker.lag(topic, "g") == 1

        await eventually(settled, 10)
        if how == "flushed":
            own_redis.ask("FLUSHALL")
        else:
            own_redis.ask("XGROUP", "DESTROY", topic, "g")
        await producer.publish(Message(topic, b"after"))
        await eventually(lambda: b"after" in recorder.values, 10)
        gate.open()
        await eventually(lambda: b"held" in recorder.values, 10)
    assert recorder.values.count(b"done") == 1
    assert "is gone from Redis" in caplog.text


async def test_whatever_is_said_of_messages_of_a_topic_that_is_gone_is_a_loss_that_is_known(
    driver: RedisDriver, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A soak that deletes topics found tracebacks in the log, of an error that nobody knew."""
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"1", id="1")])
    [delivery] = await received(receiver, 1)
    await driver.remove(topic)
    for said in (
        receiver.settle([], [Release(delivery, attempt=2)]),
        marking(receiver).mark(delivery, 4),
        receiver.receiver.extend([delivery]),
    ):
        with pytest.raises(ConnectionLost, match="is gone from Redis"):
            await said
    assert "not an error that is known" not in caplog.text
    await receiver.close()


async def test_a_group_that_begins_again_gets_what_was_held_and_not_what_was_done(
    driver: RedisDriver, client: Any, topic: str
) -> None:
    """Its receiver may never finish what it held: the new group has it, as if nobody had begun it."""
    subscription = Subscription(topic=topic, group="g")
    first = await collect(driver, subscription)
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(4)])
    taken = await received(first, 4)
    await first.settle([taken[0], taken[2]], [])
    await client.xgroup_destroy(topic, "g")
    with pytest.raises(ConnectionLost, match="is gone from Redis"):
        await first.receive(1, 1)
    await first.close()
    second = await collect(driver, subscription)
    assert await driver.lag(topic, "g") == 2
    again = await received(second, 2)
    assert [(d.message.value, d.message.attempt) for d in again] == [(b"1", 1), (b"3", 1)]
    assert await second.receive(10, 0) == []
    await second.close()


async def test_a_topic_that_was_flushed_is_declared_again_by_the_next_publish(
    own_redis: RedisServer, topic: str
) -> None:
    async with connect(own_redis.url) as broker:
        await broker.producer().publish(Message(topic, b"1"))
        own_redis.ask("FLUSHALL")
        await broker.producer().publish(Message(topic, b"2"))
        assert await broker.lag(topic, "g") == 1


async def test_a_server_without_memory_refuses_and_loses_nothing(own_redis: RedisServer, topic: str) -> None:
    async with connect(own_redis.url) as broker:
        await broker.producer().publish(Message(topic, b"before"))
        try:
            own_redis.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(PublishError, match="takes no more"):
                await broker.producer().publish(Message(topic, b"x"))
        finally:
            own_redis.ask("CONFIG", "SET", "maxmemory", "0")
        await broker.producer().publish(Message(topic, b"after"))
        assert await broker.lag(topic, "g") == 2


async def test_an_ephemeral_group_reads_on_after_a_cut_and_leaves_nothing(
    own_redis: RedisServer, topic: str
) -> None:
    recorder = Recorder(failing(1))
    async with connect(own_redis.url) as broker:
        async with broker.consumer(topic, group=None, handler=recorder, retry=QUICK):
            for number in range(3):
                await asyncio.to_thread(own_redis.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await broker.producer().publish(Message(topic, b"%d" % number))
            await recorder.until_done(3, 10)
        assert own_redis.lines("XINFO", "GROUPS", topic) == []


# --- topics


async def test_without_declare_an_unknown_topic_is_refused(redis: RedisServer, topic: str) -> None:
    async with connect(f"{redis.url}?declare=false") as broker:
        with pytest.raises(PublishError, match="declare it first"):
            await broker.producer().publish(Message(topic, b"x"))
        with pytest.raises(ConfigError, match="no topic"):
            await broker.consumer(topic, group="g", handler=Recorder()).start()


async def test_a_key_that_is_no_stream_is_said(redis: RedisServer, client: Any, topic: str) -> None:
    await client.set(topic, "x")
    async with connect(redis.url) as broker:
        with pytest.raises(ConfigError, match="no stream"):
            await broker.producer().publish(Message(topic, b"x"))
    await client.delete(topic)


async def test_remove_leaves_no_key(redis: RedisServer, client: Any, topic: str) -> None:
    async with connect(redis.url) as broker:
        recorder = Recorder(failing(9))
        await broker.producer().publish(Message(topic, b"x"))
        patient = RetryPolicy(first=3600, limit=3600)
        async with broker.consumer(topic, group="g", handler=recorder, retry=patient, dead_letter=None):

            async def put_back() -> bool:
                return bool(await client.zcard(delayed_key(topic, "g")))

            await eventually(put_back, 10)
        await broker.remove(topic)
    assert [key async for key in client.scan_iter(f"*{topic}*")] == []


async def test_a_group_is_removed_alone_with_what_it_has_put_back(
    driver: RedisDriver, client: Any, topic: str
) -> None:
    await driver.declare(topic, ["a", "b"])
    receiver = await collect(driver, Subscription(topic=topic, group="a"))
    await driver.send([Message(topic, b"x", id="1")])
    await receiver.settle([], [Release((await received(receiver, 1))[0], delay=3600, attempt=2)])
    await receiver.close()
    await driver.remove(topic, "a")
    await driver.remove(topic, "a")
    await driver.remove(f"{topic}-missing", "a")
    assert [group["name"] for group in await client.xinfo_groups(topic)] == [b"b"]
    assert not await client.exists(delayed_key(topic, "a"))
    assert await driver.lag(topic, "b") == 1


async def publish(broker: Broker, topic: str, count: int) -> None:
    await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(count)])


async def test_trimming_removes_only_what_every_group_has_acknowledged(
    redis: RedisServer, client: Any, topic: str
) -> None:
    async with connect(f"{redis.url}?retain=0") as broker:
        await broker.declare(topic, groups=["slow"])
        await publish(broker, topic, 1000)
        quick = Recorder()
        async with broker.consumer(topic, group="quick", handler=quick):
            await quick.until_done(1000, 10)
            await broker.transmission.driver.admin.tidy(topic)  # type: ignore[attr-defined]
        assert await client.xlen(topic) == 1000, "the group that has not read it still needs it"
        slow = Recorder()
        async with broker.consumer(topic, group="slow", handler=slow):
            await slow.until_done(1000, 10)

            async def trimmed() -> bool:
                await publish(broker, topic, 1)  # a settlement is what has a stream trimmed
                return int(await client.xlen(topic)) < 200

            await eventually(trimmed, 10)
        assert len(set(slow.values)) == 1000


async def test_trimming_spares_what_was_put_back(driver: RedisDriver, client: Any, topic: str) -> None:
    driver.admin._retain = 0.0
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(500)])
    taken = await received(receiver, 500)
    await receiver.settle(taken[1:], [Release(taken[0], delay=3600, attempt=2)])
    driver.admin._tidied.clear()
    await driver.admin.tidy(topic)
    assert await client.xlen(topic) == 500
    await receiver.close()


async def test_trimming_spares_what_is_being_handled(driver: RedisDriver, client: Any, topic: str) -> None:
    driver.admin._retain = 0.0
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(500)])
    taken = await received(receiver, 500)
    await receiver.settle(taken[1:], [])
    driver.admin._tidied.clear()
    await driver.admin.tidy(topic)
    assert await client.xlen(topic) == 500
    await receiver.settle(taken[:1], [])
    driver.admin._tidied.clear()
    await driver.admin.tidy(topic)
    assert await client.xlen(topic) < 200
    await receiver.close()


async def test_with_a_limit_the_oldest_go(redis: RedisServer, client: Any, topic: str) -> None:
    async with connect(f"{redis.url}?maxlen=100") as broker:
        await publish(broker, topic, 1000)
    assert 100 <= await client.xlen(topic) <= 300


async def test_lag_is_right_where_redis_has_lost_count(redis: RedisServer, client: Any, topic: str) -> None:
    async with connect(redis.url) as broker:
        await publish(broker, topic, 10)
        await client.xgroup_create(topic, "g", "$")
        await publish(broker, topic, 10_500)
        [found] = await client.xinfo_groups(topic)
        assert found["lag"] is None
        assert await broker.lag(topic, "g") == 10_500


@pytest.mark.parametrize("how", ["MAXLEN", "MINID", "XDEL"])
async def test_lag_returns_to_nothing_after_unread_entries_were_trimmed(
    driver: RedisDriver, client: Any, topic: str, how: str
) -> None:
    """Redis 7.0 counts them for ever."""
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(20)])
    await receiver.settle(await received(receiver, 5), [])
    entries = [entry for entry, _ in await client.xrange(topic)]
    if how == "XDEL":
        await client.xdel(topic, *entries[:12])
    elif how == "MAXLEN":
        await client.xtrim(topic, maxlen=8, approximate=False)
    else:
        await client.xtrim(topic, minid=entries[12], approximate=False)
    assert await driver.lag(topic, "g") == 8
    await receiver.settle(await received(receiver, 8), [])
    assert await driver.lag(topic, "g") == 0
    assert not await receiver.receive(1, 0.3), "it has looked around, and set the count right"
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(20, 25)])
    await received(receiver, 2)
    assert await driver.lag(topic, "g") == 5
    await receiver.close()


async def test_a_bridge_that_runs_until_empty_ends_though_unread_entries_were_trimmed(
    redis: RedisServer, client: Any, topic: str
) -> None:
    async with connect(redis.url) as source, connect("memory://") as target:
        await publish(source, topic, 5)
        for count in (5, 8):
            async with Bridge(source, target, [topic]) as bridge:
                await asyncio.wait_for(bridge.until_empty(), 10)
            assert bridge.moved == count
            await publish(source, topic, 20)
            await client.xtrim(topic, maxlen=8, approximate=False)


# --- names


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a:b", "c"), ("a", "b:c")), (("a", "1:x"), ("a:1", "x")), (("{a}:b", "c"), ("{a}", "b:c"))],
)
def test_no_two_groups_share_what_they_put_back(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert delayed_key(*one) != delayed_key(*other)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("cluster=true&sentinel=x", "give one of them"),
        ("cluster=true&wait_replicas=1", "does not go with cluster"),
        ("lease=0", "at least 0.1"),
        ("value_field=a&key_field=a", "two names"),
        ("ca=/nowhere.pem", "goes with rediss://"),
        ("max_message_bytes=999999999", "at most 500 MiB"),
    ],
)
def test_options_that_cannot_be_are_refused(query: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        connect(f"redis://localhost?{query}")


@pytest.mark.parametrize("url", ["redis://a,b", "redis://a/x", "redis://a/1?cluster=true"])
def test_urls_that_cannot_be_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        connect(url)


def test_a_connection_that_the_client_has_lost_is_an_outage_as_others_are() -> None:
    lost = compile("None.writelines", "connection.py", "eval")
    with pytest.raises(AttributeError) as raised:
        eval(lost, {"__name__": "redis.asyncio.connection"})
    assert ERRORS.knows(raised.value)
    with pytest.raises(AttributeError) as raised:
        eval(lost, {"__name__": "things_kit.brokers.redis.driver"})
    assert not ERRORS.knows(raised.value)


def test_a_transport_that_cannot_write_any_more_is_an_outage_as_others_are() -> None:
    """As asyncio's transports are once they are closed, from Python 3.12 on."""
    code = compile("def writelines(write=None): write()", "selector_events.py", "exec")
    transport, ours = {"__name__": "asyncio.selector_events"}, {"__name__": "things_kit.brokers.redis.driver"}
    for names, known in ((transport, True), (ours, False)):
        exec(code, names)
        with pytest.raises(TypeError) as raised:
            names["writelines"]()  # type: ignore[operator]
        assert ERRORS.knows(raised.value) is known


@pytest.mark.parametrize(
    ("error", "ours", "said"),
    [
        (ResponseError("NOAUTH Authentication required."), ConfigError, "does not accept this login"),
        (NoPermissionError("NOPERM this user has no permissions"), ConfigError, "does not let this user"),
        *(
            (ResponseError(said), ConfigError, "does not let this user")
            for said in (
                "The user executing the script can't run this command or subcommand",
                "ACL failure in script: User bob has no permissions to run the 'xadd' command",
            )
        ),
        (ResponseError("WRONGTYPE Operation against a key"), ConfigError, "no stream"),
        (ResponseError("ERR unknown command 'XADD'"), ConfigError, "refused"),
        (ResponseError("LOADING Redis is loading the dataset in memory"), ConnectionLost, "LOADING"),
        (ResponseError("OOM command not allowed"), ConnectionLost, "takes no more"),
        (ResponseError("ERR something that nobody has heard of"), ConnectionLost, "nobody has heard of"),
        (RuntimeError("a fault in the client"), ConnectionLost, "a fault in the client"),
    ],
)
def test_what_nobody_knows_is_an_outage_and_ends_no_consumer(
    error: Exception, ours: type[Exception], said: str
) -> None:
    translated = ERRORS.translate(error, "asking")
    assert type(translated) is ours
    assert said in str(translated)
    refused = ERRORS.refusal(error, "orders")
    assert type(refused) is (PublishError if ours is ConfigError or "OOM" in str(error) else ConnectionLost)
