"""The brokers that can be soaked here, each with its server, a faulty network before it, and what it has of its own."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable, free_ports, run
from things_kit.testing.servers.pubsub import PROJECT, PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import VERSION as SQS_VERSION
from things_kit.testing.servers.sqs import SQSServer, sqs_url
from things_kit.testing.soak.plan import TOPIC

Switch: TypeAlias = Callable[[], None]
"""Does something to the broker, and blocks meanwhile."""


class Subject(msgspec.Struct, kw_only=True):
    """A broker to be soaked, and what can be done to it.

    Attributes:
        name: What it is called.
        about: What it really is: a server and its version, or a stand-in.
        url: What `connect` takes; through the relay where there is one.
        server: Its process, which can be killed, stopped and frozen; None where there is none.
        relay: The network before it; None where there is none.
        topic: The topic to be used.
        lease: Seconds after which what a frozen process held goes to others.
        quiet: Seconds that are longer than each heartbeat, lease and idle timeout of this broker.
        rest: Seconds after which its clients have given up connections that they do not use.
        across: Whether a key keeps its order across processes; None: as its capabilities say.
        whole_group: Whether a member that dies or freezes holds up what the others acknowledge, until it is missed.
        counts_given_back: Whether what a stopping process gives back counts as an attempt in others.
        gives_back_in_order: Whether what a stopping process gives back comes again before all that is later, in its order.
        durable: Whether what its server was given survives that it is killed.
        deletes: Whether the topic may be deleted, and declared again.
        add_partitions: Gives the topic more partitions, and returns how many it had; None where it has none.
        faults: More faults by name, each a switch to do it and one to undo it.
        prepare: `module:function` that each process calls before anything else, to register a driver of one's own.
    """

    name: str
    url: str
    about: str = ""
    server: ServerProcess | None = None
    relay: Relay | None = None
    topic: str = TOPIC
    lease: float = 5.0
    quiet: float = 20.0
    rest: float = 6.0
    across: bool | None = None
    whole_group: bool = False
    counts_given_back: bool = False
    gives_back_in_order: bool = False
    durable: bool = True
    deletes: bool = True
    add_partitions: Callable[[], int] | None = None
    faults: Mapping[str, tuple[Switch, Switch]] = {}
    prepare: str = ""


Opened: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Subject]]
"""Starts a subject, given a folder for what it needs."""


@asynccontextmanager
async def _started(server: ServerProcess, port: int, listen: int = 0) -> AsyncIterator[Relay]:
    """The server runs, and a relay leads to it."""
    try:
        await asyncio.to_thread(server.start)
        async with Relay(port, listen) as relay:
            yield relay
    finally:
        server.resume()
        await asyncio.to_thread(server.terminate)


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Subject]:
    """A file, on a disk of its own where that can be had, so that it can be full."""
    with _disk(folder / "disk") as disk:
        lock = _Lock(disk / "events.db")
        faults = {"file locked": (lock.take, lock.release)}
        if disk.is_mount():
            ballast = disk / "ballast"
            faults["disk full"] = (lambda: _fill(ballast), ballast.unlink)
        yield Subject(
            name="sqlite",
            about=f"a file, SQLite {sqlite3.sqlite_version}",
            url=f"sqlite:///{disk / 'events.db'}?lease=5",
            faults=faults,
        )


@asynccontextmanager
async def redis(_: Path) -> AsyncIterator[Subject]:
    """A Redis of its own."""
    server = RedisServer()
    async with _started(server, server.port) as relay:
        about = f"redis-server {_value(server.lines('INFO', 'server'), 'redis_version')}, append-only file"
        url = f"redis://127.0.0.1:{relay.port}/0?lease=10"
        yield Subject(name="redis", about=about, url=url, server=server, relay=relay, lease=10.0, quiet=25.0)


@asynccontextmanager
async def rabbitmq(_: Path) -> AsyncIterator[Subject]:
    """A RabbitMQ of its own."""
    server = _PatientRabbitMQ()
    async with _started(server, server.ports[0]) as relay:
        version = (await asyncio.to_thread(server.control, "version")).strip()
        url = f"amqp://guest:guest@127.0.0.1:{relay.port}/"
        # What a frozen process holds stays with it until both heartbeats are missed
        yield Subject(
            name="rabbitmq", about=f"RabbitMQ {version}, quorum queues", url=url, server=server, relay=relay,
            lease=21.0, quiet=35.0, counts_given_back=True,
        )  # fmt: skip


@asynccontextmanager
async def nats(_: Path) -> AsyncIterator[Subject]:
    """A NATS of its own."""
    server = NATSServer()
    async with _started(server, server.ports[0]) as relay:
        program = str(server.command()[0])
        version = await asyncio.to_thread(run, program, "--version")
        url = f"nats://127.0.0.1:{relay.port}?lease=10"
        yield Subject(
            name="nats", about=f"{version.strip()}, JetStream, file storage", url=url, server=server, relay=relay,
            lease=10.0, quiet=45.0, counts_given_back=True, gives_back_in_order=True,
        )  # fmt: skip


@asynccontextmanager
async def kafka(_: Path) -> AsyncIterator[Subject]:
    """A Kafka of its own, which tells its clients the relay's port."""
    ports = free_ports(5)
    plain, controller, _secure, direct, relayed = ports
    server = _PatientKafka(
        ports=ports,
        properties={
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},RELAYED://127.0.0.1:{direct}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},RELAYED://127.0.0.1:{relayed}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,RELAYED:PLAINTEXT",
        },
    )
    async with _started(server, direct, relayed) as relay:
        # Five minutes by default, until partitions are seen that were added
        url = f"kafka://127.0.0.1:{relayed}?session_timeout=10&conf.topic.metadata.refresh.interval.ms=5000"
        yield Subject(
            name="kafka", about="Apache Kafka 4.2.0, one broker, KRaft, classic groups, session of 10 s", url=url,
            server=server, relay=relay, lease=10.0, quiet=30.0, whole_group=True, add_partitions=lambda: _add_partitions(plain),
        )  # fmt: skip


