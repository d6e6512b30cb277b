"""TLS, against an emulator with a certificate made for the test."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("aiobotocore")

from things_kit import ConfigError, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.sqs import REGION, SQSServer

SECRET = "s3cret-geheim"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The endpoint, and the certificate to trust."""
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    folder = tmp_path_factory.mktemp("secure")
    key, trusted = folder / "key.pem", folder / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", trusted, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = {"USE_SSL": "1", "MINISTACK_SSL_CERT": str(trusted), "MINISTACK_SSL_KEY": str(key)}
    server = SecureServer(folder / "sqs", free_ports(1), tls)
    try:
        try:
            server.start()
        except ServerUnavailable as reason:
            unavailable(reason)
        yield f"https://127.0.0.1:{server.ports[0]}", trusted
    finally:
        server.terminate()


class SecureServer(SQSServer):
    def check(self) -> None:
        """It accepts connections; whether TLS works is what is tested."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), timeout=5):
            pass


async def test_messages_go_over_tls(secure: tuple[str, Path]) -> None:
    endpoint, trusted = secure
    async with connect(f"sqs://{REGION}?endpoint={endpoint}&ca={trusted}") as broker:
        await broker.declare("orders", groups=["billing"])
        await broker.producer().publish(Message("orders", b"x"))
        assert await broker.lag("orders", group="billing") == 1


async def test_a_certificate_that_nobody_signed_is_refused(secure: tuple[str, Path]) -> None:
    endpoint, _ = secure
    with pytest.raises(ConfigError, match="check the endpoint, and the option ca") as raised:
        await connect(f"sqs://{REGION}?endpoint={endpoint}").open()
    assert SECRET not in str(raised.value)
