"""A cluster, sentinels with a failover, replicas, logins and TLS: on real processes."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("redis")

from things_kit import BrokerUnavailable, ConfigError, Message, PublishError, RetryPolicy, connect
from things_kit.testing.conformance import Target
from things_kit.testing.conformance.delivery import DeliverySuite
from things_kit.testing.conformance.order import OrderSuite
from things_kit.testing.conformance.outcomes import OutcomeSuite
from things_kit.testing.conformance.recorder import Recorder, failing
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable, debian
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.redis import RedisServer

SECRET = "s3cret-geheim"
QUICK = RetryPolicy(attempts=3, first=0.02, limit=0.1, jitter=0.0)

Start = Callable[..., RedisServer]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts servers, which are ended with the module."""
    with ExitStack() as running:

        def started(*settings: Any, ports: list[int] | None = None) -> RedisServer:
            try:
                return running.enter_context(RedisServer(settings=settings, ports=ports))
            except ServerUnavailable as reason:
                unavailable(reason)
                raise

        yield started


def until(done: Callable[[], bool], what: str) -> None:
    """Ask again until it is so; nothing tells us of it."""
    asyncio.run(eventually(done, 20, what))


@pytest.fixture(scope="module")
def cluster(start: Start) -> list[RedisServer]:
    """Three nodes, each with a third of the slots."""
    nodes: list[RedisServer] = []
    for first, last in ((0, 5460), (5461, 10922), (10923, 16383)):
        [bus] = free_ports(1)
        node = start("--cluster-enabled", "yes", "--cluster-port", str(bus))
        assert node.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last)) == "+OK"
        if nodes:
            assert node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port), str(nodes[0].bus)) == "+OK"  # type: ignore[attr-defined]
        node.bus = bus  # type: ignore[attr-defined]
        nodes.append(node)

    def knows_all(node: RedisServer) -> bool:
        return len(node.lines("CLUSTER", "NODES")) >= 3 and "cluster_state:ok" in node.lines(
            "CLUSTER", "INFO"
        )

    until(lambda: all(map(knows_all, nodes)), "the cluster is well")
    return nodes


def at(*nodes: RedisServer, **options: object) -> str:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return f"redis://{hosts}?" + "&".join(f"{name}={value}" for name, value in options.items())


@pytest.mark.parametrize("word", ["orders", "{tag}orders", "or}d{ers", "a{}b", "{", "a}b"])
async def test_in_a_cluster_a_topic_of_any_name_has_its_retries_beside_it(
    cluster: list[RedisServer], word: str
) -> None:
    topic = f"{word}-{uuid4().hex}"
    async with connect(at(*cluster, cluster="true")) as broker:
        recorder = Recorder(failing(1))
        messages = [Message(topic, b"%d" % n, key=b"%d" % (n % 5)) for n in range(50)]
        await broker.producer().publish_batch(messages)
        delayed = RetryPolicy(attempts=3, first=0.02, limit=0.1, jitter=0.0, mode="delayed")
        async with broker.consumer(topic, group="g}{", handler=recorder, concurrency=4, retry=delayed):
            await recorder.until_done(50, 15)

            async def settled() -> bool:
                return await broker.lag(topic, "g}{") == 0

            await eventually(settled, 15)
        await broker.remove(topic)
        await broker.remove(f"{topic}-dlq")


@pytest.mark.parametrize("word", ["orders", "{tag}orders", "or}d{ers"])
async def test_in_a_cluster_a_topic_of_any_name_has_what_comes_later_beside_it(
    cluster: list[RedisServer], word: str
) -> None:
    topic = f"{word}-{uuid4().hex}"
    async with connect(at(*cluster, cluster="true")) as broker:
        recorder, producer = Recorder(), broker.producer()
        async with broker.consumer(topic, group="g", handler=recorder):
            await producer.publish(Message(topic, b"cancelled"), after=60, schedule_id="a")
            assert [each.schedule_id for each in await broker.schedules(topic)] == ["a"]
            assert await broker.cancel(topic, "a")
            later = [Message(topic, b"%d" % n, key=b"k") for n in range(20)]
            await producer.publish_batch(later, after=0.1)
            assert [m.value for m in await recorder.until_done(20, 15)] == [m.value for m in later]
        await broker.remove(topic)


