"""The one connection: shared, watched, replaced, secured; and rights that are shown anew."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from things_kit import Broker, BrokerUnavailable, Message, connect
from things_kit.brokers.servicebus import client, rights
from things_kit.brokers.servicebus.amqp import connection
from things_kit.brokers.servicebus.amqp.connection import SASL, TRANSFER, AmqpError, Connection
from things_kit.brokers.servicebus.options import Settings
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.servicebus import RunningServiceBus, ServiceBusServer

from .common import client_of, keyed, through


class CountingRelay(Relay):
    """Knows how many connections there have been."""

    count = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        await super()._accept(reader, writer)


async def test_all_topics_and_groups_share_one_connection(servicebus: ServiceBusServer, topic: str) -> None:
    async with (
        CountingRelay(servicebus.ports[0]) as relay,
        connect(through(relay, servicebus, "&sessions=true")) as broker,
    ):
        topics = [f"{topic}-{n}" for n in range(3)]
        recorder = Recorder()
        async with broker.consumer(topics, group="billing", handler=recorder, dead_letter=None):
            await broker.producer().publish_batch([m for each in topics for m in keyed(each, 10, 5)])
            await recorder.until_done(30, 15)
            assert (await broker.health()).ok
            assert relay.count == 1
        for each in topics:
            await broker.remove(each)


# --- a network that fails


@pytest.mark.parametrize("options", ["&lease=5", "&sessions=true&lease=5"], ids=["link", "sessions"])
async def test_a_connection_that_falls_silent_is_replaced_for_consumers_and_producers(
    servicebus: ServiceBusServer, topic: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default within 20 seconds and the time that a new one takes; here it is made shorter.

    A message or a session that the service has given to the silent one comes back when its lock runs out.
    """
    monkeypatch.setattr(connection, "SILENCE", 2.0)
    monkeypatch.setattr(connection, "LOOK", 0.2)
    async with Relay(servicebus.ports[0]) as relay, connect(through(relay, servicebus, options)) as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            producer = broker.producer()
            await producer.publish(Message(topic, b"1"))
            await recorder.until_done(1, 15)
            relay.half_open()
            await producer.publish(Message(topic, b"2"))
            await eventually(lambda: b"2" in recorder.values, 30, "the consumer is back")
            assert (await broker.health()).ok


