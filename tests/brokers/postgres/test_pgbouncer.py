"""Through PgBouncer in transaction mode: each transaction may be on another connection to the server."""

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from tests.brokers.postgres.given import Open, join, names, publish, take
from things_kit.engine.facts import Question
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import debian
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable


class PgBouncer(ServerProcess):
    """PgBouncer on 127.0.0.1, before a server."""

    name: ClassVar[str] = "pgbouncer"

    def __init__(self, server_port: int) -> None:
        super().__init__()
        self._server_port = server_port

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.ports[0]}/postgres"

    def prepare(self) -> None:
        debian.program("pgbouncer", "pgbouncer")
        users = self.folder / "users"
        users.write_text('"postgres" ""\n')
        (self.folder / "settings").write_text(
            f"[databases]\n* = host=127.0.0.1 port={self._server_port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.ports[0]}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {users}\npool_mode = transaction\ndefault_pool_size = 3\n"
        )
        for path in (self.folder, users, self.folder / "settings"):
            path.chmod(0o755)

    def command(self) -> Sequence[str | Path]:
        user = ("-u", "postgres") if os.getuid() == 0 else ()
        return [debian.program("pgbouncer", "pgbouncer"), *user, self.folder / "settings"]

    def check(self) -> None:
        socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1).close()


@pytest.fixture(scope="module")
def pooled(postgres: PostgresServer, database: str) -> Iterator[str]:
    """The URL of the database through PgBouncer."""
    bouncer = PgBouncer(postgres.port)
    try:
        bouncer.start()
    except ServerUnavailable as reason:
        unavailable(reason)
    yield bouncer.url.rpartition("/")[0] + urlsplit(database).path
    bouncer.terminate()


async def test_all_works_through_a_pooler_that_is_noticed(connect: Open, pooled: str, schema: str) -> None:
    broker = await connect(at=f"{pooled}?schema={schema}&poll=0.05")
    assert broker.connections.pooled
    await broker.declare("t", ["g"])
    receivers = [await join(broker) for _ in range(4)]
    for number in range(50):
        await publish(broker, f"a{number}", f"b{number}")
    got: list[str] = []
    while len(got) < 100:
        for receiver in receivers:
            deliveries = await take(receiver, limit=7)
            await receiver.settle(deliveries, [])
            got += names(deliveries)
    assert await broker.lag("t", "g") == 0
    assert [name for name in got if name[0] == "a"] == [f"a{number}" for number in range(50)]


async def test_a_listener_that_does_not_hear_itself_is_given_up(
    connect: Open, pooled: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("things_kit.brokers.postgres.bell.HEARD_WITHIN", 0.2)
    broker = await connect(at=f"{pooled}?schema={schema}&poll=0.05")
    await broker.declare("t", ["g"])
    receiver = await join(broker)
    await eventually(lambda: broker.bell.heard is not None)
    await take(receiver)
    await publish(broker, "a1")
    assert names(await take(receiver, wait=10)) == ["a1"]
    facts = await broker.facts(Question())
    assert {"pooler", "notifications"} <= {finding.subject for finding in facts.findings}
