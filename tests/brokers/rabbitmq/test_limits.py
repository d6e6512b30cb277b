"""A RabbitMQ with limits of its own: little patience with consumers, small messages, alarms, logins, TLS."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pika")

import pika

from things_kit import BrokerUnavailable, ConfigError, Message, MessageTooLarge, PublishError, connect
from things_kit.brokers.rabbitmq.renewal import BY_CONSUMER
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.rabbitmq import RabbitMQServer

SECRET = "s3cret-geheim"
PATIENCE = 3.0


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    trusted, key = folder / "ca.pem", folder / "key.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *words.split(), "-keyout", key, "-out", trusted], check=True, capture_output=True
    )
    return trusted, key


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    folder = tmp_path_factory.mktemp("limited")
    trusted, key = certificate(folder)
    ports = free_ports(4)
    server = RabbitMQServer(
        folder / "rabbitmq",
        ports,
        {
            "consumer_timeout": str(int(1000 * PATIENCE)),
            "max_message_size": "100000",
            "listeners.ssl.default": f"127.0.0.1:{ports[3]}",
            "ssl_options.cacertfile": str(trusted),
            "ssl_options.certfile": str(trusted),
            "ssl_options.keyfile": str(key),
        },
    )
    try:
        try:
            server.start()
            # It looks once a minute for who holds messages too long; rabbitmq.conf has no word for that
            server.control("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        except ServerUnavailable as reason:
            unavailable(reason)
        yield server
    finally:
        server.terminate()


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:10]}"


async def test_a_handler_may_take_longer_than_the_broker_waits(limited: RabbitMQServer, topic: str) -> None:
    """Three messages held for more than twice the time: each is handled once, and those behind them too."""
    recorder = Recorder()

    async def slow(message: Message) -> None:
        if message.value == b"slow":
            await asyncio.sleep(2.5 * PATIENCE)
        await recorder.handle(message)

    async with connect(f"{limited.url}?consumer_timeout={PATIENCE}") as broker:
        async with broker.consumer(topic, group="g", handler=slow, concurrency=3, max_in_flight=4):
            slow_ones = [Message(topic, b"slow", key=b"%d" % n) for n in range(3)]
            behind = [Message(topic, b"quick", key=b"%d" % (n % 3)) for n in range(12)]
            await broker.producer().publish_batch(slow_ones + behind)
            await recorder.until_done(15, 30)
            await eventually(lambda: lag_is(broker, topic, 0), 10)
        assert len(recorder.ids) == len(recorder.done) == 15
        assert recorder.attempts == [1] * 15
        assert {message.key for message in recorder.done[:3]} <= {b"0", b"1", b"2"}
        by_key = [[m.value for m in recorder.done if m.key == b"%d" % n] for n in range(3)]
        assert by_key == [[b"slow", *[b"quick"] * 4]] * 3


async def test_a_handler_without_a_group_may_take_longer_than_the_broker_waits(
    limited: RabbitMQServer, topic: str
) -> None:
    recorder = Recorder()

    async def slow(message: Message) -> None:
        await asyncio.sleep(2.5 * PATIENCE)
        await recorder.handle(message)

    async with (
        connect(f"{limited.url}?consumer_timeout={PATIENCE}") as broker,
        broker.consumer(topic, group=None, handler=slow, concurrency=2),
    ):
        await broker.producer().publish_batch([Message(topic, b"1"), Message(topic, b"2")])
        await recorder.until_done(2, 30)
        assert recorder.attempts == [1, 1]


async def test_a_queue_of_somebody_else_is_consumed_whatever_its_type(
    limited: RabbitMQServer, topic: str
) -> None:
    """From 4.3 on a consumer of a quorum queue has to ask for time, and one of another queue may not."""
    with pika.BlockingConnection(pika.URLParameters(limited.url)) as connection:
        channel = connection.channel()
        for kind in ("quorum", "classic"):
            channel.queue_declare(f"{topic}-{kind}", durable=True, arguments={"x-queue-type": kind})
            channel.queue_bind(f"{topic}-{kind}", "amq.fanout")
    for kind in ("quorum", "classic"):
        recorder = Recorder()
        async with connect(f"{limited.url}?exchange=amq.fanout&queue={topic}-{kind}") as broker:
            await broker.producer().publish(Message(topic, b"x"))
            async with broker.consumer(topic, group="g", handler=recorder, dead_letter=None):
                await recorder.until_done(1, 20)


async def lag_is(broker: Any, topic: str, expected: int) -> bool:
    return bool(await broker.lag(topic, "g") == expected)


async def test_what_was_renewed_comes_back_from_a_killed_process(limited: RabbitMQServer, topic: str) -> None:
    if await asyncio.to_thread(version, limited) >= BY_CONSUMER:
        pytest.skip("this RabbitMQ waits as long as it is asked to, so nothing is renewed")
    url = f"{limited.url}?consumer_timeout={PATIENCE}"
    async with connect(url) as broker:
        await broker.declare(topic, groups=["g"])
        worker = await WorkerProcess.start(url, topic, "g", hang_after=0, concurrency=1)
        await broker.producer().publish(Message(topic, b"x", key=b"\xff", headers={"a": "b"}, id="one"))
        await eventually(lambda: worker.history.ids("began"), 20)
        await asyncio.to_thread(until_renewed, limited, topic)
        await worker.kill()
        recorder = Recorder()
        async with broker.consumer(topic, group="g", handler=recorder):
            [message] = await recorder.until_done(1, 20)
        assert (message.id, message.key, message.headers) == ("one", b"\xff", {"a": "b"})


def version(server: RabbitMQServer) -> tuple[int, ...]:
    return tuple(int(number) for number in server.control("version").split()[-1].split(".")[:2])


def until_renewed(server: RabbitMQServer, topic: str) -> None:
    """The copy is held by the worker, and nothing is left in the group's queue."""
    for _ in range(20):
        rows = server.control("list_queues", "name", "messages", "--no-table-headers").splitlines()
        counts = dict(row.rsplit("\t", 1) for row in rows if "\t" in row)
        held = [count for name, count in counts.items() if ".held-" in name and name.endswith(f"g.{topic}")]
        if held == ["1"] and counts[f"g.{topic}"] == "0":
            return
    raise AssertionError(f"it was not renewed: {counts}")


