"""The shop of `examples/shop`: each process is killed in turn under load, and every order is there once on both sides."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest

from things_kit import connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import free_ports

kafka = shared(KafkaServer, "kafka")
postgres = shared(PostgresServer, "postgres")

CUSTOMERS = ("ada", "bob", "cleo", "dan")
BETWEEN = 0.04
"""Seconds from a customer's order to the next."""

SOME = 20
"""Bills by which it is seen that all goes on; the customers have fewer orders than that under way."""

PATIENCE = 60


class Shop:
    """Its processes, its databases, and what customers have placed."""

    def __init__(self, ordering: str, billing: str, kafka: str) -> None:
        self.kafka = f"{kafka}?topic_prefix=shop-{uuid4().hex[:8]}-&session_timeout=1.5&commit_interval=0.2"
        self.outbox = f"{ordering}?lease=1"
        self.ordering, self.billing = ordering, billing
        (self.port,) = free_ports(1)
        self.placed: list[str] = []
        self._environment = {
            **os.environ,
            "ORDERING_DATABASE": ordering.replace("://", "+asyncpg://"),
            "BILLING_DATABASE": billing.replace("://", "+asyncpg://"),
            "OUTBOX_URL": self.outbox,
            "KAFKA_URL": self.kafka,
        }
        run = ["-m", "things_kit.cli", "run", "--log-level", "WARNING"]
        self._commands = {
            "ordering": [
                "-m",
                "uvicorn",
                "examples.shop.ordering:web",
                f"--port={self.port}",
                "--log-level=warning",
            ],
            "relay": [*run, "examples.shop.relay:app"],
            "billing": [*run, "examples.shop.billing:app"],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        self._running[name] = subprocess.Popen(
            [sys.executable, *self._commands[name.removeprefix("another ")]],
            env=self._environment,
            cwd=Path(__file__).parent.parent,
        )

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        assert process.poll() is None, f"{name} ended by itself with code {process.returncode}"
        process.kill()
        process.wait()

    def __enter__(self) -> "Shop":
        for name in self._commands:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    async def serve(self, customer: str, closed: asyncio.Event) -> None:
        """Place one order after another; each is asked for until there is an answer."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=5) as client:
            number = 0
            while not closed.is_set():
                name = f"{customer}-{number}"
                with contextlib.suppress(httpx.TransportError):
                    order = {"id": name, "customer": customer, "cents": number}
                    (await client.put("/orders", json=order)).raise_for_status()
                    self.placed.append(name)
                    number += 1
                await asyncio.sleep(BETWEEN)

    async def goes_on(self, billing: asyncpg.Connection) -> None:
        """Wait until orders have a bill that were placed from now on."""
        enough = len(self.placed) + SOME
        async with asyncio.timeout(PATIENCE):
            while len(await billed(billing)) < enough:  # noqa: ASYNC110 - only the database knows
                await asyncio.sleep(0.1)

    async def is_done(self) -> int:
        """Wait until nothing is left to carry on and to bill; returns how many messages there were."""
        async with connect(self.outbox) as source, connect(self.kafka) as target, asyncio.timeout(PATIENCE):
            while await source.lag("orders", "bridge") or await target.lag("orders", "billing"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return await source.lag("orders", "whoever comes") or 0


@pytest.fixture
def shop(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[Shop]:
    with (
        postgres.database() as ordering,
        postgres.database() as billing,
        Shop(ordering, billing, kafka.url) as shop,
    ):
        yield shop


async def billed(billing: asyncpg.Connection) -> list[str]:
    """The orders that have a bill, once for each bill, in the order in which they were billed."""
    try:
        return [row[0] for row in await billing.fetch("SELECT order_id FROM bills ORDER BY number")]
    except asyncpg.UndefinedTableError:  # billing has not started yet
        return []


@pytest.mark.timeout(300)  # five processes start meanwhile, on whatever machine
async def test_whichever_process_dies_each_order_is_placed_and_billed_once(shop: Shop) -> None:
    billing = await asyncpg.connect(shop.billing)
    closed = asyncio.Event()
    async with asyncio.TaskGroup() as customers:
        for customer in CUSTOMERS:
            customers.create_task(shop.serve(customer, closed))
        await shop.goes_on(billing)
        shop.kill("ordering")
        shop.start("ordering")
        shop.start("another relay")
        await shop.goes_on(billing)
        shop.kill("relay")
        shop.start("another billing")
        await shop.goes_on(billing)
        shop.kill("billing")
        await shop.goes_on(billing)
        closed.set()
    assert await shop.is_done() == len(shop.placed)
    bills = await billed(billing)
    await billing.close()
    assert sorted(bills) == sorted(shop.placed)
    for customer in CUSTOMERS:
        of_this = [order for order in bills if order.startswith(customer)]
        assert of_this == [f"{customer}-{number}" for number in range(len(of_this))]
