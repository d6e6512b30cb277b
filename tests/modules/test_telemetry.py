"""Telemetry as a module of an app."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.middleware.spans import Spans, identity, parent
from things_kit import App, Message, Producer, provide
from things_kit.middleware.tracing import Tracing
from things_kit.modules import config, memory, ops, telemetry
from things_kit.modules.instruments import Instruments
from things_kit.testing import MockHandler

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)
    return lambda text: void((tmp_path / "config.yaml").write_text(text))


def void(_: object) -> None:
    """For what is called for what it does."""


class Collector:
    """Takes what is exported by OTLP over HTTP."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        taken = self.taken

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                taken.append((self.path, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


async def order(app: App, handler: MockHandler) -> None:
    producer = await app.get(Producer)
    await producer.publish(Message("orders", b"tea"))
    await handler.handled(1)


async def test_an_app_uses_the_providers_that_it_provides(write: Write) -> None:
    write("memory: {}\n")
    spans, handler, reader = Spans(), MockHandler(), InMemoryMetricReader()
    app = App(
        config.module, memory.module, telemetry.module,
        provide(spans.provider), provide(MeterProvider([reader])),
        memory.consume("orders", group="g", handler=handler),
    )  # fmt: skip
    async with app:
        await order(app, handler)
    assert parent(spans.one("process orders")) == identity(spans.one("send orders"))
    assert reader.get_metrics_data() is not None
    spans.provider.get_tracer("shop").start_span("afterwards").end()
    assert spans.one("afterwards")  # it is the app's own: not shut down


async def test_what_is_off_is_not_there(write: Write) -> None:
    write("memory: {}\ntelemetry: {traces: false, metrics: false}\nops: {port: 0}\n")
    spans, handler = Spans(), MockHandler()
    app = App(
        config.module, ops.module, memory.module, telemetry.module, provide(spans.provider),
        memory.consume("orders", group="g", handler=handler),
    )  # fmt: skip
    async with app, httpx.AsyncClient() as client:
        await order(app, handler)
        url = (await app.get(ops.OpsServer)).url
        assert (await client.get(f"{url}/metrics")).status_code == 404
    assert spans.names() == []
    assert handler.messages[0].headers == {}


async def test_an_instrument_of_an_apps_own_serves_in_place_of_the_module(write: Write) -> None:
    write("memory: {}\n")
    spans, handler = Spans(), MockHandler()
    app = App(
        config.module, memory.module, provide(Instruments([Tracing(spans.provider)])),
        memory.consume("orders", group="g", handler=handler),
    )  # fmt: skip
    async with app:
        await order(app, handler)
    assert parent(spans.one("process orders")) == identity(spans.one("send orders"))


def run(folder: Path, code: str) -> str:
    """In a process of its own, as providers are made for the whole of it."""
    (folder / "main.py").write_text(code)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "main.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


APP = """
import asyncio, threading, httpx
from opentelemetry import trace
from things_kit import App, Message, Producer, provide
from things_kit.modules import config, memory, ops, telemetry
from things_kit.testing import MockHandler

async def once():
    handler = MockHandler()
    app = App(
        config.module, ops.module, memory.module, telemetry.module,
        memory.consume("orders", group="g", handler=handler),
    )
    async with app, httpx.AsyncClient() as client:
        producer = await app.get(Producer)
        with trace.get_tracer("shop").start_as_current_span("checkout"):
            await producer.publish(Message("orders", b"tea"))
        await handler.handled(1)
        url = (await app.get(ops.OpsServer)).url
        print((await client.get(url + "/metrics")).text)
    left = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    assert left == [threading.main_thread()], left

async def main():
    await once()
    await once()  # the process's own providers are those of the first, which were shut down

asyncio.run(main())
"""


async def test_metrics_are_on_the_page_for_prometheus_and_spans_go_to_the_collector(
    tmp_path: Path, collector: Collector
) -> None:
    (tmp_path / "config.yaml").write_text(
        f"memory: {{}}\nops: {{port: 0}}\ntelemetry: {{endpoint: '{collector.url}', service_name: shop}}\n"
    )
    printed = await asyncio.to_thread(run, tmp_path, APP)
    lines = [line for line in printed.splitlines() if 'messaging_destination_name="orders"' in line]
    for name in (
        "messaging_client_sent_messages_total",
        "messaging_client_consumed_messages_total",
        "messaging_process_duration_seconds_count",
        "messaging_client_operation_duration_seconds_count",
    ):
        (first, second) = [line for line in lines if line.startswith(f"{name}{{")]
        assert first.endswith(" 1.0")
        assert second.endswith(" 1.0")
    requests = [
        ExportTraceServiceRequest.FromString(body) for path, body in collector.taken if path == "/v1/traces"
    ]
    resources = [spans for request in requests for spans in request.resource_spans]
    names = [span.name for spans in resources for scope in spans.scope_spans for span in scope.spans]
    assert sorted(names) == ["checkout", "process orders", "process orders", "send orders", "send orders"]
    said = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
    assert said["service.name"] == "shop"
    assert any(path == "/v1/metrics" for path, _ in collector.taken)


async def test_without_a_collector_there_are_metrics_but_no_spans(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("memory: {}\nops: {port: 0}\n")
    printed = await asyncio.to_thread(run, tmp_path, APP)
    assert "messaging_client_sent_messages_total{" in printed


def test_what_is_not_installed_is_said_in_a_sentence() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import things_kit.modules.telemetry"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "things-kit[otel]"' in ended.stderr
