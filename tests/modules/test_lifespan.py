"""An app inside a web framework."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from things_kit import App, Message, Producer, connect, invoke, provide
from things_kit.modules import config, memory
from things_kit.testing import MockHandler

WAITING = 300
"""Orders that are there before the web application starts: it is busy from its first moment on."""


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("memory: {topic: orders, group_id: billing}\n")
    return App(config.module, memory.module, provide(MockHandler()), invoke(memory.run_consumer))


async def orders(web: Starlette, kit: App) -> None:
    """Order once, and see that it is handled while the web application runs, and nothing afterwards."""
    async with web.router.lifespan_context(web):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
            assert (await client.post("/orders", content=b"o-1")).status_code == 202
        handler = await kit.get(MockHandler)
        await handler.handled(1)
    handler.assert_handled(value=b"o-1", count=1)
    with pytest.raises(RuntimeError, match="does not run"):
        await kit.get(MockHandler)


async def test_starlette_runs_an_app_as_its_lifespan(kit: App) -> None:
    async def order(request: Request) -> Response:
        producer = await kit.get(Producer)
        await producer.publish(Message("orders", await request.body()))
        return PlainTextResponse("ordered", 202)

    await orders(Starlette(routes=[Route("/orders", order, methods=["POST"])], lifespan=kit.lifespan), kit)


async def test_fastapi_runs_an_app_as_its_lifespan(kit: App) -> None:
    web = FastAPI(lifespan=kit.lifespan)

    @web.post("/orders", status_code=202)
    async def order(request: Request) -> None:
        producer = await kit.get(Producer)
        await producer.publish(Message("orders", await request.body()))

    await orders(web, kit)


class Server:
    """The example, served by uvicorn in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "uvicorn", "examples.web:web", "--port", "0", "--no-access-log"]
        self.process = subprocess.Popen(
            [*command, "--app-dir", str(Path(__file__).parents[2])],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("SQLITE_")},
        )  # fmt: skip
        assert self.process.stdout is not None
        self._out: IO[str] = self.process.stdout
        self.said: list[str] = []

    def listens(self) -> str:
        """Wait until it does; returns its URL."""
        for line in self._out:
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return found[0]
        raise AssertionError(f"it ended: {self.said}")

    def end(self) -> int:
        """Wait for its end; returns its exit code."""
        self.said += self._out
        return self.process.wait(30)

    @property
    def billed(self) -> set[str]:
        """The orders that it has handled."""
        return {line.split()[1] for line in self.said if line.startswith("billed ")}


@pytest.fixture
def started() -> Iterator[list[Server]]:
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.process.kill()
        server.process.communicate()


async def order_until_it_stops(url: str, term: asyncio.Event) -> set[str]:
    """Order as fast as it goes; returns what was answered for, and asks to stop the server by then."""
    answered: set[str] = set()

    async def customer(client: httpx.AsyncClient, name: int) -> None:
        number = 0
        while True:
            number += 1
            try:
                answer = await client.post("/orders", json={"id": f"c-{name}-{number}"})
            except httpx.TransportError:
                return  # it takes no orders any more
            assert answer.status_code == 202
            answered.add(f"c-{name}-{number}")
            if len(answered) == 50:
                term.set()

    async with httpx.AsyncClient(base_url=url, timeout=30) as client, asyncio.timeout(60):
        await asyncio.gather(*(customer(client, name) for name in range(4)))
    return answered


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
async def test_sigterm_to_a_web_server_under_load_loses_no_order(
    tmp_path: Path, started: list[Server]
) -> None:
    waiting = [Message("orders", b'{"id": "w-%d"}' % number) for number in range(WAITING)]
    async with connect(f"sqlite:///{tmp_path}/events.db") as broker:
        await broker.declare("orders", ["billing"])
        await broker.producer().publish_batch(waiting)

    server = await asyncio.to_thread(Server, tmp_path)
    started.append(server)
    url = await asyncio.to_thread(server.listens)
    term = asyncio.Event()
    ordering = asyncio.create_task(order_until_it_stops(url, term))
    await term.wait()
    server.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.end)
    answered = await ordering

    said = "".join(server.said)
    assert "Application shutdown complete" in said
    assert "Traceback" not in said
    assert code in {0, -signal.SIGTERM}, "uvicorn passes the signal on to itself when all is done"
    missing = (answered | {f"w-{number}" for number in range(WAITING)}) - server.billed
    await all_are_there(f"sqlite:///{tmp_path}/events.db", missing)


async def all_are_there(url: str, missing: set[str]) -> None:
    """What was not handled comes to the next that asks."""
    found = asyncio.Event()

    async def handle(order: dict[str, str]) -> None:
        missing.discard(order["id"])
        if not missing:
            found.set()

    async with connect(url) as broker, broker.consumer("orders", group="billing", handler=handle):
        async with asyncio.timeout(30):
            while missing and not found.is_set():
                await found.wait()
