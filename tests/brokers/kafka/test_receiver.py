"""What only a real Kafka shows: rebalances, kills, foreign records, refusals."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined] # no __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
)

from things_kit import (
    Broker,
    ConfigError,
    Message,
    MessageTooLarge,
    PublishError,
    RetryPolicy,
    UnsupportedError,
    connect,
)
from things_kit.brokers.kafka import ephemeral, receiver, standing
from things_kit.brokers.kafka.wire import TOMBSTONE
from things_kit.engine.retry_topics import retry_topics
from things_kit.testing.conformance.history import assert_lanes, merged
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer

PATIENCE = 30.0

kafka = shared(KafkaServer, "kafka")


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:10]}"


@pytest.fixture
async def broker(kafka: KafkaServer, topic: str) -> AsyncIterator[Broker]:
    async with connect(f"{kafka.url}?session_timeout=3") as broker:
        await broker.declare(topic)
        yield broker
        await broker.remove(topic)


class Handler:
    """Notes what it was given."""

    def __init__(self, act: Callable[[Message], Awaitable[None]] | None = None) -> None:
        self.messages: list[Message] = []
        self.done: list[Message] = []
        self._act = act

    async def handle(self, message: Message) -> None:
        self.messages.append(message)
        if self._act is not None:
            await self._act(message)
        self.done.append(message)


async def lag_is(broker: Broker, topic: str, expected: int, group: str = "billing") -> None:
    async def reached() -> bool:
        return await broker.lag(topic, group=group) == expected

    await eventually(reached, PATIENCE, f"the lag is {expected}")


async def eventually_well(broker: Broker) -> None:
    async def well() -> bool:
        return (await broker.health()).ok

    await eventually(well, PATIENCE)


# --- records


async def test_foreign_records_arrive(kafka: KafkaServer, broker: Broker, topic: str) -> None:
    foreign = Producer({"bootstrap.servers": kafka.brokers})
    foreign.produce(
        topic, None, b"gone", headers=[("a", b"1"), ("a", b"2"), ("raw", b"\xff"), ("null", None)]
    )
    foreign.produce(topic, b"", b"gone")
    foreign.produce(topic, b"v", None)
    foreign.flush(10)
    handler = Handler()
    async with broker.consumer(topic, group="billing", handler=handler):
        await eventually(lambda: len(handler.done) == 3, PATIENCE)
    found = {(m.key, m.value, TOMBSTONE in m.headers): m for m in handler.done}
    assert set(found) == {(b"gone", b"", True), (b"gone", b"", False), (None, b"v", False)}
    assert found[b"gone", b"", True].headers == {"a": "2", "raw": "\\xff", "null": "", TOMBSTONE: "true"}
    assert all(m.id == f"{topic}-{m.partition}-{m.offset}" for m in handler.done)


async def test_ends_of_transactions_are_no_lag(kafka: KafkaServer, broker: Broker, topic: str) -> None:
    """They take an offset each, behind the last message that a group can acknowledge."""
    foreign = Producer({"bootstrap.servers": kafka.brokers, "transactional.id": topic})
    await asyncio.to_thread(foreign.init_transactions, 10)
    for number in range(3):
        foreign.begin_transaction()
        foreign.produce(topic, b"%d" % number, b"k")
        await asyncio.to_thread(foreign.commit_transaction, 10)
    foreign.begin_transaction()
    foreign.produce(topic, b"never mind", b"k")
    await asyncio.to_thread(foreign.flush, 10)
    await asyncio.to_thread(foreign.abort_transaction, 10)
    handler = Handler()
    async with broker.consumer(topic, group="billing", handler=handler):
        await eventually(lambda: len(handler.done) == 3, PATIENCE)
        await lag_is(broker, topic, 0)
    assert [message.value for message in handler.done] == [b"0", b"1", b"2"]
    assert await broker.lag(topic, group="billing") == 0


async def test_keys_go_where_the_java_client_sends_them(broker: Broker, topic: str) -> None:
    """Known values of murmur2 (org.apache.kafka.common.utils.Utils), made positive, modulo six partitions."""
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"abc": 479470107,
    }
    handler = Handler()
    async with broker.consumer(topic, group="billing", handler=handler):
        await broker.producer().publish_batch([Message(topic, b"", key) for key in known])
        await eventually(lambda: len(handler.done) == len(known), PATIENCE)
    assert {m.key: m.partition for m in handler.done} == {
        key: (h & 0x7FFFFFFF) % 6 for key, h in known.items()
    }


async def test_a_partition_that_was_asked_for_is_kept(broker: Broker, topic: str) -> None:
    handler = Handler()
    async with broker.consumer(topic, group="billing", handler=handler):
        await broker.producer().publish_batch([Message(topic, b"", key=b"k", partition=n) for n in range(6)])
        await eventually(lambda: len(handler.done) == 6, PATIENCE)
    assert sorted(m.partition or 0 for m in handler.done) == list(range(6))


async def test_a_partition_that_is_not_there_is_refused(broker: Broker, topic: str) -> None:
    producer = broker.producer()
    await producer.publish(Message(topic, b""))
    with pytest.raises(PublishError, match="no such partition"):
        await producer.publish(Message(topic, b"", partition=99))


# --- refusals


async def test_a_topic_that_nobody_declared_is_refused_where_we_may_not(kafka: KafkaServer) -> None:
    async with connect(f"{kafka.url}?declare=false") as broker:
        with pytest.raises(PublishError, match="declare it first"):
            await broker.producer().publish(Message(f"missing-{uuid4().hex}", b""))
        consumer = broker.consumer(
            f"missing-{uuid4().hex}", group="billing", handler=Handler(), dead_letter=None
        )
        with pytest.raises(ConfigError, match="there is no topic"):
            await consumer.start()


async def test_what_the_broker_finds_too_large_is_said_so(kafka: KafkaServer, topic: str) -> None:
    """We may send more than the broker takes, whose bound is a megabyte."""
    async with connect(f"{kafka.url}?max_message_bytes=3000000") as broker:
        producer = broker.producer()
        with pytest.raises(MessageTooLarge):
            await producer.publish(Message(topic, b"x" * 2_000_000))
        await producer.publish(Message(topic, b"x"))
        await broker.remove(topic)


# --- topics


def setting(kafka: KafkaServer, topic: str, name: str) -> str:
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    (asked,) = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
    return str(asked.result(10)[name].value)


async def test_topics_that_are_created_have_the_settings_of_the_url(kafka: KafkaServer, topic: str) -> None:
    """But what waits in a retry topic or a dead letter is not deleted by them."""
    url = f"{kafka.url}?partitions=1&topic.retention.ms=3600000&topic.compression.type=lz4"
    async with connect(url) as broker:
        retry = RetryPolicy(mode="delayed")
        async with broker.consumer(topic, group="g", handler=Handler(), retry=retry):
            pass
        named = {topic: "3600000", f"{topic}-dlq": "604800000", f"{topic}-g-retry-1d": "604800000"}
        for each, retention in named.items():
            assert setting(kafka, each, "retention.ms") == retention
            assert setting(kafka, each, "compression.type") == "lz4"
            await broker.remove(each)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("topic.no.such=1", "no.such"),
        ("topic.retention.ms=soon", "retention.ms"),
        ("topic.min.insync.replicas=-1", "min.insync"),
    ],
)
async def test_a_setting_that_topics_do_not_have_is_a_sentence(
    kafka: KafkaServer, topic: str, option: str, says: str
) -> None:
    async with connect(f"{kafka.url}?{option}") as broker:
        with pytest.raises(ConfigError, match="check the options topic") as raised:
            await broker.declare(topic)
        assert says in str(raised.value)


async def most_bytes(kafka: KafkaServer, topic: str, bytes_: int) -> None:
    """Have the broker take batches of that size at most, and wait until it knows."""
    admin = AdminClient({"bootstrap.servers": kafka.brokers})
    setting = ConfigEntry("max.message.bytes", str(bytes_), incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[setting])
    for done in admin.incremental_alter_configs([change]).values():
        await asyncio.to_thread(done.result, 10)
    asked = ConfigResource(ConfigResource.Type.TOPIC, topic)

    async def known() -> bool:  # the controller has taken it, the broker hears of it
        [found] = admin.describe_configs([asked]).values()
        return bool((await asyncio.to_thread(found.result, 10))["max.message.bytes"].value == str(bytes_))

    await eventually(known, PATIENCE)


@pytest.mark.parametrize("before", [True, False], ids=["known before", "changed meanwhile"])
async def test_only_what_is_too_large_itself_is_refused(kafka: KafkaServer, topic: str, before: bool) -> None:
    """The broker refuses whole batches; the others of such a batch are published, each key in order."""
    sizes = {7: 9000, 150: 5000, 299: 100_000}
    async with connect(f"{kafka.url}?partitions=2") as broker:
        await broker.declare(topic)
        if not before:
            await broker.producer().publish(Message(topic, b"", id="first"))
        await most_bytes(kafka, topic, 4096)
        rows = [Message(topic, b"x" * sizes.get(n, 200), b"%d" % (n % 3), id=str(n)) for n in range(300)]
        with pytest.raises(PublishError) as raised:
            await broker.producer().publish_batch(rows)
        assert {n: type(error) for n, error in raised.value.failures.items()} == dict.fromkeys(
            sizes, MessageTooLarge
        )
        with pytest.raises(MessageTooLarge):
            await broker.producer().publish(Message(topic, b"x" * 5000))
        handler = Handler()
        async with broker.consumer(topic, group=f"billing-{topic}", handler=handler, dead_letter=None):
            await eventually(lambda: len(handler.done) == 297 + (not before), PATIENCE)
        for key in (b"0", b"1", b"2"):
            expected = [m.id for n, m in enumerate(rows) if m.key == key and n not in sizes]
            assert [m.id for m in handler.done if m.key == key] == expected
        await broker.remove(topic)


async def test_more_replicas_than_brokers_is_a_sentence(kafka: KafkaServer, topic: str) -> None:
    async with connect(f"{kafka.url}?replication=3") as broker:
        with pytest.raises(ConfigError, match="check the option replication"):
            await broker.declare(topic)


# --- groups


async def test_more_consumers_than_partitions_start(kafka: KafkaServer, topic: str) -> None:
    async with connect(f"{kafka.url}?partitions=1&session_timeout=3") as broker:
        consumers = [broker.consumer(topic, group="billing", handler=Handler()) for _ in range(3)]
        for consumer in consumers:
            await consumer.start()
        await broker.producer().publish(Message(topic, b"x"))
        await lag_is(broker, topic, 0)
        await broker.remove(topic)


async def test_a_consumer_that_stands_by_is_well(
    kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More consumers than partitions: those that have none are in their group all the same."""
    heard: list[float] = []
    hear = standing.Standing.heard

    def hearing(self: standing.Standing, text: str) -> None:
        hear(self, text)
        heard.append(self.out.seconds)

    monkeypatch.setattr(standing.Standing, "heard", hearing)
    group = f"billing-{topic}"
    async with connect(f"{kafka.url}?partitions=1&session_timeout=3") as broker:
        for _ in range(2):
            await broker.consumer(topic, group=group, handler=Handler()).start()
        await eventually(lambda: heard[-4:] == [0.0] * 4, PATIENCE)
        assert (await broker.health()).ok
        await broker.remove(topic)


