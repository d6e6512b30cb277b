"""What the ops endpoints answer: whether the app is alive and ready, its metrics, and what it is."""

import asyncio
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from things_kit.app.app import App
from things_kit.engine.broker import Broker
from things_kit.messaging.health import Health
from things_kit.modules.instruments import MetricsPage
from things_kit.modules.pulse import Pulse
from things_kit.modules.relays import brokers_of, relays_of

PATIENCE: Final = 6.0
"""Seconds within which the app must say whether it is ready: a broker has five to answer."""


class Pages:
    """The endpoints of one run of an app. All but the constructor is called in the server's thread."""

    def __init__(
        self,
        app: App,
        *,
        alive_timeout: float,
        about: dict[str, str],
        metrics: MetricsPage | None,
    ) -> None:
        """Make them on the app's own event loop."""
        self.pulse = Pulse()
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._alive_timeout = alive_timeout
        self._about = about
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self.asgi = Starlette(
            routes=[
                Route("/livez", self.livez),
                Route("/readyz", self.readyz),
                Route("/info", self.info),
                Route("/metrics", _no_metrics if metrics is None or metrics.asgi is None else metrics),
            ]
        )

    async def livez(self, _: Request) -> Response:
        """200 as long as the app's event loop turns."""
        blocked = self.pulse.age()
        alive = blocked < self._alive_timeout
        reason = None if alive else f"the event loop has not turned for {blocked:.0f} s: something blocks it"
        return _json({"alive": alive, "reason": reason}, ok=alive)

    async def readyz(self, _: Request) -> Response:
        """200 as long as the app runs, every broker answers and every consumer gets on."""
        if self._asking is None or self._asking.done():  # however many ask, the brokers are asked once
            self._asking = asyncio.create_task(self._ask())
        answer = await asyncio.shield(self._asking)
        return _json(answer, ok=answer["ready"])

    async def info(self, _: Request) -> Response:
        """What the app is, without secrets."""
        try:
            return _json(await self._there(self._describe()))
        except TimeoutError:
            return _json({"reason": self._silence}, ok=False)

    async def _ask(self) -> dict[str, Any]:
        try:
            return await self._there(self._readiness())
        except TimeoutError:
            return {"ready": False, "reason": self._silence}

    async def _there(self, asked: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Ask on the app's own event loop. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, self._loop))

    @property
    def _silence(self) -> str:
        return (
            f"the app did not say within {PATIENCE:g} s: something blocks its event loop, or a broker does "
            "not answer"
        )

    async def _readiness(self) -> dict[str, Any]:
        brokers, relays = brokers_of(self._app), relays_of(self._app)
        healths = await asyncio.gather(*map(_health, brokers))
        relaying = await asyncio.gather(*(relay.health() for relay in relays if relay.brokers))
        state = self._app.state
        reasons = [each.reason for each in healths if not each.ok]
        reasons += [each.reason for each in relaying if not each.ok]
        reason = next(iter(reasons), None)
        if reason is None and state != "running":
            reason = f"the app is {state}"
        return {
            "ready": reason is None,
            "reason": reason,
            "state": state,
            "brokers": [
                {"url": broker.url.display, **msgspec.to_builtins(health)}
                for broker, health in zip(brokers, healths, strict=True)
            ],
            "relays": [msgspec.to_builtins(health) for health in relaying],
        }

    async def _describe(self) -> dict[str, Any]:
        return {
            **self._about,
            "things_kit": version("things-kit"),
            "state": self._app.state,
            "brokers": [_described(broker) for broker in brokers_of(self._app)],
        }


async def _health(broker: Broker) -> Health:
    try:
        return await broker.health()
    except Exception as error:  # noqa: BLE001 - whatever a driver does, the others are still asked
        return Health(
            ok=False, reason=f"{broker.url.display}: its health cannot be read: {type(error).__qualname__}"
        )


def _described(broker: Broker) -> dict[str, Any]:
    return {
        "url": broker.url.display,
        "capabilities": msgspec.to_builtins(broker.capabilities),
        "emulated": broker.capabilities.emulated,
        "consumers": [{"topics": each.options.topics, "group": each.group} for each in broker.consumers],
    }


async def _no_metrics(_: Request) -> Response:
    return PlainTextResponse(
        "This app has no metrics: add telemetry.module, from things_kit.modules, to its App, with "
        "telemetry.metrics on.\n",
        404,
    )


def _json(answer: dict[str, Any], *, ok: bool = True) -> Response:
    return Response(
        msgspec.json.encode(answer), 200 if ok else 503, {"cache-control": "no-store"}, "application/json"
    )