@asynccontextmanager
async def postgres(_: Path) -> AsyncIterator[Subject]:
    """A PostgreSQL of its own."""
    server = PostgresServer()
    async with _started(server, server.port) as relay:
        version = await asyncio.to_thread(run, server.program("postgres"), "--version")
        tables = _Tables(server)
        yield Subject(
            name="postgres", about=f"{version.strip()}, as durable as it is by default",
            url=server.url.replace(f":{server.port}", f":{relay.port}") + "?lease=10", server=server, relay=relay,
            lease=10.0, quiet=25.0, faults={"tables locked": (tables.lock, tables.release)},
        )  # fmt: skip


@asynccontextmanager
async def sqs(_: Path) -> AsyncIterator[Subject]:
    """An emulator of SQS and SNS."""
    server = SQSServer()
    async with _started(server, server.ports[0]) as relay:
        yield Subject(
            name="sqs", about=f"ministack {SQS_VERSION}, an emulator of SQS and SNS, not the service",
            url=f"{sqs_url(f'http://127.0.0.1:{relay.port}')}&lease=10", server=server, relay=relay, lease=10.0,
            quiet=35.0, rest=50.0, counts_given_back=True, durable=False,
        )  # fmt: skip


@asynccontextmanager
async def pubsub(_: Path) -> AsyncIterator[Subject]:
    """The stand-in for Google Pub/Sub."""
    server = PubSubServer()
    async with _started(server, server.ports[0]) as relay:
        url = f"pubsub://{PROJECT}?endpoint=127.0.0.1:{relay.port}&lease=10"
        yield Subject(
            name="pubsub", about="a stand-in for Google Pub/Sub, not the service", url=url, server=server, relay=relay,
            lease=10.0, quiet=30.0,
        )  # fmt: skip


@asynccontextmanager
async def servicebus(_: Path) -> AsyncIterator[Subject]:
    """The stand-in for Azure Service Bus."""
    server = ServiceBusServer()
    async with _started(server, server.ports[0]) as relay:
        url = server.url.replace(f":{server.ports[0]}", f":{relay.port}", 1) + "&lease=10"
        yield Subject(
            name="servicebus", about="a stand-in for Azure Service Bus, not the service", url=url, server=server,
            relay=relay, lease=10.0, quiet=30.0,
        )  # fmt: skip


SUBJECTS: Final[Mapping[str, Opened]] = {
    "sqlite": sqlite,
    "redis": redis,
    "rabbitmq": rabbitmq,
    "nats": nats,
    "kafka": kafka,
    "postgres": postgres,
    "sqs": sqs,
    "pubsub": pubsub,
    "servicebus": servicebus,
}


class _PatientKafka(KafkaServer):
    """On a busy machine a broker that was killed takes minutes to come back."""

    patience = 240.0
    lasting = True


class _PatientRabbitMQ(RabbitMQServer):
    """The same."""

    patience = 240.0


def _add_partitions(port: int) -> int:
    """Two more, which is what an administrator does where a group is too slow."""
    from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]  # noqa: PLC0415

    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"})
    before = len(admin.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions)
    admin.create_partitions([NewPartitions(TOPIC, before + 2)])[TOPIC].result(30)
    return before


class _Tables:
    """Another program that has the broker's tables for itself, as one that changes them does, or takes too long over a dump."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._session: subprocess.Popen[bytes] | None = None

    def lock(self) -> None:
        """Returns when the tables are locked: where the server ends a deadlock by ending this session, another tries."""
        for _ in range(20):
            if self._locked():
                return
            self.release()
        raise RuntimeError("the tables could not be locked")

    def _locked(self) -> bool:
        session = self._session = subprocess.Popen(  # noqa: S603 - our own server
            [
                self._server.program("psql"), "--quiet", "--no-psqlrc", "--tuples-only",
                "--set", "ON_ERROR_STOP=1", self._server.url,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert session.stdin is not None
        assert session.stdout is not None
        tables = "things_kit.message, things_kit.consumer_group IN ACCESS EXCLUSIVE MODE"
        session.stdin.write(f"BEGIN; LOCK TABLE {tables}; SELECT 'locked';\n".encode())
        session.stdin.flush()
        return b"locked" in session.stdout.readline()

    def release(self) -> None:
        if self._session is not None:
            self._session.communicate()
            self._session = None


class _Lock:
    """Another program that holds the file for itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def take(self) -> None:
        self._connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=30, check_same_thread=False
        )
        self._connection.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A small file system in memory, where we may mount one; else a plain folder."""
    folder.mkdir()
    mounted = os.geteuid() == 0 and _succeeds("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        if mounted:
            _succeeds("umount", "-l", str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _succeeds(*command: str) -> bool:
    with contextlib.suppress(ServerUnavailable):
        run(*command)
        return True
    return False


def _fill(ballast: Path) -> None:
    """Write until there is no room."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))


def _value(lines: list[str], name: str) -> str:
    return next((line.partition(":")[2] for line in lines if line.startswith(f"{name}:")), "?")