async def test_a_message_larger_than_the_broker_takes_is_refused_and_the_others_are_not(
    limited: RabbitMQServer, topic: str
) -> None:
    async with connect(limited.url) as broker:
        await broker.declare(topic, groups=["g"])
        for _ in range(2):
            batch = [Message(topic, b"1"), Message(topic, b"x" * 100_001), Message(topic, b"3")]
            with pytest.raises(PublishError) as raised:
                await broker.producer().publish_batch(batch)
            assert {n: type(error) for n, error in raised.value.failures.items()} == {1: MessageTooLarge}
            assert "100000" in str(raised.value.failures[1])
        assert (await broker.lag(topic, "g") or 0) >= 4


async def test_over_tls_messages_flow(limited: RabbitMQServer, topic: str) -> None:
    trusted = limited.folder.parent / "ca.pem"
    recorder = Recorder()
    url = f"amqps://guest:guest@127.0.0.1:{limited.secure_port}/?ca={trusted}"
    async with connect(url) as broker, broker.consumer(topic, group="g", handler=recorder):
        await broker.producer().publish(Message(topic, b"x" * 50_000))
        await recorder.until_done(1, 20)


async def test_a_certificate_that_nobody_trusts_is_refused(limited: RabbitMQServer) -> None:
    with pytest.raises((BrokerUnavailable, ConfigError), match="certificate"):
        async with connect(f"amqps://127.0.0.1:{limited.secure_port}/?publish_timeout=2"):
            pass


async def test_a_user_without_rights_is_told_what_is_refused(
    limited: RabbitMQServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(limited.control, "add_user", "alice", SECRET)
    await asyncio.to_thread(limited.control, "set_permissions", "alice", "^$", "^$", ".*")
    async with connect(limited.url) as broker:
        await broker.declare(topic, groups=["g"])
    alice = f"amqp://alice:{SECRET}@127.0.0.1:{limited.ports[0]}/?declare=false"
    async with connect(alice) as broker:
        with pytest.raises(ConfigError, match="RabbitMQ refuses it: ACCESS_REFUSED") as declaring:
            await broker.declare(f"{topic}-new")
        with pytest.raises(PublishError, match="ACCESS_REFUSED") as publishing:
            await broker.producer().publish(Message(topic, b"x"))
    for raised in (declaring, publishing):
        assert SECRET not in f"{raised.value!r}{raised.value.__cause__!r}{caplog.text}"


async def test_a_broker_that_blocks_publishers_is_waited_for_while_consumers_go_on(
    limited: RabbitMQServer, topic: str
) -> None:
    recorder = Recorder()
    async with (
        connect(limited.url) as broker,
        connect(f"{limited.url}?publish_timeout=2") as hasty,
        broker.consumer(topic, group="g", handler=recorder),
    ):
        for each in (broker, hasty):
            await each.producer().publish(Message(topic, b"before"))
        await asyncio.to_thread(limited.control, "set_vm_memory_high_watermark", "absolute", "1000")
        try:
            await eventually(lambda: alarmed(limited), 20)
            publishing = asyncio.create_task(broker.producer().publish(Message(topic, b"during")))
            with pytest.raises(BrokerUnavailable):  # RabbitMQ says why only once somebody publishes
                await hasty.producer().publish(Message(topic, b"too late"))
            with pytest.raises(BrokerUnavailable, match="memory"):
                await hasty.producer().publish(Message(topic, b"too late"))
            assert not publishing.done()
            assert await broker.lag(topic, "g") == 0, "asking goes over the other connection"
            assert "memory" in ((await broker.health()).reason or "")
        finally:
            await asyncio.to_thread(limited.control, "set_vm_memory_high_watermark", "0.9")
        await asyncio.wait_for(publishing, 30)
        await eventually(lambda: b"during" in recorder.values, 20)
        await eventually(lambda: is_well(broker), 20)


async def is_well(broker: Any) -> bool:
    return bool((await broker.health()).ok)


async def alarmed(server: RabbitMQServer) -> bool:
    said = await asyncio.to_thread(server.control, "eval", "rabbit_alarm:get_alarms().")
    return "memory" in said
