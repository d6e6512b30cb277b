"""SIGTERM under load, to an app on every broker: nothing is lost, and it ends well within its time to drain.

A new broker is a fixture of its own name, with a URL or a server that has one, and that name in `BROKERS`.
"""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

import pytest

from things_kit import Message, connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.pubsub import PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import SQSServer

if sys.platform == "win32":
    pytest.skip("signals of another kind", allow_module_level=True)

BROKERS = ["sqlite", "kafka", "nats", "rabbitmq", "redis", "sqs", "pubsub", "servicebus", "postgres"]

COUNT = 500
DRAIN = 20.0
PATIENCE = 60

kafka = shared(KafkaServer, "kafka")
nats = shared(NATSServer, "nats")
postgres = shared(PostgresServer, "postgres")
rabbitmq = shared(RabbitMQServer, "rabbitmq")
redis = shared(RedisServer, "redis")
sqs = shared(SQSServer, "sqs")
servicebus = shared(ServiceBusServer, "servicebus")
pubsub = shared(PubSubServer, "pubsub")


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


MAIN = """
import asyncio
import sys
from importlib import import_module

from things_kit import App, Message, invoke, provide
from things_kit.modules import config, logging

broker = import_module(f"things_kit.modules.{sys.argv[1]}")

class Orders:
    def __init__(self) -> None:
        self.handled = 0

    async def handle(self, message: Message) -> None:
        print("begun", message.value.decode(), flush=True)
        await asyncio.sleep(0.005 if self.handled < 100 else 0.1)  # then some are left for long
        self.handled += 1
        print("handled", message.value.decode(), flush=True)

App(config.module, logging.module, broker.module, provide(Orders), invoke(broker.run_consumer)).run()
"""


class Orders:
    """An app in a process of its own that says what it begins and what it has handled."""

    def __init__(self, folder: Path, name: str, url: str, topic: str) -> None:
        (folder / "main.py").write_text(MAIN)
        (folder / "config.yaml").write_text(
            f"{name}: {{url: '{url}', topic: {topic}, group_id: billing, concurrency: 8, drain_timeout: {DRAIN}}}\n"
        )
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", name], cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        self._out: IO[str] = self.process.stdout
        self.lines: list[str] = []

    def work(self, number: int) -> None:
        """Wait until it has handled so many."""
        while len(self.values("handled")) < number:
            line = self._out.readline()
            assert line, f"it ended: {self.log.read_text()}"
            self.lines.append(line)

    def terminate(self) -> float:
        """Ask it to stop; returns the seconds that it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.lines += (
            self._out.read().splitlines()
        )  # not communicate(): that misses what readline has buffered
        self.process.wait(PATIENCE)
        return time.monotonic() - begun

    def values(self, what: str) -> list[bytes]:
        """The messages that it began or handled, in order."""
        return [line.split()[1].encode() for line in self.lines if line.split()[0] == what]


@pytest.fixture(params=BROKERS)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A broker's name and URL."""
    found = request.getfixturevalue(request.param)
    return request.param, getattr(found, "url", found)


@pytest.fixture
def started() -> Iterator[list[Orders]]:
    processes: list[Orders] = []
    yield processes
    for orders in processes:
        orders.process.kill()
        orders.process.communicate()


async def test_sigterm_under_load_loses_nothing_and_ends_well_in_time(
    place: tuple[str, str], started: list[Orders], tmp_path: Path
) -> None:
    name, url = place
    topic = f"orders-{uuid4().hex}"
    given = {b"%d" % number for number in range(COUNT)}
    async with connect(url) as broker:
        await broker.declare(topic, ["billing"])
        await broker.producer().publish_batch(
            [Message(topic, value, key=b"%d" % (int(value) % 50)) for value in given]
        )
        app = await asyncio.to_thread(Orders, tmp_path, name, url, topic)
        started.append(app)
        await asyncio.to_thread(app.work, 100)
        took = await asyncio.to_thread(app.terminate)

        log = app.log.read_text()
        assert app.process.returncode == 0, log
        assert took < DRAIN, log
        handled = app.values("handled")
        assert sorted(handled) == sorted(app.values("begun")), "what has begun may finish"
        assert len(handled) < COUNT, "it was to be stopped under load"

        rest = asyncio.Event()
        left = given - set(handled)

        async def handle(message: Message) -> None:
            left.discard(message.value)
            if not left:
                rest.set()

        async with broker.consumer(topic, group="billing", handler=handle, concurrency=8):
            async with asyncio.timeout(PATIENCE):
                await rest.wait()
        await broker.remove(topic)
