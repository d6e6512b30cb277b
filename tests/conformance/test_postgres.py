"""A real PostgreSQL keeps every promise: shared by the tests, and one of its own for those that take it away."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import pytest

pytest.importorskip("asyncpg")

import asyncpg
import msgspec

from things_kit.testing.conformance import ConformanceSuite, SurvivalSuite, Target
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import OutageSuite, falling_silent, outage
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.relay import Relay

postgres = shared(PostgresServer, "postgres")
own_postgres = own(PostgresServer)


class Foreign:
    """Another client of PostgreSQL: asyncpg alone, in a transaction of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO things_kit.message (topic, key, value, headers) VALUES ($1, $2, $3, $4)",
                    topic,
                    key,
                    value,
                    msgspec.json.encode(dict(headers)).decode(),
                )
        finally:
            await connection.close()

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        connection = await asyncpg.connect(self._url)
        try:
            rows = await connection.fetch(
                "SELECT key, value, headers FROM things_kit.message WHERE topic = $1 ORDER BY seq", topic
            )
        finally:
            await connection.close()
        return [(key, value, msgspec.json.decode(headers or "{}")) for key, value, headers in rows]


async def cut(url: str) -> None:
    """Close every connection but the one that asks, by the server's own means."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    await connection.close()


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


class TestPostgres(ConformanceSuite):
    @pytest.fixture
    def target(self, database: str) -> Target:
        foreign = Foreign(database)
        return Target(
            url=database,
            lease_options={"lease": "0.5"},
            size_options={"max_message_bytes": "4096"},
            absent="postgres://postgres@127.0.0.1:1/postgres",
            foreign_publish=foreign.publish,
            foreign_read=foreign.read,
        )


class TestPostgresThatGoesAway(OutageSuite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(
        self, request: pytest.FixtureRequest, own_postgres: PostgresServer
    ) -> AsyncIterator[Target]:
        async with outage(own_postgres, request.param, url=own_postgres.url + "?timeout=1&lease=2") as target:
            yield target


class TestPostgresWithCutConnections(Suite):
    """Every connection is closed by the server, which goes on."""

    @pytest.fixture
    def target(self, own_postgres: PostgresServer) -> Target:
        return Target(url=own_postgres.url, cut=lambda: cut(own_postgres.url))

    test_each_message_is_handled_once = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once


class TestPostgresThatFallsSilent(HalfOpenSuite):
    """Connections hear nothing more, without a reset, while new ones work."""

    @pytest.fixture
    async def target(self, postgres: PostgresServer) -> AsyncIterator[Target]:
        async with Relay(postgres.port) as relay:
            yield falling_silent(
                relay, f"postgres://postgres@127.0.0.1:{relay.port}/postgres?lease=1&timeout=1"
            )
