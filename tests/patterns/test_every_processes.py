"""What runs every so often in five processes, of which one is frozen in the middle of a run, and another killed.

Nothing here depends on how fast the machine is: each process notes when it stood still, and two runs beside each other are
a fault unless the process of one of them did so for most of a lease.
"""

import asyncio
import os
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import combinations, pairwise
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from things_kit import RetryPolicy, connect
from things_kit.patterns.periodic import Periodic, every
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.redis import RedisServer

nats = shared(NATSServer, "nats")
redis = shared(RedisServer, "redis")
postgres = shared(PostgresServer, "postgres")

TICK = {
    "sqlite": timedelta(milliseconds=400),
    "postgres": timedelta(milliseconds=400),
    "redis": timedelta(milliseconds=400),
    "nats": timedelta(seconds=1),  # it hands out up to a quarter of a second late
}
LEASE = 1.2
PROCESSES = 5
PAUSE = 0.1
"""Seconds from which on a process has stood still."""

PATIENCE = 30.0
NEVER = datetime.max.replace(tzinfo=UTC)


class Note(msgspec.Struct):
    """What a process has written down: it has started, began or ended a run, or stood still until now."""

    pid: int
    what: str
    at: float
    planned: datetime | None = None
    since: float = 0.0


class Run(msgspec.Struct):
    """One run; it ended as it began where its process was killed then."""

    pid: int
    planned: datetime
    began: float
    ended: float


class Diary:
    """A file into which all processes write; their clock is the machine's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, what: str, planned: datetime | None = None, since: float = 0.0) -> None:
        line = msgspec.json.encode(Note(os.getpid(), what, time.monotonic(), planned, since)) + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)

    async def write_pauses(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(PAUSE / 4)
            now = time.monotonic()
            if now - last > PAUSE:
                self.write("stood still", since=last)
            last = now

    def read(self) -> list[Note]:
        if not self._path.exists():
            return []
        return msgspec.json.Decoder(Note).decode_lines(self._path.read_bytes())

    def runs(self) -> list[Run]:
        """All runs, as they began."""
        runs: list[Run] = []
        for note in self.read():
            if note.what == "began" and note.planned is not None:
                runs.append(Run(note.pid, note.planned, note.at, note.at))
            elif note.what == "ended":
                run = next(each for each in reversed(runs) if each.pid == note.pid)
                run.ended = note.at
        return runs

    def starts(self) -> list[float]:
        """When processes have started."""
        return [note.at for note in self.read() if note.what == "started"]

    def since(self) -> datetime:
        """The first planned time of a run that began when all had started; before, each may know another first one."""
        started = max(self.starts())
        return next((run.planned for run in self.runs() if run.began > started), NEVER)

    def finished(self, pid: int | None = None) -> set[datetime]:
        """The planned times of which a run has ended, in any process or in this one."""
        ended = (note for note in self.read() if note.what == "ended" and pid in {None, note.pid})
        return {note.planned for note in ended if note.planned is not None}


class Stage:
    """The diary, and orders for whoever runs next."""

    def __init__(self, folder: Path, tick: timedelta) -> None:
        self.diary = Diary(folder / "diary")
        self.tick = tick
        self._folder = folder
        self._name = uuid4().hex

    def order(self, what: str) -> None:
        (self._folder / what).touch()

    def stands(self, what: str) -> bool:
        return (self._folder / what).exists()

    def take(self, what: str) -> bool:
        """Whether this process is the one to do it."""
        try:
            (self._folder / what).rename(self._folder / f"{what}-{os.getpid()}")
        except FileNotFoundError:
            return False
        return True

    def taken(self, what: str) -> int | None:
        """Who did it."""
        return next((int(path.name.split("-")[1]) for path in self._folder.glob(f"{what}-*")), None)

    async def run(self, planned: datetime) -> None:
        self.diary.write("began", planned)
        if self.take("freeze"):
            while not self.stands("thaw"):
                os.kill(os.getpid(), signal.SIGSTOP)
                await asyncio.sleep(0.01)
        if self.take("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.02)
        self.diary.write("ended", planned)

    async def live(self, url: str) -> None:
        """What a process does until it is told to stop."""
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        pausing = asyncio.create_task(self.diary.write_pauses())
        spec = every(self.tick, tz="UTC", name=self._name, overlap="queue", catch_up="all")
        retry = RetryPolicy(attempts=5, first=0.01)
        async with connect(url) as broker, Periodic(broker, spec, self.run, retry=retry):
            self.diary.write("started")
            await stopping.wait()
        pausing.cancel()


def forked(work: Callable[[], None]) -> int:
    """The process in which this is done."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


