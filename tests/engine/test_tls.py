import shutil
import ssl
import subprocess
from pathlib import Path

import msgspec
import pytest

from things_kit import ConfigError
from things_kit.engine.secrets import Secret
from things_kit.engine.tls import TLSOptions, check_tls, tls_context
from things_kit.engine.url import BrokerURL
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable

URL = BrokerURL.parse("stones://host")


class StoneOptions(TLSOptions, frozen=True):
    size: int = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, its key, the same key encrypted, and another's key."""
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    folder = tmp_path_factory.mktemp("tls")
    for command in (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=host "
        "-keyout key.pem -out cert.pem",
        "ec -in key.pem -aes256 -passout pass:geheim -out locked.pem",
        "ecparam -genkey -name prime256v1 -noout -out other.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    (folder / "no.pem").write_text("no certificate")
    return folder


def options(files: Path, **names: str) -> TLSOptions:
    password = names.pop("key_password", None)
    paths = {option: str(files / name) for option, name in names.items()}
    return TLSOptions(**paths, key_password=Secret(password) if password is not None else None)


def test_a_driver_has_them_among_its_own() -> None:
    found = BrokerURL.parse("stones://host?ca=a.pem&size=7&key_password=geheim").options(StoneOptions)
    assert (found.ca, found.size, found.key_password) == ("a.pem", 7, Secret("geheim"))
    assert found.given() == ["ca", "key_password"]
    assert "geheim" not in repr(found)


def test_without_options_the_system_s_certificates_are_trusted() -> None:
    context = tls_context(URL, TLSOptions())
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


@pytest.mark.parametrize(
    "names",
    [
        {"ca": "cert.pem"},
        {"cert": "cert.pem", "key": "key.pem"},
        {"cert": "cert.pem", "key": "locked.pem", "key_password": "geheim"},
        {"cert": "both.pem"},
    ],
)
def test_files_are_used(files: Path, names: dict[str, str]) -> None:
    context = tls_context(URL, options(files, **names))
    assert ((("commonName", "host"),),) in [
        ca["subject"] for ca in context.get_ca_certs()
    ] or "ca" not in names


def test_the_name_of_the_host_may_be_left_unchecked() -> None:
    context = tls_context(URL, TLSOptions(), check_hostname=False)
    assert (context.check_hostname, context.verify_mode) == (False, ssl.CERT_REQUIRED)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"ca": "none.pem"}, r"option 'ca': the file '.*none.pem' cannot be read"),
        ({"ca": "."}, r"option 'ca': the file '.*' cannot be read"),
        ({"ca": "no.pem"}, "option 'ca': the file cannot be used"),
        ({"key": "key.pem"}, "the option 'key' needs 'cert'"),
        ({"key_password": "geheim"}, "the option 'key_password' needs 'cert'"),
        ({"cert": "cert.pem"}, "option 'cert' or 'key': the file cannot be used"),
        ({"cert": "cert.pem", "key": "other.pem"}, "option 'cert' or 'key': the file cannot be used"),
        ({"cert": "cert.pem", "key": "locked.pem"}, "option 'cert' or 'key': the file cannot be used"),
        (
            {"cert": "cert.pem", "key": "locked.pem", "key_password": "geheim?"},
            "option 'cert' or 'key': the file cannot be used",
        ),
    ],
)
def test_what_cannot_be_used_is_said_without_the_password(
    files: Path, names: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        tls_context(URL, options(files, **names))
    assert "geheim" not in str(raised.value)


def test_options_of_tls_need_a_scheme_with_tls(files: Path) -> None:
    given = options(files, ca="cert.pem")
    with pytest.raises(ConfigError, match="stone://host: the option 'ca' goes with stones://"):
        check_tls(msgspec.structs.replace(URL, scheme="stone"), given, secure="stones")
    check_tls(URL, given, secure="stones")
