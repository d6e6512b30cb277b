"""Logins, rights and TLS, against a server with a certificate made for the test."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nats")

from things_kit import ConfigError, Message, PublishError, connect
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.nats import NATSServer

SECRET = "s3cret-geheim"

USERS = f"""
authorization {{ users: [
  {{ user: alice, password: "{SECRET}" }}
  {{ user: reader, password: "{SECRET}", permissions: {{ publish: {{ deny: "guarded" }} }} }}
] }}
"""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def running(settings: str) -> Iterator[NATSServer]:
    server = NATSServer(settings=settings)
    try:
        try:
            server.start()
        except ServerUnavailable as reason:
            unavailable(reason)
        yield server
    finally:
        server.terminate()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("secure"))


@pytest.fixture(scope="module")
def secure(ca: tuple[Path, Path]) -> Iterator[NATSServer]:
    cert, key = ca
    yield from running(f'tls {{ cert_file: "{cert}", key_file: "{key}", timeout: 5 }}\n{USERS}')


@pytest.fixture(scope="module")
def plain() -> Iterator[NATSServer]:
    yield from running(USERS)


@pytest.fixture(scope="module")
def with_token() -> Iterator[NATSServer]:
    yield from running(f'authorization {{ token: "{SECRET}" }}')


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_with_login_and_certificate_messages_flow(
    secure: NATSServer, ca: tuple[Path, Path], scheme: str
) -> None:
    seen = Recorder()
    url = f"{scheme}://alice:{SECRET}@{secure.address}?ca={ca[0]}"
    async with connect(url) as broker, broker.consumer(f"orders-{scheme}", group="g", handler=seen):
        await broker.producer().publish(Message(f"orders-{scheme}", b"x"))
        await seen.until_done(1, 15)


async def test_a_token_stands_in_the_place_of_the_user(with_token: NATSServer) -> None:
    async with connect(f"nats://{SECRET}@{with_token.address}") as broker:
        await broker.producer().publish(Message("orders", b"x"))


@pytest.mark.parametrize("login", ["alice:wrong-hunter2@", "wrong-hunter2@", ""])
async def test_a_wrong_login_is_said_so_at_once(
    plain: NATSServer, caplog: pytest.LogCaptureFixture, login: str
) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(ConfigError, match="does not accept this login") as raised:
        async with connect(f"nats://{login}{plain.address}"):
            pass
    assert "hunter2" not in f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"


async def test_a_certificate_of_strangers_is_said_so_at_once(secure: NATSServer) -> None:
    with pytest.raises(ConfigError, match="the TLS handshake failed"):
        async with connect(f"tls://alice:{SECRET}@{secure.address}"):
            pass


async def test_where_tls_was_asked_for_no_password_goes_to_a_server_without() -> None:
    """nats-py alone would say it in the clear."""
    heard = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"auth_required":true,"max_payload":1048576,"headers":true}\r\n')
        heard.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for login in (f"alice:{SECRET}", SECRET):
            with pytest.raises(ConfigError, match="speaks no TLS"):
                async with connect(f"tls://{login}@127.0.0.1:{port}"):
                    pass
    assert SECRET.encode() not in heard


async def test_what_a_user_may_not_publish_is_said_for_that_message(plain: NATSServer) -> None:
    async with connect(f"nats://reader:{SECRET}@{plain.address}") as broker:
        with pytest.raises(PublishError) as raised:
            await broker.producer().publish_batch(
                [Message("open", b"1"), Message("guarded", b"x"), Message("open", b"2")]
            )
        [(index, error)] = raised.value.failures.items()
        assert index == 1
        assert "may not publish to 'guarded'" in str(error)
        assert await broker.lag("open", "g") == 2


@pytest.mark.parametrize("option", ["ca", "cert", "credentials"])
async def test_a_file_that_cannot_be_used_is_said_so(plain: NATSServer, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        async with connect(f"nats://{plain.address}?{option}=/no/such/file"):
            pass
