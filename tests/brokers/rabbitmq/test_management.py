"""Which topics and groups there are, by the management API of a real RabbitMQ; and what is said where there is none."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pika")

from typer.testing import CliRunner, Result

from things_kit import ConfigError, Message, UnsupportedError, connect
from things_kit.brokers.rabbitmq.management import places
from things_kit.brokers.rabbitmq.options import API_PORTS as PORTS
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.cli.app import app
from things_kit.engine.looking import topics_of
from things_kit.engine.url import BrokerURL
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.rabbitmq import RabbitMQServer


class ManagedRabbitMQServer(RabbitMQServer):
    """Its plugin is a part of the package, and needs nothing more."""

    port_count = 5
    plugins = ("rabbitmq_management",)

    def __init__(self) -> None:
        super().__init__()
        self._settings |= {
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(self.ports[4]),
            "management_agent.disable_metrics_collector": "true",  # names are all that is asked for
        }

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.ports[4]}"

    def check(self) -> None:
        """As of any other; and the API listens, which begins a moment later."""
        super().check()
        socket.create_connection(("127.0.0.1", self.ports[4]), timeout=5).close()


@pytest.fixture(scope="module")
def managed() -> Iterator[ManagedRabbitMQServer]:
    server = ManagedRabbitMQServer()
    try:
        try:
            server.start()
        except ServerUnavailable as reason:
            unavailable(reason)
        yield server
    finally:
        server.kill()  # with this plugin a polite stop takes five seconds more
        server.terminate()


GROUPS = ["billing", "a.b%c"]


@pytest.fixture
def url(managed: ManagedRabbitMQServer) -> str:
    """Of an environment of the test's own: others use the server too."""
    return f"{managed.url}?management={managed.management}&topic_prefix=test-{uuid4().hex[:8]}-"


@pytest.fixture
def topic(url: str) -> Iterator[str]:
    """A topic with two groups, each with two messages."""
    name = "eu.orders"

    async def declared() -> None:
        async with connect(url) as broker:
            await broker.declare(name, groups=GROUPS)
            await broker.producer().publish_batch([Message(name, b"1"), Message(name, b"2")])

    async def removed() -> None:
        async with connect(url) as broker:
            await broker.remove(name)

    asyncio.run(declared())
    yield name
    asyncio.run(removed())


@pytest.fixture
def plain(managed: ManagedRabbitMQServer, url: str) -> str:
    """The URL of a user who publishes and consumes, and is no administrator."""
    guest = {"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"}
    for path, body in (
        ("users/shop", {"password": "s3cret", "tags": ""}),
        ("permissions/%2F/shop", dict.fromkeys(("configure", "write", "read"), ".*")),
    ):
        connection = HTTPConnection("127.0.0.1", managed.ports[4], timeout=30)
        connection.request("PUT", f"/api/{path}", json.dumps(body), guest)
        assert connection.getresponse().status in {201, 204}
        connection.close()
    return url.replace("guest:guest", "shop:s3cret")


