"""The ops endpoints, asked over HTTP."""

import asyncio
import logging
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from things_kit import App, ConfigError, Hook, Lifecycle, Message, Producer, invoke, provide
from things_kit.modules import config, memory, ops, ops_pages, redis, sqlite
from things_kit.testing import MockHandler
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.redis import RedisServer


class GuardedRedis(RedisServer):
    """It asks for a password from its first moment on, as it does when it comes back."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{**more, "settings": ("--requirepass", "pass-word")})


own_redis = own(GuardedRedis)

Write = Callable[[str], None]
MEMORY = "memory: {topic: orders, group_id: billing}\nops: {port: 0, info: {version: '1.2'}}\n"


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "config.yaml").write_text(text)

    write(MEMORY)
    return write


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if thread.name == "things_kit ops"]
    assert not left


def consuming(handler: Any, broker: Any = memory) -> App:
    return App(config.module, ops.module, broker.module, provide(handler), invoke(broker.run_consumer))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


async def url_of(app: App) -> str:
    return (await app.get(ops.OpsServer)).url


async def until_ready_is(client: httpx.AsyncClient, url: str, *, ready: bool) -> dict[str, Any]:
    """Ask until it answers so; each answer is waited for."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.get(f"{url}/readyz")
            assert answer.status_code == (200 if answer.json()["ready"] else 503)
            if answer.json()["ready"] is ready:
                return dict(answer.json())


async def test_an_app_that_works_is_alive_and_ready_and_says_what_it_is(client: httpx.AsyncClient) -> None:
    async with consuming(MockHandler()) as app:
        url = await url_of(app)
        alive = await client.get(f"{url}/livez")
        assert (alive.status_code, alive.json()) == (200, {"alive": True, "reason": None})
        ready = await client.get(f"{url}/readyz")
        assert ready.status_code == 200
        (broker,) = ready.json()["brokers"]
        assert (broker["url"], broker["ok"]) == ("memory://", True)
        (consumer,) = broker["consumers"]
        assert (consumer["topics"], consumer["group"], consumer["running"]) == (["orders"], "billing", True)
        info = (await client.get(f"{url}/info")).json()
        assert info["version"] == "1.2"
        assert info["brokers"][0]["capabilities"]["delay"] is True
        assert info["brokers"][0]["consumers"] == [{"topics": ["orders"], "group": "billing"}]


async def test_without_telemetry_metrics_are_not_there_and_it_says_why(client: httpx.AsyncClient) -> None:
    async with consuming(MockHandler()) as app:
        answer = await client.get(f"{await url_of(app)}/metrics")
    assert answer.status_code == 404
    assert "add telemetry.module" in answer.text


async def test_of_the_endpoints_the_log_has_only_where_they_are(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with consuming(MockHandler()) as app:
        url = await url_of(app)
        assert (await client.get(f"{url}/livez")).status_code == 200
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("uvicorn", "things_kit.ops"))
    ]
    assert said == [f"ops endpoints on {url}"]
    assert not logging.getLogger("uvicorn.error").filters


async def test_it_listens_on_this_machine_only_unless_told_otherwise(
    write: Write, client: httpx.AsyncClient
) -> None:
    async with consuming(MockHandler()) as app:
        assert (await url_of(app)).startswith("http://127.0.0.1:")
    write(MEMORY.replace("port: 0", "port: 0, host: '::1'"))
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with consuming(MockHandler()) as app:
        assert (await client.get(f"{await url_of(app)}/livez")).status_code == 200


async def test_an_app_is_not_ready_while_it_starts_nor_while_it_stops(client: httpx.AsyncClient) -> None:
    said: list[Any] = []

    def watch(lifecycle: Lifecycle, server: ops.OpsServer) -> None:
        async def ask() -> None:
            said.append((await client.get(f"{server.url}/readyz")).json()["reason"])
            assert (await client.get(f"{server.url}/livez")).status_code == 200

        lifecycle.append(Hook(on_start=ask, on_stop=ask))

    async with App(config.module, ops.module, memory.module, invoke(watch)) as app:
        await until_ready_is(client, await url_of(app), ready=True)
    assert said == ["the app is starting", "the app is stopping"]