async def test_in_a_cluster_one_batch_may_have_topics_of_several_nodes(cluster: list[RedisServer]) -> None:
    topics = [f"orders-{n}-{uuid4().hex}" for n in range(12)]
    async with connect(at(cluster[1], cluster="true")) as broker:
        await broker.producer().publish_batch([Message(topic, b"x") for topic in topics])
        assert [await broker.lag(topic, "g") for topic in topics] == [1] * 12
        assert (await broker.health()).ok


async def test_a_cluster_whose_node_is_killed_under_load_loses_nothing(cluster: list[RedisServer]) -> None:
    topics = [f"orders-{n}-{uuid4().hex}" for n in range(6)]  # of all nodes, with a high probability
    messages = [Message(topics[n % 6], b"x", key=b"%d" % (n % 50), id=str(n)) for n in range(3000)]
    recorder = Recorder()
    url = at(*cluster, cluster="true", timeout=1, lease=1)
    async with (
        connect(url) as broker,
        broker.consumer(topics, group="g", handler=recorder, concurrency=8, retry=QUICK),
    ):
        producer = broker.producer()
        await producer.publish_batch(messages[:1500])
        await eventually(lambda: recorder.done, 15)
        await asyncio.to_thread(cluster[0].kill)
        publishing = asyncio.create_task(producer.publish_batch(messages[1500:]))
        await asyncio.to_thread(cluster[0].start)
        await publishing
        await eventually(lambda: len({message.id for message in recorder.done}) == 3000, 30)

        async def settled() -> bool:
            return [await broker.lag(topic, "g") for topic in topics] == [0] * 6

        await eventually(settled, 15)


class TestRedisCluster(DeliverySuite, OutcomeSuite, OrderSuite):
    """What a cluster could do otherwise: it has the same scripts, but its own way to the node of a topic."""

    @pytest.fixture
    def target(self, cluster: list[RedisServer]) -> Target:
        return Target(url=at(*cluster, cluster="true"), lease_options={"lease": "0.5"})


@pytest.fixture
def pair(start: Start) -> tuple[RedisServer, RedisServer]:
    """A master and its replica."""
    master = start("--repl-diskless-sync-delay", "0")  # five seconds by default, for more replicas to come
    replica = start("--replicaof", "127.0.0.1", str(master.port))
    until(lambda: "master_link_status:up" in replica.lines("INFO", "replication"), "it replicates")
    return master, replica


async def test_with_wait_replicas_a_publish_is_confirmed_when_they_have_it(
    pair: tuple[RedisServer, RedisServer],
) -> None:
    master, replica = pair
    async with connect(at(master, wait_replicas=1, wait_timeout=5)) as broker:
        await broker.producer().publish(Message("orders", b"x"))
    assert replica.ask("XLEN", "orders") == ":1"
    async with connect(at(master, wait_replicas=2, wait_timeout=0.05)) as broker:
        with pytest.raises(PublishError, match="1 of 2 replicas"):
            await broker.producer().publish(Message("orders", b"x"))


async def test_sentinels_lead_to_the_next_master(pair: tuple[RedisServer, RedisServer]) -> None:
    master, replica = pair
    with Sentinel(master.port) as sentinel:
        async with connect(at(sentinel, sentinel="orders", timeout=1)) as broker:
            recorder = Recorder()
            async with broker.consumer("orders", group="g", handler=recorder, retry=QUICK):
                producer = broker.producer()
                await producer.publish(Message("orders", b"before"))
                await recorder.until_done(1, 15)
                await asyncio.to_thread(
                    until_thread, lambda: "+" in sentinel.ask("SENTINEL", "FAILOVER", "orders")
                )
                await eventually(lambda: "role:master" in replica.lines("INFO", "replication"), 30)
                await producer.publish(Message("orders", b"after"))
                await eventually(lambda: b"after" in recorder.values, 30)