@pytest.fixture
def stranger() -> Iterator[Callable[..., str]]:
    """Something else that answers HTTP; returns where."""
    running: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes, **headers: str) -> str:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        running.append(server)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def cli(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def names(url: str) -> list[str]:
    async def look() -> list[str]:
        async with connect(url) as broker:
            return await topics_of(broker)

    return asyncio.run(look())


def test_topics_and_their_groups_are_told_with_what_waits(url: str, topic: str) -> None:
    told = [row.split() for row in cli("topics", url).stdout.splitlines()]
    assert told == [["topic", "group", "lag"], [topic, "a.b%c", "2"], ["billing", "2"]]


def test_a_topic_without_groups_is_told_too(url: str) -> None:
    cli("declare", url, "unheard")
    assert cli("topics", url, "--json").stdout == '{"topic": "unheard", "group": null, "lag": null}\n'


def test_without_a_prefix_all_that_could_be_topics_are_told(url: str, topic: str) -> None:
    own, prefix = url.split("&topic_prefix=")
    told = names(own)
    assert f"{prefix}{topic}" in told
    assert not [name for name in told if name.startswith(("amq.", ".things-kit."))]


def test_a_typing_error_is_answered_with_what_there_is(url: str, topic: str) -> None:
    typo = cli("tail", url, f"{topic}x", "--limit", "1")
    assert typo.exit_code == 1
    assert f"there is no topic '{topic}x'; there is: {topic}" in typo.stderr
    earlier = cli("tail", url, topic, "--from", "earliest")
    assert earlier.stderr.startswith("things-kit: amqp://")
    assert "keeps nothing for those who come later: leave --from out" in earlier.stderr
    group = cli("lag", url, topic, "biling")
    assert f"{topic} has no group 'biling'; there are: a.b%c, billing" in group.stderr
    assert cli("lag", url, topic, "billing").stdout == "2\n"
    assert topic in cli("doctor", url, "--topic", f"{topic}x").stdout


def test_a_user_without_the_right_is_told_so_and_a_typing_error_is_seen_all_the_same(
    plain: str, topic: str
) -> None:
    topics = cli("topics", plain)
    assert topics.exit_code == 2
    assert "refuses the user 'shop'" in topics.stderr
    assert "needs the tag 'management'" in topics.stderr
    typo = cli("lag", plain, f"{topic}x", "billing")
    assert typo.stderr.strip().endswith(f"there is no topic '{topic}x'")
    group = cli("lag", plain, topic, "biling")
    assert group.stderr.strip().endswith(f"{topic} has no group 'biling'")
    assert cli("lag", plain, topic, "billing").stdout == "2\n"


def test_another_user_may_ask(plain: str, topic: str) -> None:
    assert topic in names(plain.replace("management=http://", "management=http://guest:guest@"))


def test_a_wrong_password_of_the_api_is_in_no_sentence(url: str) -> None:
    asked = cli("topics", url.replace("management=http://", "management=http://guest:s3cret@"))
    assert (asked.exit_code, "s3cret" in asked.output + asked.stderr) == (2, False)
    assert "refuses the user 'guest'" in asked.stderr


def test_without_the_plugin_it_is_said_how_names_can_be_had(managed: ManagedRabbitMQServer) -> None:
    asked = cli("topics", f"{managed.url}?management=http://127.0.0.1:1")
    assert asked.exit_code == 1
    assert "there is no management API at http://127.0.0.1:1 (" in asked.stderr
    assert "enable the plugin rabbitmq_management" in asked.stderr


def test_the_api_of_another_broker_is_not_believed(
    managed: ManagedRabbitMQServer, stranger: Callable[..., str]
) -> None:
    """Of two on one machine only one can have the usual port."""
    at = stranger(200, b'{"name": "rabbit@other"}')
    with pytest.raises(UnsupportedError, match=f"at {at} is that of 'rabbit@other', .*say where its own is"):
        names(f"{managed.url}?management={at}")


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_what_is_no_management_api_is_said_and_gets_nobody_elsewhere(
    managed: ManagedRabbitMQServer, stranger: Callable[..., str], status: int
) -> None:
    at = stranger(status, b"<html>", Location=f"{managed.management}/api/cluster-name")
    with pytest.raises(UnsupportedError, match=f"with status {status}, is no management API"):
        names(f"{managed.url}?management={at}")


def test_names_that_the_url_gives_are_not_ours_to_list(managed: ManagedRabbitMQServer) -> None:
    with pytest.raises(UnsupportedError, match="named by the URL"):
        names(f"{managed.url}?queue=theirs")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://shop:pw@a,b:5673/", [f"http://a:{PORTS['http']} shop pw", f"http://b:{PORTS['http']} shop pw"]),
        ("amqps://shop:pw@a/", [f"https://a:{PORTS['https']} shop pw"]),
        ("amqp://[::1]/", [f"http://[::1]:{PORTS['http']} guest guest"]),
        ("amqp://shop:pw@a/?management=https://b", [f"https://b:{PORTS['https']} shop pw"]),
        ("amqp://shop:pw@a/?management=http://x:%40@b:80/rabbit/", ["http://b:80/rabbit x @"]),
    ],
)  # fmt: skip
def test_it_is_asked_where_the_broker_is_unless_the_url_says_where(url: str, expected: list[str]) -> None:
    found = places(Settings.from_url(BrokerURL.parse(url)))
    assert [f"{each} {each.user} {each.password.reveal()}" for each in found] == expected


@pytest.mark.parametrize("wrong", ["15672", "localhost:15672", "ftp://a", "http://", "http://pw@a"])
def test_what_is_no_address_is_refused_with_what_it_should_be(wrong: str) -> None:
    with pytest.raises(ConfigError, match="management must be http://HOST:PORT"):
        connect(f"amqp://a/?management={wrong}")


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="the port of 'a:99999' is not from 1 to 65535"):
        connect("amqp://a/?management=http://a:99999")
