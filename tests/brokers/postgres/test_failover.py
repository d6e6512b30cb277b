"""A replica is promoted when the primary is gone: what was confirmed is there, and everybody goes on."""

import asyncio
import os
from collections.abc import Iterator

import asyncpg
import pytest

from tests.brokers.postgres.given import Open, join, publish, take
from things_kit import Message
from things_kit import connect as open_broker
from things_kit.brokers.postgres.driver import PostgresDriver
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.postgres import PostgresServer, as_user, server_user
from things_kit.testing.servers.process import run

COUNT = 500

primary = own(PostgresServer)


class Replica(PostgresServer):
    """A copy of a running server that follows it."""

    def __init__(self, primary_port: int) -> None:
        super().__init__()
        self._primary_port = primary_port

    def prepare(self) -> None:
        data = self.folder / "data"
        if os.getuid() == 0:
            os.chown(self.folder, server_user().pw_uid, server_user().pw_gid)
        run(
            *as_user(), self._programs() / "pg_basebackup", "--pgdata", data, "--write-recovery-conf",
            "--host", "127.0.0.1", "--port", str(self._primary_port), "--username", "postgres",
            "--checkpoint", "fast", cwd=self.folder,
        )  # fmt: skip


@pytest.fixture
def replica(primary: PostgresServer) -> Iterator[Replica]:
    server = Replica(primary.port)
    try:
        server.start()
        yield server
    finally:
        server.terminate()


async def ask(server: PostgresServer, statement: str) -> object:
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_what_is_said_to_be_settled_is_so_after_the_server_was_killed_at_once(
    connect: Open, primary: PostgresServer
) -> None:
    """While nobody else has it written: a commit that does not wait for the disk would be forgotten."""
    await ask(primary, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    await ask(primary, "SELECT pg_reload_conf()")
    at = f"{primary.url}?schema=killed"
    broker = await connect(at=at)
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await publish(broker, "a1", "a2")
    settled, _ = await take(receiver)
    await receiver.settle([settled], [])
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(primary.start)
    restarted = await connect(at=at)
    assert await restarted.lag("t", "g") == 1


async def test_a_replica_alone_is_named_as_one(primary: PostgresServer, replica: Replica) -> None:
    driver = PostgresDriver.from_url(BrokerURL.parse(replica.url))
    with pytest.raises(ConnectionLost, match="is read-only, as a replica is; name the primary, or all hosts"):
        await driver.open()


async def test_after_a_failover_what_was_confirmed_is_handled_and_publishing_goes_on(
    primary: PostgresServer, replica: Replica
) -> None:
    await ask(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await ask(primary, "SELECT pg_reload_conf()")

    async def follows() -> object:
        return await ask(primary, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")

    await eventually(follows)
    url = f"postgres://postgres@127.0.0.1:{primary.port},127.0.0.1:{replica.port}/postgres?timeout=1&lease=2"
    recorder = Recorder()
    async with open_broker(url) as broker:
        await broker.declare("orders", groups=["g"])
        producer = broker.producer()
        before = [Message("orders", b"x", key=b"%d" % (n % 7), id=f"a{n}") for n in range(COUNT)]
        await producer.publish_batch(before)
        async with broker.consumer("orders", group="g", handler=recorder, concurrency=4):
            await recorder.until_done(20)
            await asyncio.to_thread(primary.kill)
            going_on = asyncio.create_task(
                producer.publish_batch([Message("orders", b"x", key=b"k", id=f"b{n}") for n in range(10)])
            )
            await ask(replica, "SELECT pg_promote()")
            await going_on
            wanted = {f"a{n}" for n in range(COUNT)} | {f"b{n}" for n in range(10)}
            await eventually(lambda: {message.id for message in recorder.done} == wanted, 60)
