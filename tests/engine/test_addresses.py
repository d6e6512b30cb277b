import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit import ConfigError
from things_kit.engine.addresses import Address, address, addresses
from things_kit.engine.url import BrokerURL


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("broker", "broker", 9092),
        ("broker:", "broker", 9092),
        ("broker:19092", "broker", 19092),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[::1]", "::1", 9092),
        ("[fe80::1%25eth0]:19092", "fe80::1%25eth0", 19092),
    ],
)
def test_a_host_is_taken_apart(text: str, host: str, port: int) -> None:
    assert address(text, 9092) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "::1",
        "a:b",
        "a:1:2",
        "[::1",
        "[::1]1",
        "[]:1",
        "[::1]:x",
        "a:0",
        "a:65536",
        "a:9999999999",
        "a:²",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        address(text, 9092)


@given(st.from_regex(r"[a-z0-9.-]+|[a-f0-9:]*:[a-f0-9:]*", fullmatch=True), st.integers(1, 65_535))
def test_an_address_is_written_as_it_is_read(host: str, port: int) -> None:
    assert address(str(Address(host, port)), 9092) == (host, port)


def test_the_hosts_of_a_url_have_its_order() -> None:
    url = BrokerURL.parse("kafka://b:1,a,[::1]:3")
    assert list(map(str, addresses(url, 9092))) == ["b:1", "a:9092", "[::1]:3"]


def test_a_url_without_a_host_may_have_a_default() -> None:
    assert addresses(BrokerURL.parse("redis:///0"), 6379, default="localhost", path="/DATABASE") == (
        ("localhost", 6379),
    )
    assert addresses(BrokerURL.parse("redis://:7000"), 6379, default="localhost") == (("localhost", 7000),)


@pytest.mark.parametrize(
    ("url", "path", "sentence"),
    [
        ("amqp:///shop", "/VHOST", r"amqp:///shop: expected amqp://HOST:PORT/VHOST, or several"),
        ("kafka://a/shop", "", r"kafka://a/shop: expected kafka://HOST:PORT, or several"),
        ("kafka://a:70000", "", r"kafka://a:70000: the port of 'a:70000' is not from 1 to 65535"),
    ],
)
def test_a_url_without_what_is_needed_is_refused(url: str, path: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        addresses(BrokerURL.parse(url), 9092, path=path)