def until_thread(done: Callable[[], bool]) -> None:
    until(done, "the sentinel begins")


class Sentinel(RedisServer):
    """One sentinel, which is the majority by itself."""

    def __init__(self, master: int) -> None:
        super().__init__()
        self._master = master

    def prepare(self) -> None:
        (self.folder / "sentinel.conf").write_text(
            f"bind 127.0.0.1\nport {self.port}\nsentinel monitor orders 127.0.0.1 {self._master} 1\n"
            "sentinel down-after-milliseconds orders 500\nsentinel failover-timeout orders 5000\n"
        )

    def command(self) -> list[str | Path]:
        return [debian.program("redis-server", "redis-server"), self.folder / "sentinel.conf", "--sentinel"]

    def check(self) -> None:
        if "num-slaves" not in self.lines("SENTINEL", "MASTER", "orders"):
            raise ValueError("it does not know its master yet")


# --- logins and TLS


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    trusted, key = folder / "ca.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", trusted],
        check=True, capture_output=True,
    )  # fmt: skip
    return trusted, key


@pytest.fixture(scope="module")
def secure(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """HOST:PORT of a listener with TLS that knows alice, and the certificate to trust."""
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    trusted, key = certificate(tmp_path_factory.mktemp("secure"))
    [port] = free_ports(1)
    start(
        "--tls-port", str(port), "--tls-cert-file", trusted, "--tls-key-file", key, "--tls-ca-cert-file", trusted,
        "--tls-auth-clients", "no", "--user", "alice", "on", f">{SECRET}", "~*", "&*", "+@all",
        "--user", "bob", "on", ">b", "~*", "&*", "+@all", "-xadd",
    )  # fmt: skip
    return f"127.0.0.1:{port}", trusted


async def test_with_login_and_certificate_messages_flow(secure: tuple[str, Path]) -> None:
    address, trusted = secure
    recorder = Recorder()
    url = f"rediss://alice:{SECRET}@{address}/0?ca={trusted}"
    async with connect(url) as broker, broker.consumer("orders", group="billing", handler=recorder):
        await broker.producer().publish(Message("orders", b"x"))
        await recorder.until_done(1, 15)


async def test_a_wrong_password_is_said_so_at_once(
    secure: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    address, trusted = secure
    caplog.set_level("DEBUG")
    with pytest.raises(ConfigError, match="does not accept this login") as raised:
        async with connect(f"rediss://alice:wrong-hunter2@{address}?ca={trusted}"):
            pass
    assert "hunter2" not in f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"


async def test_a_missing_password_is_said_so_at_once(start: Start) -> None:
    with pytest.raises(ConfigError, match="Redis asks for a user and password, and the URL has none"):
        await connect(start("--requirepass", SECRET).url).open()


async def test_what_a_user_may_not_do_is_said(secure: tuple[str, Path]) -> None:
    address, trusted = secure
    async with connect(f"rediss://bob:b@{address}?ca={trusted}") as broker:
        with pytest.raises(PublishError, match="does not let this user"):
            await broker.producer().publish(Message("orders", b"x"))


async def test_a_certificate_of_strangers_is_not_trusted(secure: tuple[str, Path]) -> None:
    address, _ = secure
    with pytest.raises((BrokerUnavailable, ConfigError), match=r"(?i)certificate"):
        async with connect(f"rediss://alice:{SECRET}@{address}?publish_timeout=1"):
            pass


async def test_speaking_plainly_to_tls_ends_in_time(secure: tuple[str, Path]) -> None:
    address, _ = secure
    with pytest.raises(BrokerUnavailable):
        async with connect(f"redis://{address}?publish_timeout=1"):
            pass
