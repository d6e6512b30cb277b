"""Logins and TLS, against a listener with a certificate made for the test."""

import datetime
import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("google.pubsub_v1")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from things_kit import BrokerUnavailable, ConfigError, Message, connect
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.servers.pubsub import PubSubServer

KNOWN = "key-of-alice"


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate(folder: Path, key: rsa.RSAPrivateKey) -> tuple[Path, Path]:
    """Files of a certificate for 127.0.0.1, which its clients are to trust, and of its key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(pem(key))
    return paths


def account(path: Path, key_id: str, key: rsa.RSAPrivateKey) -> Path:
    """The key file of a service account."""
    fields = {
        "type": "service_account",
        "project_id": "things-kit",
        "private_key_id": key_id,
        "private_key": pem(key).decode(),
        "client_email": "alice@things-kit.iam.gserviceaccount.com",
        "token_uri": "https://127.0.0.1:1/token",
    }
    path.write_text(json.dumps(fields))
    return path


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A URL with the certificate to trust, but no login, and a folder with `alice.json` and `mallory.json`."""
    folder = tmp_path_factory.mktemp("secure")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    cert = certificate(folder, key)
    account(folder / "alice.json", KNOWN, key)
    account(folder / "mallory.json", "key-of-mallory", key)
    with PubSubServer(folder / "server", certificate=cert, login=KNOWN) as server:
        yield f"pubsub://things-kit?endpoint={server.endpoint}&publish_timeout=5&ca={cert[0]}", folder


async def test_with_login_and_certificate_messages_flow(secure: tuple[str, Path]) -> None:
    url, folder = secure
    recorder = Recorder()
    async with (
        connect(f"{url}&credentials={folder / 'alice.json'}") as broker,
        broker.consumer("orders", group="billing", handler=recorder),
    ):
        await broker.producer().publish(Message("orders", b"x"))
        await recorder.until_done(1, 10)


async def test_a_wrong_login_is_said_so_at_once(
    secure: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    url, folder = secure
    caplog.set_level("DEBUG")
    with pytest.raises(ConfigError, match="does not accept these credentials") as raised:
        async with connect(f"{url}&credentials={folder / 'mallory.json'}"):
            pass
    shown = f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"
    assert "PRIVATE KEY" not in shown
    assert "Bearer" not in shown


async def test_no_login_where_one_is_wanted_is_said_so_at_once(secure: tuple[str, Path]) -> None:
    url, _ = secure
    with pytest.raises(ConfigError, match="does not accept these credentials"):
        async with connect(url):
            pass


async def test_a_certificate_of_strangers_is_said_so_at_once(secure: tuple[str, Path]) -> None:
    url, folder = secure
    strange = url.partition("&ca=")[0]
    with pytest.raises(ConfigError, match="check the option ca"):
        async with connect(f"{strange}&credentials={folder / 'alice.json'}"):
            pass


async def test_a_missing_file_of_certificates_is_said_so_at_once(secure: tuple[str, Path]) -> None:
    url, folder = secure
    with pytest.raises(ConfigError, match="cannot read"):
        async with connect(f"{url.partition('&ca=')[0]}&ca={folder / 'missing.pem'}"):
            pass


async def test_speaking_plainly_to_tls_ends_in_time(secure: tuple[str, Path]) -> None:
    url, _ = secure
    endpoint = url.partition("?")[2].split("&")[0]
    with pytest.raises(BrokerUnavailable):
        async with connect(f"pubsub://things-kit?{endpoint}&publish_timeout=1"):
            pass