@contextmanager
def processes(stage: Stage, url: str) -> Iterator[list[int]]:
    """So many that run the same; those that are left are told to stop, and have to end well."""
    pids = [forked(lambda: asyncio.run(stage.live(url))) for _ in range(PROCESSES)]
    try:
        yield pids
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        while pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
            del pids[0]
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def is_free(file: Path) -> bool:
    """Whether nobody holds this database's write lock: who is frozen with it holds up all others, whatever they do."""
    if not file.exists():  # it is another broker's turn
        return True
    with suppress(sqlite3.OperationalError):
        connection = sqlite3.connect(file, timeout=0.5, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
        return True
    return False


async def frozen(stage: Stage, file: Path) -> int:
    """Have whoever runs next stand still; who it is."""
    stage.order("freeze")
    await eventually(lambda: stage.taken("freeze"), PATIENCE, "somebody runs")
    pid = stage.taken("freeze")
    assert pid is not None
    while True:
        await eventually(lambda: is_stopped(pid), PATIENCE, "it stands still")
        if is_free(file):
            return pid
        os.kill(pid, signal.SIGCONT)  # and it stops once more


async def story(stage: Stage, file: Path, pids: list[int]) -> None:
    """One is frozen; the next one that runs, at first what that one had begun, is killed; the frozen one goes on."""
    diary = stage.diary
    await eventually(lambda: len(diary.starts()) == PROCESSES, PATIENCE, "all have started")
    await eventually(lambda: diary.since() in diary.finished(), PATIENCE, "it ran")
    first = await frozen(stage, file)
    interrupted = {run.planned for run in diary.runs() if run.pid == first} - diary.finished(first)
    stage.order("kill")
    await eventually(lambda: stage.taken("kill"), PATIENCE, "another one runs")
    second = stage.taken("kill")
    assert second is not None
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, second, 0))[1]) == -signal.SIGKILL
    pids.remove(second)
    lost = interrupted | {run.planned for run in diary.runs() if run.pid == second}
    assert interrupted
    await eventually(lambda: lost <= diary.finished(), PATIENCE, "others run what these two had begun")
    stage.order("thaw")
    os.kill(first, signal.SIGCONT)
    going_on = max(run.planned for run in diary.runs()) + 2 * stage.tick
    await eventually(lambda: going_on in diary.finished(), PATIENCE, "it goes on")
    await eventually(lambda: interrupted <= diary.finished(first), PATIENCE, "the frozen one ends its run")


def stood_still(run: Run, pauses: dict[int, list[tuple[float, float]]]) -> bool:
    """Whether its process did, about that run, for most of a lease altogether."""
    begin = run.began - 2 * LEASE
    inside = (min(to, run.ended) - max(since, begin) for since, to in pauses[run.pid])
    return sum(max(0.0, seconds) for seconds in inside) > LEASE / 2


@pytest.mark.parametrize("kind", TICK)
def test_of_five_processes_one_is_frozen_and_one_killed_and_no_planned_time_is_lost(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    stage, file = Stage(tmp_path, TICK[kind]), tmp_path / "events.db"
    with url_of(kind, request, file) as url, processes(stage, f"{url}?lease={LEASE}") as pids:
        asyncio.run(story(stage, file, pids))
    diary = stage.diary
    planned = sorted(each for each in diary.finished() if each >= diary.since())
    assert {later - earlier for earlier, later in pairwise(planned)} == {stage.tick}

    pauses: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for note in diary.read():
        if note.what == "stood still":
            pauses[note.pid].append((note.since, note.at))
    runs = diary.runs()
    beside = [(one, other) for one, other in combinations(runs, 2) if other.began < one.ended]
    assert [pair for pair in beside if not any(stood_still(run, pauses) for run in pair)] == []

    killed = stage.taken("kill")
    again = [one for one, other in combinations(runs, 2) if one.planned == other.planned]
    assert [run for run in again if run.pid != killed and not stood_still(run, pauses)] == []
    assert {run.pid for run in again} >= {killed, stage.taken("freeze")}


@contextmanager
def url_of(kind: str, request: pytest.FixtureRequest, file: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{file}"
    elif kind == "postgres":
        with request.getfixturevalue("postgres").database() as url:
            yield url
    else:
        url = request.getfixturevalue(kind).url
        if not asyncio.run(names_schedules(url)):
            pytest.skip("a server from 2.12 on")
        yield url


async def names_schedules(url: str) -> bool:
    async with connect(url) as broker:
        return broker.capabilities.schedule_ids
