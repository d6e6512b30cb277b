"""Databases of the application, in which an outbox or an inbox lives."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.postgres import PostgresServer

postgres = shared(PostgresServer, "postgres")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of one of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/app.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url