async def test_a_consumer_that_its_group_does_not_let_in_is_ill(
    kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that has stopped polling keeps what it has, and with that everybody else out."""
    monkeypatch.setattr(standing, "UNASSIGNED", 0.2)
    group = f"billing-{topic}"
    async with connect(f"{kafka.url}?session_timeout=3") as broker:
        await broker.declare(topic)
        config = {
            "bootstrap.servers": kafka.brokers,
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
        }
        hanging = Consumer(config)
        hanging.subscribe([topic])

        def assigned() -> bool:
            hanging.poll(0.1)
            return bool(hanging.assignment())

        await eventually(assigned, PATIENCE)
        consumer = broker.consumer(topic, group=group, handler=Handler())
        starting = asyncio.create_task(consumer.start())

        async def ill() -> bool:
            return "its group is rebalancing" in ((await broker.health()).reason or "")

        await eventually(ill, PATIENCE)
        await asyncio.to_thread(hanging.close)
        await starting
        await eventually_well(broker)
        await broker.remove(topic)


async def test_a_consumer_without_a_group_sees_partitions_that_are_added(
    kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is in them, as they came to be after it began."""
    monkeypatch.setattr(ephemeral, "REFRESH", 0.2)
    async with connect(f"{kafka.url}?partitions=1") as broker:
        await broker.declare(topic)
        handler = Handler()
        async with broker.consumer(topic, group=None, handler=handler):
            admin = AdminClient({"bootstrap.servers": kafka.brokers})
            admin.create_partitions([NewPartitions(topic, 3)])[topic].result(10)

            def published() -> bool:
                """Once the metadata of a client that does not know the topic yet has them."""
                foreign = Producer({"bootstrap.servers": kafka.brokers})
                if len(foreign.list_topics(topic, timeout=10).topics[topic].partitions) < 3:
                    return False
                for partition in range(3):
                    foreign.produce(topic, b"x", partition=partition)
                return foreign.flush(10) == 0

            await eventually(published, PATIENCE)

            def arrived() -> bool:
                return {(m.partition, m.offset) for m in handler.done} == {(0, 0), (1, 0), (2, 0)}

            await eventually(arrived, PATIENCE)
        await broker.remove(topic)


@pytest.mark.parametrize("option", ["group_protocol=consumer", "group_instance_id=worker-1"])
async def test_other_ways_to_be_a_member(kafka: KafkaServer, topic: str, option: str) -> None:
    async with connect(f"{kafka.url}?{option}") as broker:
        for _ in range(2):
            handler = Handler()
            async with broker.consumer(topic, group=f"billing-{topic}", handler=handler, dead_letter=None):
                await broker.producer().publish_batch([Message(topic, b"x") for _ in range(20)])
                await eventually(lambda: len(handler.done) == 20, PATIENCE)  # noqa: B023
        await lag_is(broker, topic, 0, f"billing-{topic}")
        await broker.remove(topic)


async def test_a_slow_handler_keeps_its_group_beyond_the_poll_interval(
    kafka: KafkaServer, topic: str
) -> None:
    """The buffer is full, so nothing is fetched; but the thread polls, so the group does not throw us out."""
    options = "session_timeout=2&conf.max.poll.interval.ms=2500&partitions=1"
    gate = asyncio.Event()

    async def wait(_: Message) -> None:
        await gate.wait()

    async with connect(f"{kafka.url}?{options}") as broker:
        handler, heir = Handler(wait), Handler()
        async with broker.consumer(topic, group="billing", handler=handler, max_in_flight=2):
            await broker.producer().publish_batch([Message(topic, b"x") for _ in range(30)])
            await eventually(lambda: handler.messages, PATIENCE)
            async with broker.consumer(topic, group="billing", handler=heir):
                await asyncio.sleep(4)
                assert not heir.messages, "the group was lost"
                gate.set()
                await eventually(lambda: len(handler.done) + len(heir.done) == 30, PATIENCE)
                await lag_is(broker, topic, 0)
        await broker.remove(topic)


async def test_partitions_that_left_a_full_consumer_go_on_when_it_gets_them_back(
    kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka keeps a partition paused beyond its assignment: what paused it may have room long since."""
    monkeypatch.setattr(receiver, "PATIENCE", 0.0)
    full, slow = threading.Event(), True
    pause = receiver.KafkaReceiver._pause

    def pausing(self: receiver.KafkaReceiver, paused: bool) -> None:
        pause(self, paused)
        if paused:
            full.set()

    async def work(_: Message) -> None:
        await asyncio.sleep(0.2 if slow else 0)

    def rows(begin: int) -> list[Message]:
        return [Message(topic, b"x", id=str(n), partition=n % 4) for n in range(begin, begin + 200)]

    monkeypatch.setattr(receiver.KafkaReceiver, "_pause", pausing)
    options: Any = {"group": f"billing-{topic}", "max_in_flight": 20, "dead_letter": None}
    async with connect(f"{kafka.url}?partitions=4&session_timeout=3") as broker:
        first, second = Handler(work), Handler()
        async with broker.consumer(topic, handler=first, **options):
            await broker.producer().publish_batch(rows(0))
            await asyncio.to_thread(full.wait, PATIENCE)
            async with broker.consumer(topic, handler=second, **options):
                await eventually(lambda: second.done, PATIENCE)
                slow = False
            await broker.producer().publish_batch(rows(200))
            await eventually(lambda: len({m.id for m in first.done + second.done}) == 400, PATIENCE)
            await lag_is(broker, topic, 0, f"billing-{topic}")
        await broker.remove(topic)


async def test_a_share_group_is_a_queue_of_one_partition(kafka: KafkaServer, topic: str) -> None:
    """Two consumers share one partition; what failed comes again with the broker's count, until it is done."""
    async with connect(f"{kafka.url}?group_type=share&partitions=1") as broker:
        await broker.declare(topic, groups=[f"{topic}-workers"])
        await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(40)])
        handlers = [Handler(lambda _: asyncio.sleep(0.01)) for _ in range(2)]
        options: Any = {
            "group": f"{topic}-workers",
            "ordering": "none",
            "max_in_flight": 5,
            "dead_letter": None,
        }
        for handler in handlers:
            await broker.consumer(topic, handler=handler, **options).start()
        count = 40

        def done() -> list[bytes]:
            return [message.value for handler in handlers for message in handler.done]

        while not all(handler.done for handler in handlers):
            assert count < 2000, "one of them gets nothing"
            await broker.producer().publish_batch(
                [Message(topic, b"%d" % n) for n in range(count, count + 20)]
            )
            count += 20
            await eventually(lambda: len(done()) >= count, PATIENCE)  # noqa: B023
        await eventually(lambda: len(done()) >= count, PATIENCE)
        assert sorted(done()) == sorted(b"%d" % n for n in range(count))
        await broker.remove(topic)


