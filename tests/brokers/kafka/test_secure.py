"""Logins and TLS, against a listener with a certificate made for the test."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("confluent_kafka")

from things_kit import BrokerUnavailable, ConfigError, Message, connect
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.process import free_ports

SECRET = "s3cret-geheim"


def keytool(*words: str | Path) -> None:
    subprocess.run(["keytool", *map(str, words)], check=True, capture_output=True)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A keystore for the broker, and the certificate that its clients are to trust."""
    store, trusted = folder / "broker.p12", folder / "ca.pem"
    login = ("-keystore", store, "-storetype", "PKCS12", "-storepass", SECRET, "-alias", "broker")
    keytool("-genkeypair", *login, "-keyalg", "RSA", "-dname", "CN=127.0.0.1", "-ext", "SAN=ip:127.0.0.1")
    keytool("-exportcert", *login, "-rfc", "-file", trusted)
    return store, trusted


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """HOST:PORT of a SASL_SSL listener that knows alice, and the certificate to trust."""
    if shutil.which("keytool") is None:
        unavailable(ServerUnavailable("a certificate needs keytool, which comes with Java"))
    folder = tmp_path_factory.mktemp("secure")
    store, trusted = certificate(folder)
    ports = free_ports(3)
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    listeners = {
        "listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{ports[1]},SASL_SSL://127.0.0.1:{ports[2]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},SASL_SSL://127.0.0.1:{ports[2]}",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{plain} user_alice="{SECRET}";',
        "ssl.keystore.location": str(store),
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.password": SECRET,
        "ssl.key.password": SECRET,
    }
    server = KafkaServer(folder / "kafka", ports, listeners)
    try:
        try:
            server.start()
        except ServerUnavailable as reason:
            unavailable(reason)
        yield f"127.0.0.1:{ports[2]}", trusted
    finally:
        server.terminate()


async def test_with_login_and_certificate_messages_flow(secure: tuple[str, Path]) -> None:
    address, trusted = secure
    received: list[Message] = []

    async def handle(message: Message) -> None:
        received.append(message)

    url = f"kafka://alice:{SECRET}@{address}?ca={trusted}&sasl_mechanism=PLAIN"
    async with connect(url) as broker, broker.consumer("orders", group="billing", handler=handle):
        await broker.producer().publish(Message("orders", b"x"))
        await eventually(lambda: received, 30)


async def test_a_wrong_password_is_said_so_at_once(
    secure: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    address, trusted = secure
    caplog.set_level("DEBUG")
    with pytest.raises(ConfigError, match="does not accept this login") as raised:
        async with connect(f"kafka://alice:wrong-hunter2@{address}?ca={trusted}"):
            pass
    assert "hunter2" not in f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"


async def test_a_certificate_of_strangers_is_said_so_at_once(secure: tuple[str, Path]) -> None:
    address, _ = secure
    with pytest.raises(ConfigError, match="check security_protocol and ca"):
        async with connect(f"kafka://alice:{SECRET}@{address}"):
            pass


async def test_speaking_plainly_to_tls_ends_in_time(secure: tuple[str, Path]) -> None:
    address, _ = secure
    with pytest.raises(BrokerUnavailable):
        async with connect(f"kafka://{address}?publish_timeout=1"):
            pass
