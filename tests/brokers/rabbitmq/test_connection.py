"""A connection is opened, lives by its heartbeats, is replaced when it falls silent, and is given up without a trace."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pika")

from things_kit import Message, connect
from things_kit.brokers.rabbitmq.amqp.heartbeats import GRACE, Heartbeats
from things_kit.brokers.rabbitmq.driver import RabbitMQDriver
from things_kit.brokers.rabbitmq.link import Link
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.engine.collected import collect
from things_kit.engine.driver import ConnectionLost, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.testing import run_virtual
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.steady import Pulse
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.relay import Relay

rabbitmq = shared(RabbitMQServer, "rabbitmq")
own_rabbitmq = own(RabbitMQServer)

INTERVAL = 2
SILENT = 2 * INTERVAL + GRACE


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:10]}"


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What the loop would have logged of callbacks that failed."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


def link_to(port: int, **options: object) -> Link:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return Link(Settings.from_url(BrokerURL.parse(f"amqp://guest:guest@127.0.0.1:{port}/?{query}")))


# --- heartbeats


async def test_a_connection_that_gets_heartbeats_alone_is_kept(rabbitmq: RabbitMQServer) -> None:
    link = link_to(rabbitmq.ports[0], heartbeat=INTERVAL)
    connection = await link.ready()
    began = connection.heard
    await eventually(lambda: connection.heard - began > SILENT + INTERVAL, 20)
    assert await link.ready() is connection
    await link.close()


class Watched:
    """Heartbeats under virtual time, of a broker that says something as the test wants."""

    def __init__(self, interval: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.last = self.loop.time()
        self.beats: list[float] = []
        self.ended: list[float] = []
        self.heartbeats = Heartbeats(
            interval,
            send=lambda: self.beats.append(self.loop.time()),
            heard=lambda: self.last,
            silent=lambda _: self.end(),
        )

    def end(self) -> None:
        self.ended.append(self.loop.time())
        self.heartbeats.stop()

    async def hears_every(self, seconds: float, until: float) -> None:
        while self.loop.time() + seconds <= until:
            await asyncio.sleep(seconds)
            self.last = self.loop.time()


def test_silence_for_two_heartbeats_ends_a_connection_and_less_does_not() -> None:
    async def scenario() -> Watched:
        watched = Watched(10)
        await watched.hears_every(19, until=190)
        await asyncio.sleep(100)
        return watched

    watched = run_virtual(scenario())
    assert watched.ended == pytest.approx([190 + 20 + GRACE])


def test_a_heartbeat_is_sent_twice_in_its_time_until_the_end() -> None:
    async def scenario() -> Watched:
        watched = Watched(10)
        await watched.hears_every(5, until=20)
        watched.heartbeats.stop()
        await asyncio.sleep(100)
        return watched

    assert run_virtual(scenario()).beats == pytest.approx([5, 10, 15, 20])


def test_a_process_that_stood_still_reads_what_lies_there_before_it_judges() -> None:
    """Its loop looks at the clock before the socket, or after it: that is the loop's own affair."""

    async def scenario() -> Watched:
        watched = Watched(10)
        await asyncio.sleep(20 + GRACE / 2)
        watched.last = watched.loop.time()
        await asyncio.sleep(15)
        return watched

    assert run_virtual(scenario()).ended == []


# --- half open


async def test_a_connection_that_falls_silent_is_replaced_and_what_was_under_way_goes_through(
    rabbitmq: RabbitMQServer, topic: str
) -> None:
    recorder = Recorder()
    async with (
        contextlib.AsyncExitStack() as stack,
        Relay(rabbitmq.ports[0]) as relay,
        connect(f"amqp://guest:guest@127.0.0.1:{relay.port}/?heartbeat={INTERVAL}") as broker,
        broker.consumer(topic, group="g", handler=recorder),
    ):
        await broker.producer().publish(Message(topic, b"before"))
        await recorder.until_done(1)
        relay.half_open()
        pulse = stack.enter_context(Pulse())
        publishing = asyncio.create_task(broker.producer().publish(Message(topic, b"under way")))
        health = await broker.health()
        assert not health.ok
        await publishing
        await recorder.until_done(2, 30)
        assert pulse.ran < SILENT + 5
        await eventually(lambda: is_well(broker), 10)
        await broker.remove(topic)
        await broker.remove(f"{topic}-dlq")


async def is_well(broker: Any) -> bool:
    return bool((await broker.health()).ok)