async def test_a_share_group_gives_back_what_was_not_done(kafka: KafkaServer, topic: str) -> None:
    options: Any = {"group": f"{topic}-workers", "ordering": "none", "dead_letter": None}
    async with connect(f"{kafka.url}?group_type=share&partitions=1") as broker:
        await broker.declare(topic)
        await broker.producer().publish(Message(topic, b"x"))
        hanging = Handler(lambda _: asyncio.sleep(3600))
        async with broker.consumer(topic, handler=hanging, drain_timeout=0.1, **options):
            await eventually(lambda: hanging.messages, PATIENCE)
        handler = Handler()
        async with broker.consumer(topic, handler=handler, **options):
            await eventually(lambda: handler.done, PATIENCE)
        assert ([m.attempt for m in hanging.messages], [m.attempt for m in handler.done]) == ([1], [2])
        await broker.remove(topic)


async def test_a_share_group_keeps_no_order_and_says_so(kafka: KafkaServer, topic: str) -> None:
    async with connect(f"{kafka.url}?group_type=share") as broker:
        with pytest.raises(UnsupportedError, match='ordering="none"'):
            await broker.consumer(topic, group="billing", handler=Handler(), dead_letter=None).start()
        await broker.remove(topic)


async def test_what_waits_in_retry_topics_outlives_its_consumer(kafka: KafkaServer, topic: str) -> None:
    """Their keys go on; it comes when it is due, in the order of its tier, in another process as well as in this one."""
    group, failed, handled = (
        f"billing-{topic}",
        dict[str | None, float](),
        list[tuple[str | None, int, float]](),
    )
    retry = RetryPolicy(attempts=3, first=4.0, factor=1.0, jitter=0.0, mode="delayed")

    async def handle(message: Message) -> None:
        if message.value == b"bad" and message.attempt == 1:
            failed[message.id] = time.monotonic()
            raise ValueError("not yet")
        handled.append((message.id, message.attempt, time.monotonic()))

    async with connect(f"{kafka.url}?partitions=1&session_timeout=3") as broker:
        options: Any = {"group": group, "handler": handle, "retry": retry, "dead_letter": None}
        await broker.declare(topic)
        rows = [Message(topic, b"good" if n % 2 else b"bad", b"k", id=str(n)) for n in range(6)]
        await broker.producer().publish_batch(rows)
        async with broker.consumer(topic, **options):
            await lag_is(broker, topic, 3, group)
            assert [id_ for id_, _, _ in handled] == ["1", "3", "5"], "a key waits for its failures"
        assert await broker.lag(topic, group=group) == 3
        async with broker.consumer(topic, **options):
            spent = time.process_time()
            asked = time.monotonic()
            await eventually(lambda: len(handled) == 6, PATIENCE)
            # In less than a second, where the start took long, it is not waiting that is measured
            busy = (time.process_time() - spent) / max(1.0, time.monotonic() - asked)
            await lag_is(broker, topic, 0, group)
        assert busy < 0.3, f"waiting took {busy:.0%} of a core"
        assert [(id_, attempt) for id_, attempt, _ in handled[3:]] == [("0", 2), ("2", 2), ("4", 2)]
        assert all(at - failed[id_] >= 4.0 for id_, _, at in handled[3:]), "it came before it was due"
        for each in (topic, *retry_topics(topic, group)):
            await broker.remove(each)