async def test_health_says_that_a_connection_is_silent(
    servicebus: ServiceBusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Relay(servicebus.ports[0]) as relay, connect(through(relay, servicebus)) as broker:
        assert (await broker.health()).ok
        relay.half_open()
        health = await broker.health()
        assert not health.ok
        assert "did not answer" in str(health.reason)


async def test_an_idle_connection_stays(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both say something often enough: the service is asked to, and so are we."""
    monkeypatch.setattr(connection, "SILENCE", 1.0)
    monkeypatch.setattr(connection, "LOOK", 0.1)
    async with CountingRelay(servicebus.ports[0]) as relay, connect(through(relay, servicebus)) as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            looks = 0
            lost = client_of(broker)._connection.lost  # type: ignore[union-attr]
            while looks < 30:
                await asyncio.wait({lost}, timeout=0.1)
                looks += 1
            assert not lost.done()
            await broker.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)
        assert relay.count == 1


async def test_a_loop_that_stood_still_takes_no_connection_for_lost(
    servicebus: ServiceBusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE", 0.5)
    monkeypatch.setattr(connection, "LOOK", 0.1)
    async with CountingRelay(servicebus.ports[0]) as relay, connect(through(relay, servicebus)) as broker:
        subprocess.run(["sleep", "1"], check=True)  # noqa: ASYNC221 - that is the point
        assert (await broker.health()).ok
        assert relay.count == 1


@pytest.mark.parametrize("size", [1, 3])
async def test_frames_may_come_in_any_pieces(servicebus: ServiceBusServer, topic: str, size: int) -> None:
    async with Relay(servicebus.ports[0]) as relay, connect(through(relay, servicebus)) as broker:
        relay.sliced(size)
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await broker.producer().publish_batch([Message(topic, b"x") for _ in range(3)])
            await recorder.until_done(3, 30)


async def test_a_message_larger_than_a_frame_arrives(servicebus: ServiceBusServer, topic: str) -> None:
    large = bytes(range(256)) * 900
    async with connect(servicebus.url) as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await broker.producer().publish(Message(topic, large))
            [found] = await recorder.until_done(1, 15)
        assert found.value == large


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not AMQP"),
        (b"AMQP\x00\x00\x09\x01", "not AMQP"),
        (SASL + b"\xff\xff\xff\xff\x02\x01\x00\x00", "not AMQP"),
        (SASL + b"\x00\x00\x00\x0c\x02\x01\x00\x00\x01\x01\x01\x01", "not AMQP"),
        (b"", "hung up"),
    ],
)
async def test_what_speaks_no_amqp_is_said_in_a_sentence(said: bytes, expected: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(SASL))
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, opening = await asyncio.get_running_loop().create_connection(
            lambda: Connection("here"), "127.0.0.1", port
        )
        with pytest.raises(AmqpError, match=expected):
            await asyncio.wait_for(opening.opened(), 10)
        await opening.close()


async def test_what_comes_over_a_link_after_its_end_is_nobodys(broker: Broker, topic: str) -> None:
    """The service gives it to somebody else: who handles it here would not be the only one."""
    await broker.declare(topic, groups=["billing"])
    arrived: list[bytes] = []
    link = await client_of(broker).receiver(
        f"{topic}/Subscriptions/billing", lambda _, __, payload: arrived.append(payload)
    )
    link.ask(10)
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    link.received(TRANSFER, [0, 0, b"0123456789abcdef", 0, False, False, *[None] * 8], b"late")
    await closing
    assert arrived == []


# --- rights


async def test_rights_are_shown_anew_while_a_consumer_only_receives(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "EARLY", 0.1)
    monkeypatch.setattr(rights, "HOUR", 0.05)
    shown = 0
    token_for = rights.token_for

    async def counted(audience: str, settings: Settings, credential: object) -> tuple[str, str, float]:
        nonlocal shown
        shown += 1
        return await token_for(audience, settings, credential)

    async with connect(servicebus.url) as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            monkeypatch.setattr(client, "token_for", counted)
            await eventually(lambda: shown >= 2, 15, "rights are shown again and again")
            await broker.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)


# --- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server of 127.0.0.1 needs, and the file to trust."""
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    key, trusted = tmp_path / "key.pem", tmp_path / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", trusted, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(trusted, key)
    return context, trusted


def secured(servicebus: ServiceBusServer, port: int) -> str:
    """The URL of a way to the server by TLS, without its management API."""
    login = servicebus.url.partition("?")[2].partition("&emulator")[0]
    return f"servicebus://127.0.0.1?{login}&endpoint=127.0.0.1:{port}&declare=false"


async def test_messages_go_over_tls(
    servicebus: ServiceBusServer, certificate: tuple[ssl.SSLContext, Path], broker: Broker, topic: str
) -> None:
    context, trusted = certificate
    await broker.declare(topic, groups=["billing"])
    async with Relay(servicebus.ports[0], tls=context) as relay:
        url = f"{secured(servicebus, relay.port)}&ca={trusted}"
        recorder = Recorder()
        async with (
            connect(url) as safe,
            safe.consumer(topic, group="billing", handler=recorder, dead_letter=None),
        ):
            await broker.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)


async def test_a_certificate_that_nobody_signed_is_refused(
    servicebus: ServiceBusServer, certificate: tuple[ssl.SSLContext, Path]
) -> None:
    async with Relay(servicebus.ports[0], tls=certificate[0]) as relay:
        with pytest.raises(BrokerUnavailable, match="certificate"):
            await connect(f"{secured(servicebus, relay.port)}&publish_timeout=5").open()


# --- websockets


@pytest.fixture
async def web(
    servicebus: ServiceBusServer, certificate: tuple[ssl.SSLContext, Path]
) -> AsyncIterator[tuple[int, Path]]:
    """The port of a way to the server by secured websockets, and the file to trust."""
    from aiohttp import WSMsgType, web  # noqa: PLC0415

    async def serve(request: web.Request) -> web.WebSocketResponse:
        assert request.path == "/$servicebus/websocket"
        socket = web.WebSocketResponse(protocols=("AMQPWSB10",))
        await socket.prepare(request)
        reader, writer = await asyncio.open_connection("127.0.0.1", servicebus.ports[0])

        async def back() -> None:
            while data := await reader.read(65_536):
                await socket.send_bytes(data)
            await socket.close()

        answering = asyncio.create_task(back())
        try:
            async for message in socket:
                assert message.type is WSMsgType.BINARY
                writer.write(message.data)
        finally:
            answering.cancel()
            writer.transport.abort()
        return socket

    application = web.Application()
    application.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate[0]).start()
    try:
        yield runner.addresses[0][1], certificate[1]
    finally:
        await runner.cleanup()


async def test_messages_go_over_websockets_which_are_closed_afterwards(
    servicebus: ServiceBusServer,
    web: tuple[int, Path],
    broker: Broker,
    topic: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port, trusted = web
    await broker.declare(topic, groups=["billing"])
    recorder = Recorder()
    async with (
        connect(f"{secured(servicebus, port)}&ca={trusted}&websockets=true") as remote,
        remote.consumer(topic, group="billing", handler=recorder, dead_letter=None),
    ):
        await broker.producer().publish_batch(keyed(topic, 50, 5))
        await recorder.until_done(50, 15)
    assert "did not disconnect" not in caplog.text


async def test_a_websocket_that_cannot_be_had_is_an_outage(certificate: tuple[ssl.SSLContext, Path]) -> None:
    url = f"servicebus://127.0.0.1?key_name=a&key=b&endpoint=127.0.0.1:1&websockets=true&ca={certificate[1]}"
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await connect(f"{url}&publish_timeout=5").open()


async def test_a_service_bus_for_tests_of_users_can_be_had(
    servicebus_container: RunningServiceBus, topic: str
) -> None:
    recorder = Recorder()
    async with (
        connect(servicebus_container.url) as broker,
        broker.consumer(topic, group="billing", handler=recorder, dead_letter=None),
    ):
        await broker.producer().publish(Message(topic, b"x"))
        await recorder.until_done(1, 15)