def test_by_default_silence_is_noticed_with_time_left_to_publish_anew() -> None:
    settings = Settings.from_url(BrokerURL.parse("amqp://localhost/"))
    assert 2 * settings.options.heartbeat + GRACE < settings.url.engine.publish_timeout - 5


# --- opening, and giving up


def test_the_password_of_a_login_is_not_shown() -> None:
    login = Settings.from_url(BrokerURL.parse("amqp://me:geheim@localhost/")).login
    assert "geheim" not in repr(login)
    assert login.password.reveal() == "geheim"


class Mute:
    """A host that takes connections and says nothing."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.left = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.set()
        while await reader.read(100):
            pass
        self.left.set()
        writer.close()


@pytest.fixture
async def mute() -> AsyncIterator[tuple[Mute, int]]:
    host = Mute()
    async with await asyncio.start_server(host.accept, "127.0.0.1", 0) as server:
        yield host, server.sockets[0].getsockname()[1]


async def test_an_attempt_that_is_given_up_hangs_up_and_leaves_nothing(
    mute: tuple[Mute, int], complaints: list[dict[str, Any]]
) -> None:
    host, port = mute
    link = link_to(port)
    attempt = asyncio.create_task(link.ready())
    await host.connected.wait()
    attempt.cancel()
    await link.close()
    async with asyncio.timeout(5):
        await host.left.wait()
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("things_kit")]
    assert (complaints, left) == ([], [])


async def test_a_host_that_says_nothing_is_left_in_time_for_the_next(
    mute: tuple[Mute, int], rabbitmq: RabbitMQServer, complaints: list[dict[str, Any]]
) -> None:
    host, port = mute
    url = f"amqp://guest:guest@127.0.0.1:{port},127.0.0.1:{rabbitmq.ports[0]}/?publish_timeout=2"
    link = Link(Settings.from_url(BrokerURL.parse(url)))
    assert (await link.ready()).error is None
    await host.left.wait()
    await link.close()
    assert complaints == []


async def test_a_host_whose_name_nobody_knows_is_passed_over(rabbitmq: RabbitMQServer) -> None:
    url = f"amqp://guest:guest@nowhere.invalid,127.0.0.1:{rabbitmq.ports[0]}/"
    link = Link(Settings.from_url(BrokerURL.parse(url)))
    assert (await link.ready()).error is None
    await link.close()


async def test_two_that_need_a_connection_at_once_get_the_same(rabbitmq: RabbitMQServer) -> None:
    link = link_to(rabbitmq.ports[0])
    first, second = await asyncio.gather(link.ready(), link.ready())
    assert first is second
    await link.close()


async def test_whoever_waits_for_a_connection_that_is_closed_is_told(mute: tuple[Mute, int]) -> None:
    host, port = mute
    link = link_to(port)
    attempt = asyncio.create_task(link.ready())
    await host.connected.wait()
    await link.close()
    with pytest.raises(ConnectionLost):
        await attempt


async def test_frames_that_nobody_can_read_end_the_connection_with_the_reason_in_the_log(
    rabbitmq: RabbitMQServer, caplog: pytest.LogCaptureFixture, complaints: list[dict[str, Any]]
) -> None:
    link = link_to(rabbitmq.ports[0])
    connection = await link.ready()
    channel = await link.channel()
    connection.data_received(b"\x09\x00\x00\x00\x00\x00\x00\xce")
    await eventually(lambda: channel.error is not None)
    assert "Unknown frame type" in caplog.text
    assert await link.ready() is not connection
    await link.close()
    assert complaints == []


# --- leaving a broker that does not answer


@pytest.mark.parametrize("fault", ["pause", "kill"])
async def test_leaving_takes_two_seconds_at_most_though_the_broker_does_not_answer(
    own_rabbitmq: RabbitMQServer, topic: str, fault: str
) -> None:
    await asyncio.to_thread(own_rabbitmq.start)
    driver = RabbitMQDriver.from_url(BrokerURL.parse(own_rabbitmq.url))
    await driver.open()
    receiver = await collect(driver, Subscription(topic=topic, group="g"))
    await driver.send([Message(topic, b"%d" % n, id=str(n)) for n in range(10)])
    assert await receiver.receive(3, 5)
    break_it: Callable[[], None] = getattr(own_rabbitmq, fault)
    await asyncio.to_thread(break_it)
    try:
        for leaving in (receiver.receiver, driver):
            with Pulse() as pulse:
                await leaving.close()
            assert pulse.ran < 2
    finally:
        await asyncio.to_thread(own_rabbitmq.resume)