async def test_a_stuck_handler_makes_an_app_unready_until_it_goes_on(
    write: Write, client: httpx.AsyncClient
) -> None:
    write(MEMORY.replace("billing", "billing, timeout: 0.05, retry: {attempts: 1}"))
    go_on = threading.Event()

    class Stuck:
        def handle(self, message: Message) -> None:
            go_on.wait()

    app = App(
        config.module, ops.module, memory.module, memory.consume("orders", handler=Stuck()), invoke(_order)
    )
    async with app:
        url = await url_of(app)
        try:
            answer = await until_ready_is(client, url, ready=False)
            assert "1 of 1 workers hang in a handler that overran its timeout" in answer["reason"]
            assert (await client.get(f"{url}/livez")).status_code == 200
        finally:
            go_on.set()
        await until_ready_is(client, url, ready=True)


async def _order(lifecycle: Lifecycle, producer: Producer) -> None:
    lifecycle.append(Hook(on_start=lambda: producer.publish(Message("orders", b"tea"))))


async def test_a_broken_consumer_makes_an_app_unready(client: httpx.AsyncClient) -> None:
    app = consuming(MockHandler())
    await app.start()
    for task in asyncio.all_tasks():
        if "orders as billing worker 0" in task.get_name():
            task.cancel()
    answer = await until_ready_is(client, await url_of(app), ready=False)
    assert "it broke: a worker was cancelled from outside" in answer["reason"]
    await app.stop()