STUCK = """
import asyncio, sys
from things_kit import connect

async def handle(message):
    if message.key == b"k0":
        await asyncio.Event().wait()
    sys.stdout.write(message.id + "\\n")
    sys.stdout.flush()

async def main():
    async with connect(sys.argv[1]) as broker:
        async with broker.consumer(sys.argv[2], group="billing", handler=handle, concurrency=16, max_in_flight=200):
            await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_stuck_key_repeats_nothing_of_the_others_after_a_kill(kafka: KafkaServer, topic: str) -> None:
    """What is finished beyond the prefix is in the commit's metadata: only what was not committed comes again."""
    url, keys = f"{kafka.url}?session_timeout=3&partitions=1", 16
    messages = [Message(topic, b"x", key=b"k%d" % (n % keys), id=str(n)) for n in range(2000)]
    stuck = {m.id or "" for m in messages if m.key == b"k0"}
    async with connect(url) as broker:
        await broker.declare(topic)
        await broker.producer().publish_batch(messages)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STUCK, url, topic, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        handled = {(await process.stdout.readline()).decode().strip() for _ in range(2000 - len(stuck))}
        assert handled == {m.id for m in messages} - stuck
        await lag_is(broker, topic, len(stuck))
        process.kill()
        await process.wait()
        handler = Handler()
        async with broker.consumer(topic, group="billing", handler=handler, concurrency=16):
            await eventually(lambda: len(handler.done) >= len(stuck), PATIENCE)
            await lag_is(broker, topic, 0)
        assert [m.id for m in handler.done] == sorted(stuck, key=int)
        await broker.remove(topic)


