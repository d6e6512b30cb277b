import traceback
from typing import Literal
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from things_kit import ConfigError
from things_kit.engine.secrets import Secret
from things_kit.engine.url import BrokerURL


class Options(msgspec.Struct, frozen=True):
    size: int = 5
    fast: bool = False
    mode: Literal["a", "b"] = "a"
    key: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size must be from 1")


def test_a_url_is_taken_apart() -> None:
    url = BrokerURL.parse(
        "kafka://me:p%40ss%2F@one:9092,two:9093/v%2Fhost?size=7&fast=true&publish_timeout=1.5&declare=false"
    )
    assert (url.scheme, url.hosts, url.path) == ("kafka", ("one:9092", "two:9093"), "/v/host")
    assert (url.username, url.password) == ("me", "p@ss/")
    assert (url.engine.publish_timeout, url.engine.declare) == (1.5, False)
    assert url.options(Options) == Options(size=7, fast=True)


def test_a_url_without_login_host_or_query() -> None:
    url = BrokerURL.parse("memory://")
    assert (url.scheme, url.hosts, url.path, url.username, url.password, url.query) == (
        "memory",
        (),
        "",
        None,
        None,
        {},
    )
    assert (url.engine.publish_timeout, url.engine.declare) == (30.0, True)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (5, "a broker's URL is a string such as 'sqlite:///events.db', not int"),
        (None, "not NoneType"),
        ("", "this is not a broker's URL: expected SCHEME://"),
        ("events.db", "this is not a broker's URL"),
        ("sqlite:events.db", "this is not a broker's URL"),
        ("://host", "this is not a broker's URL"),
        ("kafka://[::1", "this is not a URL"),
        ("kafka://host?size", "this is not a URL"),
        ("kafka://host#x", "kafka://: a broker's URL has no '#' part; write '#' as %23"),
        ("kafka://host?a=1&a=2", "kafka://: the option 'a' is given more than once"),
        (
            "kafka://host?publish_timeout=soon",
            "kafka://host: option 'publish_timeout': Expected `float`, got `str`; it is 'soon'",
        ),
        ("kafka://host?publish_timeout=0", "kafka://host: publish_timeout must be more than 0 seconds"),
        ("kafka://host?publish_timeout=-7", "at most 31622400, a year; publish_timeout is '-7'"),
        ("kafka://host?unrouted=keep", "option 'unrouted': Invalid enum value 'keep'; it is 'keep'"),
        ("kafka://host?publish_timeout=nan", "publish_timeout must be more than 0 seconds"),
        ("kafka://host?declare=perhaps", "kafka://host: option 'declare': Expected `bool`"),
    ],
    ids=str,
)
def test_a_url_that_cannot_be_understood_is_refused_with_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        BrokerURL.parse(url)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (
            "sise=5",
            "kafka://host: unknown option 'sise'; known are declare, fast, key, mode, publish_timeout, size, topic_prefix, unrouted",
        ),
        ("size=five", "kafka://host: option 'size': Expected `int`, got `str`; it is 'five'"),
        ("size=" + "x" * 900, "got `str`; it is '" + "x" * 200 + "...'"),
        ("mode=c", "kafka://host: option 'mode': Invalid enum value"),
        ("size=0", "kafka://host: size must be from 1; size is '0'"),
    ],
)
def test_an_option_that_cannot_be_understood_is_refused_with_a_sentence(query: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        BrokerURL.parse(f"kafka://host?{query}").options(Options)
    assert sentence in str(raised.value)


SECRET = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(":/?#[]@!$&'()*+,;=%℀℆")),
    min_size=0,
    max_size=12,
).map(lambda text: f"SEC{text}RET")


def all_that_is_seen_of(url: str) -> str:
    try:
        parsed = BrokerURL.parse(url)
        shown = [repr(parsed), str(parsed), parsed.display, f"{parsed}"]
        try:
            parsed.options(Options)
        except ConfigError as error:
            shown += traceback.format_exception(error)
    except ConfigError as error:
        shown = traceback.format_exception(error)
    own = __file__
    return "\n".join(line for line in shown if own not in line)