async def test_a_blocked_event_loop_is_neither_alive_nor_ready_though_the_endpoints_answer(
    write: Write, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(MEMORY.replace("port: 0", "port: 0, alive_timeout: 0.3"))
    monkeypatch.setattr(ops_pages, "PATIENCE", 0.3)
    said: list[Any] = []

    asked = asyncio.Event()

    def ask() -> None:
        while (alive := httpx.get(f"{url}/livez")).status_code == 200:
            pass
        said.extend((alive.json(), httpx.get(f"{url}/readyz").json(), httpx.get(f"{url}/info").status_code))

    async def block(message: Message) -> None:
        ask()  # from within the loop that this blocks
        asked.set()

    app = App(config.module, ops.module, memory.module, memory.consume("orders", handler=block))
    async with app:
        url = await url_of(app)
        producer = await app.get(Producer)
        await producer.publish(Message("orders", b""))
        await asked.wait()
        await until_ready_is(client, url, ready=True)
        async with asyncio.timeout(60):
            while (await client.get(f"{url}/livez")).status_code != 200:
                pass
    alive, ready, info = said
    assert not alive["alive"]
    assert "the event loop has not turned for" in alive["reason"]
    assert not ready["ready"]
    assert "the app did not say within 0.3 s" in ready["reason"]
    assert info == 503


async def test_a_locked_file_makes_an_app_unready_until_it_is_free(
    write: Write, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    write("sqlite: {path: events.db, topic: orders, group_id: g}\nops: {port: 0}\n")
    async with consuming(MockHandler(), sqlite) as app:
        url = await url_of(app)
        await until_ready_is(client, url, ready=True)
        other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = await until_ready_is(client, url, ready=False)
        assert answer["reason"].startswith("sqlite:///events.db: ")
        assert (await client.get(f"{url}/livez")).status_code == 200
        other.execute("ROLLBACK")
        other.close()
        await until_ready_is(client, url, ready=True)


async def test_a_killed_broker_makes_an_app_unready_until_it_is_back(
    write: Write, client: httpx.AsyncClient, own_redis: RedisServer
) -> None:
    url = own_redis.url.replace("redis://", "redis://:pass-word@")
    write(f"redis: {{url: '{url}', topic: orders, group_id: g}}\nops: {{port: 0}}\n")
    async with consuming(MockHandler(), redis) as app:
        ops_url = await url_of(app)
        ready = await until_ready_is(client, ops_url, ready=True)
        info = (await client.get(f"{ops_url}/info")).text
        await asyncio.to_thread(own_redis.kill)
        answer = await until_ready_is(client, ops_url, ready=False)
        assert f":{own_redis.port}" in answer["reason"]
        assert "pass-word" not in f"{ready}{info}{answer}"
        await asyncio.to_thread(own_redis.start)
        await until_ready_is(client, ops_url, ready=True)


async def test_a_port_in_use_is_said_in_a_sentence(write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(MEMORY.replace("port: 0", f"port: {port}"))
        with pytest.raises(
            ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use; expected"
        ):
            await consuming(MockHandler()).start()


def test_a_port_in_use_ends_the_app_with_code_1(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(MEMORY.replace("port: 0", f"port: {taken.getsockname()[1]}"))
        with pytest.raises(SystemExit) as ended:
            consuming(MockHandler()).run()
    assert ended.value.code == 1
    assert "the app did not start: ops.port: the ops endpoints cannot listen" in caplog.text


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_each_worker_takes_a_port_of_its_own_above_the_first(write: Write, number: int) -> None:
    (free,) = free_ports(1)
    write(MEMORY.replace("port: 0", f"port: {free - number + 1}"))
    app = consuming(MockHandler())
    app.worker = number
    async with app:
        assert (await app.get(ops.OpsServer)).port == free


async def test_a_workers_port_in_use_is_said_with_what_it_comes_from(write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(MEMORY.replace("port: 0", f"port: {port - 2}"))
        app = consuming(MockHandler())
        app.worker = 3
        with pytest.raises(
            ConfigError, match=rf":{port}: Address already in use.*worker 3 takes ops.port \+ 2"
        ):
            await app.start()


async def test_there_is_no_port_above_the_last(write: Write) -> None:
    write(MEMORY.replace("port: 0", "port: 65535"))
    app = consuming(MockHandler())
    app.worker = 2
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:65536: .*worker 2"):
        await app.start()


async def test_a_failed_start_ends_the_endpoints_as_well(client: httpx.AsyncClient) -> None:
    urls: list[str] = []

    def fail(server: ops.OpsServer) -> None:
        urls.append(server.url)
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await App(config.module, ops.module, memory.module, invoke(fail)).start()
    with pytest.raises(httpx.ConnectError):
        await client.get(f"{urls[0]}/livez")


async def test_it_serves_an_app_that_is_the_lifespan_of_a_web_application(client: httpx.AsyncClient) -> None:
    kit = consuming(MockHandler())
    web = Starlette(lifespan=kit.lifespan)
    async with web.router.lifespan_context(web):
        assert (await client.get(f"{await url_of(kit)}/readyz")).status_code == 200
    assert logging.getLogger("uvicorn.access").propagate  # that of the web application's own server


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
async def test_signals_are_the_apps_and_the_endpoints_answer_while_it_drains(
    tmp_path: Path, client: httpx.AsyncClient
) -> None:
    (tmp_path / "main.py").write_text("""
import asyncio
from things_kit import App, Message, Producer, invoke, provide
from things_kit.modules import config, logging, memory, ops

class Slow:
    async def handle(self, message: Message) -> None:
        print("handling", flush=True)
        await asyncio.to_thread(input)

async def order(producer: Producer, server: ops.OpsServer) -> None:
    await producer.publish(Message("orders", b""))
    print(server.url, flush=True)

App(config.module, logging.module, ops.module, memory.module, provide(Slow), invoke(memory.run_consumer), invoke(order)).run()
""")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "main.py",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    assert await process.stdout.readline() == b"handling\n"
    await until_ready_is(client, url, ready=True)
    process.send_signal(signal.SIGTERM)
    answer = await until_ready_is(client, url, ready=False)
    assert answer["reason"] == "the app is stopping"
    assert (await client.get(f"{url}/livez")).status_code == 200
    _, err = await process.communicate(b"\n")
    assert process.returncode == 0, err
    assert b"ops endpoints on http://127.0.0.1:" in err


def test_what_is_not_installed_is_said_in_a_sentence() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; import things_kit.modules.ops"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "things-kit[ops]"' in ended.stderr