async def test_three_processes_that_join_leave_and_die_lose_nothing(kafka: KafkaServer, topic: str) -> None:
    """Under load: every message is handled, each key in order, and after a kill only what was not committed again."""
    url, group, most = f"{kafka.url}?session_timeout=3", f"billing-{topic}", 40
    keys = [b"k%d" % n for n in range(30)]
    messages = [Message(topic, b"x", key=keys[n % 30], id=f"{n}") for n in range(8000)]
    lanes: dict[object, list[str]] = {key: [m.id or "" for m in messages if m.key == key] for key in keys}
    workers: list[WorkerProcess] = []

    async def start() -> None:
        settings = {"concurrency": 8, "delay": 0.004, "max_in_flight": most}
        workers.append(await WorkerProcess.start(url, topic, group, **settings))

    async def more(count: int) -> None:
        before = handled()
        await eventually(lambda: handled() >= before + count, PATIENCE, f"{count} more are handled")

    def handled() -> int:
        return len({id_ for worker in workers for id_ in worker.history.ids("done")})

    async with connect(url) as broker:
        await broker.declare(topic)
        producer = broker.producer()

        async def publish() -> None:
            for begin in range(0, len(messages), 50):
                await producer.publish_batch(messages[begin : begin + 50])
                await asyncio.sleep(0.05)

        await start()
        publishing = asyncio.create_task(publish())
        await more(100)
        await asyncio.gather(start(), start())
        await more(1500)
        await workers[0].kill()
        await more(300)
        await workers[1].stop()
        await start()
        await more(1500)
        await workers[2].kill()
        await publishing
        await eventually(lambda: handled() == len(messages), 2 * PATIENCE, "all are handled")
        await lag_is(broker, topic, 0, group)
        await workers[3].stop()
        await broker.remove(topic)
    history = merged(worker.history for worker in workers)
    assert_lanes(history, lanes)
    twice = history.duplicates()
    # Of each that was killed: what it held, and what was finished while its last commit was on its way
    assert len(twice) <= 2 * 2 * most, f"{len(twice)} were handled twice"