@given(SECRET)
def test_a_password_is_carried_and_never_shown(secret: str) -> None:
    url = f"amqp://me:{quote(secret, safe='')}@host/v"
    assert BrokerURL.parse(url).password == secret
    assert "SEC" not in all_that_is_seen_of(url)


@given(SECRET)
def test_a_secret_option_is_carried_and_never_shown(secret: str) -> None:
    url = f"servicebus://host?key={quote(secret, safe='')}"
    assert BrokerURL.parse(url).options(Options).key == secret
    assert "SEC" not in all_that_is_seen_of(url)
    assert "SEC" not in all_that_is_seen_of(f"{url}&size=x")


def test_rich_shows_no_secret_either() -> None:
    """Typer prints the locals of a failed command with rich, which asks a Struct for its fields."""
    shown = pretty_repr(BrokerURL.parse("amqp://me:SECRET@host/v?key=SECRET"))
    assert "SECRET" not in shown


@pytest.mark.parametrize("character", list("/?#@[℀"))
def test_a_password_that_was_not_quoted_is_not_shown_either(character: str) -> None:
    shown = all_that_is_seen_of(f"amqp://me:SEC{character}RET@host/v?size=x")
    assert "SEC" not in shown
    assert "RET" not in shown


def test_a_secret_option_that_was_not_quoted_is_not_shown_either() -> None:
    assert "RET" not in all_that_is_seen_of("servicebus://host?key=SEC&RET&size=x")


def test_options_of_a_prefix_are_handed_on_as_they_are() -> None:
    url = BrokerURL.parse("kafka://host?conf.debug=cgrp&topic.x=a%3Db&size=7")
    assert url.options(Options, besides=("conf.", "topic.")) == Options(size=7)
    assert (url.prefixed("conf."), url.prefixed("topic.")) == ({"debug": "cgrp"}, {"x": "a=b"})
    assert url.prefixed("queue.") == {}


def test_an_unknown_option_is_told_of_the_prefixes_too() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown option 'config.x'; known are .*size, topic_prefix, unrouted, conf\.NAME"
    ):
        BrokerURL.parse("kafka://host?config.x=1").options(Options, besides=("conf.",))


@pytest.mark.parametrize("query", ["conf.=1", "conf.a%00b=1", "conf.a=%00"])
def test_an_option_of_a_prefix_has_a_name_and_is_text(query: str) -> None:
    with pytest.raises(ConfigError, match=r"expected conf\.NAME=VALUE, without null characters"):
        BrokerURL.parse(f"kafka://host?{query}").prefixed("conf.")


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "1e12"])
def test_a_publish_timeout_is_a_duration_that_ends(timeout: str) -> None:
    with pytest.raises(ConfigError, match="publish_timeout"):
        BrokerURL.parse(f"kafka://host?publish_timeout={timeout}")


class Guarded(msgspec.Struct, frozen=True):
    secret: Secret | None = None
    access_token: int = 0
    key: int = 0
    endpoint: str = ""

    def __post_init__(self) -> None:
        if self.endpoint:
            raise ValueError("endpoint and key cannot both be given")


@pytest.mark.parametrize(
    "query",
    ["access_token=SECRET", "key=SECRET", "key=7&endpoint=http://me:SECRET@host", "secret=SECRET&endpoint=x"],
)
def test_a_value_that_may_be_secret_is_not_quoted(query: str) -> None:
    with pytest.raises(ConfigError) as raised:
        BrokerURL.parse(f"kafka://host?{query}").options(Guarded)
    assert "SECRET" not in "".join(traceback.format_exception(raised.value, limit=0))


class Named(msgspec.Struct, frozen=True):
    routing_key: int = 0
    key_field: int = 0


@pytest.mark.parametrize("name", ["routing_key", "key_field"])
def test_a_name_with_key_in_it_is_not_therefore_secret(name: str) -> None:
    with pytest.raises(ConfigError, match="it is 'plain'"):
        BrokerURL.parse(f"kafka://host?{name}=plain").options(Named)
