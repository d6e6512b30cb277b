"""An app inside a web framework."""

from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from things_kit import App, Message, Producer, invoke, provide
from things_kit.modules import config, memory
from things_kit.testing import MockHandler


async def test_starlette_runs_an_app_as_its_lifespan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("memory: {topic: orders, group_id: billing}\n")
    handler = MockHandler()
    kit = App(config.module, memory.module, provide(handler), invoke(memory.run_consumer))

    async def order(request: Request) -> Response:
        producer = await kit.get(Producer)  # type: ignore[type-abstract]
        await producer.publish(Message("orders", await request.body()))
        return PlainTextResponse("ordered", 202)

    web = Starlette(routes=[Route("/orders", order, methods=["POST"])], lifespan=kit.lifespan)
    async with web.router.lifespan_context(web):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
            assert (await client.post("/orders", content=b"o-1")).status_code == 202
        await handler.handled(1)
    handler.assert_handled(value=b"o-1", count=1)
    with pytest.raises(RuntimeError, match="does not run"):
        await kit.get(MockHandler)
