"""What a URL may say."""

from importlib.util import find_spec

import pytest

from things_kit import ConfigError, connect
from things_kit.brokers.servicebus.options import Settings
from things_kit.engine.url import BrokerURL

NAMESPACE = "servicebus://shop.servicebus.windows.net"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{NAMESPACE}?key_name=a", "key_name and key go together"),
        (f"{NAMESPACE}?key_name=a&key=b&lease=3", "lease must be from 5 to 300"),
        (f"{NAMESPACE}?key_name=a&key=b&admin_port=1", "admin_port is an emulator's"),
        (f"{NAMESPACE}?key_name=a&key=b&mode=both", "mode"),
        (f"{NAMESPACE}?key_name=a&key=b&colour=red", "unknown option 'colour'"),
        (f"{NAMESPACE}/orders?key_name=a&key=b", "expected servicebus://HOST"),
        ("servicebus://a,b?key_name=a&key=b", "expected one namespace"),
        ("servicebus://user:geheim@a", "login is"),
        (f"{NAMESPACE}:5671?key_name=a&key=b", "no port"),
        (f"{NAMESPACE}?key_name=a&key=b&ca=/no/such/file", "cannot be read"),
        (f"{NAMESPACE}?key_name=a&key=b&endpoint=h:99999", "port of 'h:99999'"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_a_sentence(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        connect(url)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ("", "shop.servicebus.windows.net:5671"),
        ("&websockets=true", "shop.servicebus.windows.net:443"),
        ("&endpoint=10.0.0.4", "10.0.0.4:5671"),
        ("&endpoint=[::1]:15671", "[::1]:15671"),
    ],
)
def test_the_address_follows_from_the_options(options: str, address: str) -> None:
    settings = Settings.from_url(BrokerURL.parse(f"{NAMESPACE}?key_name=a&key=b{options}"))
    assert str(settings.address) == address


def test_the_key_is_in_no_repr() -> None:
    settings = Settings.from_url(BrokerURL.parse(f"{NAMESPACE}?key_name=a&key=Z2VoZWlt"))
    assert "Z2VoZWlt" not in f"{settings.options!r} {settings.url!r}"


async def test_without_a_key_and_without_azure_identity_it_says_what_to_install() -> None:
    if find_spec("azure.identity") is not None:
        pytest.skip("azure-identity is installed here")
    with pytest.raises(ConfigError, match="azure-identity"):
        await connect(NAMESPACE).open()
