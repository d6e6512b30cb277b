"""The broker in a file keeps every promise, through killed processes and a file that somebody else locks."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from things_kit.testing.conformance import ConformanceSuite, Target
from things_kit.testing.conformance.stopping import StoppingSuite


class Lock:
    """Another program that holds the file for itself: as close to an outage as a file comes."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)

    async def take(self) -> None:
        self._connection.execute("BEGIN EXCLUSIVE")

    async def release(self) -> None:
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


class TestSQLite(ConformanceSuite):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Target]:
        path = tmp_path / "events.db"
        lock = Lock(path)
        yield Target(
            url=f"sqlite:///{path}",
            lease_options={"lease": "0.5"},
            size_options={"max_message_bytes": "4096"},
            pause=lock.take,
            resume=lock.release,
        )
        lock.close()

    test_all_ends_in_time = (
        StoppingSuite.test_a_consumer_stops_and_its_broker_closes_in_time_though_nobody_answers
    )