async def test_a_partition_that_is_added_is_read_from_its_first_message_whatever_start_says(
    kafka: KafkaServer, topic: str
) -> None:
    """`start` is for new groups; what such a partition holds came after the group began."""
    group = f"billing-{topic}"
    async with connect(
        f"{kafka.url}?partitions=1&session_timeout=3&conf.topic.metadata.refresh.interval.ms=1000"
    ) as broker:
        await broker.declare(topic)
        await broker.producer().publish(Message(topic, b"before"))
        handler = Handler()
        async with broker.consumer(topic, group=group, handler=handler, start="latest", dead_letter=None):
            admin = AdminClient({"bootstrap.servers": kafka.brokers})
            admin.create_partitions([NewPartitions(topic, 3)])[topic].result(10)
            foreign = Producer(
                {"bootstrap.servers": kafka.brokers, "topic.metadata.refresh.interval.ms": 100}
            )

            def published() -> bool:
                if len(foreign.list_topics(topic, timeout=10).topics[topic].partitions) < 3:
                    return False
                for partition in range(3):
                    foreign.produce(topic, b"x", partition=partition)
                return foreign.flush(10) == 0

            await eventually(published, PATIENCE)
            await eventually(lambda: len(handler.done) == 3, PATIENCE)
        assert sorted((m.partition, m.value) for m in handler.done) == [(0, b"x"), (1, b"x"), (2, b"x")]
        await broker.remove(topic)


