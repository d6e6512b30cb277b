"""What a process pays: for the import, and in memory while a slow handler has a million messages waiting."""

import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.result import Result
from things_kit import Message, connect

WAITING = 1_000_000


def start_time(code: str) -> float:
    """Median seconds of a process that runs this code."""
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


APP = """
from things_kit import App, Hook, Lifecycle, invoke, provide
from things_kit.modules import config, logging, sqlite

class Orders:
    async def handle(self, message): ...

def end_once_up(lifecycle: Lifecycle, app: App) -> None:
    def up() -> None:
        print("up", flush=True)
        app.shutdown()
    lifecycle.append(Hook(on_start=up))

App(config.module, logging.module, sqlite.module, provide(Orders), invoke(sqlite.run_consumer),
    invoke(end_once_up)).run()
"""
"""An app that consumes from a file, says so, and stops."""


def app_time() -> tuple[float, float]:
    """Median seconds from the start of the process until it consumes; and seconds of the processor, until its end."""
    times, worked = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(
            "sqlite: {path: events.db, topic: orders, group_id: billing}\n"
        )
        for _ in range(15):
            begun, before = time.perf_counter(), worked_by_children()
            with subprocess.Popen(
                [sys.executable, "-I", "-c", APP], cwd=folder, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
                times.append(time.perf_counter() - begun)
            worked.append(worked_by_children() - before)
    return statistics.median(times), statistics.median(worked)


def worked_by_children() -> float:
    """Seconds of the processor that all ended processes took which this one started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def fill(url: str) -> None:
    """Publish the messages that wait."""
    async with connect(url) as broker:
        await broker.declare("bench", ["bench"])
        producer = broker.producer()
        for start in range(0, WAITING, 10_000):
            batch = [
                Message("bench", b"x" * 200, key=b"%d" % (i % 1000)) for i in range(start, start + 10_000)
            ]
            await producer.publish_batch(batch)


async def crawl(url: str) -> None:
    """Handle them so slowly that next to nothing is done; print the most memory that this took, in MB."""
    async with connect(url) as broker:

        async def slow(message: Message) -> None:
            await asyncio.sleep(0.01)

        async with broker.consumer("bench", group="bench", handler=slow, concurrency=8, drain_timeout=0.1):
            await asyncio.sleep(3)
            assert (await broker.lag("bench", "bench") or 0) > WAITING * 0.9
    # Not getrusage: its maximum begins with that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()  # noqa: ASYNC240 - nothing else runs here
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def footprint() -> float:
    """Megabytes at the most of a process that crawls."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        url = f"sqlite:///{folder}/waiting.db?synchronous=normal"
        asyncio.run(fill(url))
        code = f"import asyncio; from benchmarks.process import crawl; asyncio.run(crawl({url!r}))"
        output = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
    return float(output)


async def run() -> list[Result]:
    """Both, each in processes of their own."""
    bare = await asyncio.to_thread(start_time, "pass")
    imported = (await asyncio.to_thread(start_time, "import things_kit") - bare) * 1e3
    first_use = (await asyncio.to_thread(start_time, "from things_kit import connect, Message") - bare) * 1e3
    started, worked = await asyncio.to_thread(app_time)
    most = await asyncio.to_thread(footprint)
    return [
        Result(
            "import things_kit", f"{imported:.0f} ms", "under 60", imported < 60,
            f"{first_use:.0f} ms with everything that `connect` and `Message` need, asyncio included",
        ),
        Result(
            "sqlite: an app, from the start of its process until it consumes", f"{started:.2f} s",
            "under 0.25", started < 0.25,
            f"of it {bare * 1e3:.0f} ms for Python itself; {worked:.2f} s of the processor, its stop included",
        ),
        Result(
            "sqlite: slow handler, 1,000,000 messages waiting",
            f"{most:.0f} MB resident at most", "under 150", most < 150,
        ),
    ]  # fmt: skip
