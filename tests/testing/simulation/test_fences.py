"""What a simulation cannot have ends it with the line; clocks, randomness and the databases of the dead are the simulation's."""

import _thread
import asyncio
import concurrent.futures
import multiprocessing
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.request
import uuid
from asyncio import events
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import create_engine, text

from things_kit import Message, RetryPolicy
from things_kit.engine.broker import Broker
from things_kit.testing import Faults, SimulationFailed, World, reached, simulate


class Escaping(World):
    """Its handler tries something, and catches whatever comes of it."""

    escape: ClassVar[Callable[[], Any]]

    def consumers(self, broker: Broker) -> list[Any]:
        async def handle(message: Message) -> None:
            try:
                tried = type(self).escape()
                if isinstance(tried, Awaitable):
                    await tried
            except BaseException:
                return

        return [broker.consumer("orders", group="g", handler=handle)]

    async def workload(self, producer: Any) -> None:
        await producer.publish(Message("orders", b"1"))


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


NOWHERE = ("127.0.0.1", 9)

ESCAPES: dict[str, tuple[str, Callable[[], Any]]] = {
    "thread": ("threads", lambda: threading.Thread(target=print).start()),
    "timer": ("threads", lambda: threading.Timer(1, print).start()),
    "plain thread": ("threads", lambda: _thread.start_new_thread(print, ())),
    "pool of threads": ("threads", lambda: concurrent.futures.ThreadPoolExecutor(1).submit(print)),
    "connection": ("sockets", lambda: socket.create_connection(NOWHERE)),
    "connect": ("sockets", lambda: socket.socket().connect_ex(NOWHERE)),
    "datagram": ("sockets", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", NOWHERE)),
    "name": ("sockets", lambda: socket.getaddrinfo("localhost", 80)),
    "page": ("sockets", lambda: urllib.request.urlopen("http://127.0.0.1:9/")),
    "stream": ("sockets", lambda: asyncio.open_connection(*NOWHERE)),
    "server": ("sockets", lambda: asyncio.start_server(print, "127.0.0.1", 0)),
    "reader": ("sockets", lambda: running().add_reader(0, print)),
    "process": ("subprocesses", lambda: subprocess.run(["true"], check=False)),
    "shell": ("subprocesses", lambda: os.system("true")),
    "pipe": ("subprocesses", lambda: os.popen("true")),
    "worker": ("subprocesses", lambda: multiprocessing.get_context("spawn").Process(target=print).start()),
    "pool of processes": ("subprocesses", lambda: concurrent.futures.ProcessPoolExecutor(1).submit(print)),
    "asynchronous process": ("subprocesses", lambda: asyncio.create_subprocess_exec("true")),
    "signal": ("signals", lambda: running().add_signal_handler(15, print)),
    "loop": ("event loops of its own", asyncio.new_event_loop),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_what_a_simulation_cannot_have_ends_it_with_the_line_whatever_catches_it(name: str) -> None:
    what, escape = ESCAPES[name]
    world = type("World", (Escaping,), {"escape": staticmethod(escape)})
    with pytest.raises(SimulationFailed, match=rf"a simulation has no {what}: .*test_fences\.py:\d+: \S"):
        simulate(world, seeds=1)


def test_a_policy_of_uvloop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = type("EventLoopPolicy", (), {"__module__": "uvloop"})
    monkeypatch.setattr(events, "_event_loop_policy", policy())
    with pytest.raises(SimulationFailed, match="no event loop policy of uvloop"):
        simulate(type("World", (Escaping,), {"escape": print}), seeds=1)


READ: list[Callable[[], Any]] = [
    lambda: (uuid.uuid4(), uuid.uuid1()),
    lambda: (secrets.token_hex(), secrets.choice(range(1000))),
    lambda: (os.urandom(4), os.getrandom(4) if hasattr(os, "getrandom") else None),
    lambda: (random.random(), random.Random().random(), random.SystemRandom().random()),
    lambda: (datetime.now(UTC), time.time(), time.time_ns(), time.ctime(), time.asctime()),
    lambda: (time.monotonic(), time.perf_counter_ns(), time.process_time(), time.thread_time()),
    lambda: (time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_REALTIME)),
]


def test_clocks_and_randomness_are_the_simulations() -> None:
    class Timed(Escaping):
        escape = print

        async def setup(self) -> None:
            self.seen = [read() for read in READ]
            before = time.monotonic(), time.time()
            time.sleep(3600)  # noqa: ASYNC251 - which moves the time
            assert time.monotonic() - before[0] == 3600
            await asyncio.sleep(0)
            assert time.time() - before[1] == pytest.approx(3600)
            assert await asyncio.to_thread(lambda: 1) == 1

        def eventually(self) -> None:
            raise AssertionError(repr(self.seen))

    texts = set()
    for _ in range(2):
        with pytest.raises(SimulationFailed) as raised:
            simulate(Timed, seeds=1, faults=Faults.none())
        texts.add(raised.value.report.text.splitlines()[-1])
    assert len(texts) == 1


class Dying(World):
    """A handler with something to tidy up."""

    async def setup(self) -> None:
        self.tidied = Counter[str]()
        self.begun = 0

    def consumers(self, broker: Broker) -> list[Any]:
        async def handle(message: Message) -> None:
            self.begun += 1
            try:
                async with asyncio.timeout(60):
                    await asyncio.sleep(5)
                self.tidied["handled"] += 1
            finally:
                self.tidied["finally"] += 1

        return [broker.consumer("orders", group="g", handler=handle, concurrency=4)]

    async def workload(self, producer: Any) -> None:
        await producer.publish_batch([Message("orders", b"%d" % number) for number in range(8)])

    def eventually(self) -> None:
        assert self.tidied["finally"] == self.tidied["handled"]
        if self.begun > self.tidied["handled"]:
            reached("died amid a handler")


def test_nothing_of_a_crashed_process_goes_on_not_even_finally() -> None:
    simulate(Dying, seeds=20, broker="redis", faults=Faults.only("crash"), sometimes=["died amid a handler"])


class Storing(World):
    """Writes in a transaction that a crash cuts in two."""

    place = "file:simulated?mode=memory&cache=shared"

    async def setup(self) -> None:
        self.own = sqlite3.connect(self.place, uri=True)
        self.own.execute("CREATE TABLE effect (id TEXT)")

    def write(self) -> Any:
        """What makes a transaction of two statements."""
        connection = sqlite3.connect(self.place, uri=True, isolation_level=None)

        async def write(id: str) -> None:  # noqa: A002 - the message's
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                connection.execute("INSERT INTO effect VALUES (?)", (id,))
                await asyncio.sleep(1)
            connection.execute("COMMIT")

        return write

    def consumers(self, broker: Broker) -> list[Any]:
        write = self.write()

        async def handle(message: Message) -> None:
            if message.attempt > 1:
                reached("again")
            await write(message.id)

        retry = RetryPolicy(attempts=20)
        return [broker.consumer("orders", group="g", handler=handle, concurrency=1, retry=retry)]

    async def workload(self, producer: Any) -> None:
        await producer.publish_batch([Message("orders", b"%d" % number) for number in range(3)])

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert not any(each.failed for each in self.history.handlings), "the dead hold the lock"
        counts = Counter(row[0] for row in self.own.execute("SELECT id FROM effect"))
        assert set(counts) == set(self.history.published("orders").ids)
        assert all(count % 2 == 0 for count in counts.values()), "half of a transaction is there"


class StoringBySession(Storing):
    """The same by SQLAlchemy."""

    def write(self) -> Any:
        engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(self.place, uri=True))

        async def write(id: str) -> None:  # noqa: A002
            with engine.begin() as connection:
                for _ in range(2):
                    connection.execute(text("INSERT INTO effect VALUES (:id)"), {"id": id})
                    await asyncio.sleep(1)

        return write


@pytest.mark.parametrize("world", [Storing, StoringBySession])
def test_what_a_crashed_process_had_not_committed_is_rolled_back(world: type[World]) -> None:
    crash = Faults.only("crash")
    simulate(world, seeds=15, broker="redis", processes=1, faults=crash, sometimes=["again"])


def test_a_database_in_a_file_is_rolled_back_too(tmp_path: Path) -> None:
    class InAFile(Storing):
        place = f"file:{tmp_path / 'effects.db'}"

        async def setup(self) -> None:
            (tmp_path / "effects.db").unlink(missing_ok=True)
            await super().setup()

    simulate(InAFile, seeds=5, broker="redis", processes=1, faults=Faults.only("crash"))