async def test_static_members_of_one_process_do_not_fence_each_other(kafka: KafkaServer, topic: str) -> None:
    """A consumer of two topics with retry topics has many members."""
    url = f"{kafka.url}?group_instance_id=worker-1&partitions=1&session_timeout=3"
    async with connect(url) as broker:
        handler, topics = Handler(), [topic, f"{topic}-b"]
        retry = RetryPolicy(mode="delayed")
        options: Any = {"group": f"billing-{topic}", "handler": handler, "dead_letter": None, "retry": retry}
        for _ in range(2):
            handler.done.clear()
            async with broker.consumer(topics, **options), broker.consumer(topic, **options):
                await broker.producer().publish_batch([Message(each, b"x") for each in topics])
                await eventually(lambda: len(handler.done) == 2, PATIENCE)
                assert (await broker.health()).ok
        for each in topics:
            for name in (each, *retry_topics(each, f"billing-{topic}")):
                await broker.remove(name)


async def test_a_group_is_removed_alone_and_one_with_other_topics_begins_anew_in_this_one(
    kafka: KafkaServer, topic: str
) -> None:
    other, alone, both = f"{topic}-other", f"{topic}-alone", f"{topic}-both"
    async with connect(f"{kafka.url}?partitions=2") as broker:
        for each in (topic, other):
            await broker.declare(each)
            await broker.producer().publish_batch([Message(each, b"x", partition=n % 2) for n in range(10)])
        handler = Handler()
        for each, group in ((topic, alone), (topic, both), (other, both)):
            async with broker.consumer(each, group=group, handler=handler, dead_letter=None):
                await lag_is(broker, each, 0, group)
        await broker.remove(topic, group=alone)
        await broker.remove(topic, group=both)
        await broker.remove(topic, group="never-there")
        await lag_is(broker, topic, 10, alone)
        await lag_is(broker, topic, 10, both)
        await lag_is(broker, other, 0, both)
        for each in (topic, other):
            await broker.remove(each)


async def test_a_group_with_consumers_is_not_removed(kafka: KafkaServer, topic: str) -> None:
    async with (
        connect(f"{kafka.url}?partitions=2") as broker,
        broker.consumer(topic, group=topic, handler=Handler(), dead_letter=None),
    ):
        with pytest.raises(ConfigError, match="consumers that run"):
            await broker.remove(topic, group=topic)
