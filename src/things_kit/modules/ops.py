"""The module `ops`: HTTP endpoints for those who run the app."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

from pydantic import BaseModel, Field

from things_kit.app.app import App
from things_kit.app.parts import invoke, provide
from things_kit.app.parts import module as make_module
from things_kit.app.settings import section
from things_kit.messaging.errors import ConfigError
from things_kit.modules.instruments import MetricsPage

try:
    from things_kit.modules.ops_pages import Pages
    from things_kit.modules.ops_server import OpsServer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'the module ops needs the package {error.name!r}, which is not installed: pip install "things-kit[ops]"',
        name=error.name,
    ) from None


class OpsSettings(BaseModel):
    """The section `ops`."""

    host: str = Field(
        default="127.0.0.1", description="0.0.0.0 lets other machines ask, such as in a container."
    )
    port: int = Field(
        default=8081,
        ge=0,
        le=65535,
        description="0 for any free one; it is logged. Further workers take those above.",
    )
    alive_timeout: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="Seconds of a blocked event loop after which the app is not alive."
    )
    info: dict[str, str] = Field(default={}, description="What /info says beside, such as the app's version.")


async def _serve(app: App, settings: OpsSettings, metrics: MetricsPage | None) -> AsyncIterator[OpsServer]:
    pages = Pages(app, alive_timeout=settings.alive_timeout, about=settings.info, metrics=metrics)
    try:
        server = _listening(app, settings, pages)
        server.start()
        yield server
        await server.stop()
    finally:
        pages.pulse.stop()


def _listening(app: App, settings: OpsSettings, pages: Pages) -> OpsServer:
    """The server on the port of this worker: those of one app cannot share one, as each answers for itself only."""
    above = app.worker - 1 if settings.port else 0
    try:
        return OpsServer(pages.asgi, settings.host, settings.port + above)
    except ConfigError as error:
        if not above:
            raise
        whose = f"{error} (worker {app.worker} takes ops.port + {above})"
        raise ConfigError(whose) from error.__cause__


def _begin(_: OpsServer) -> None:
    """Ask for the server, so that it answers from here on, while the app starts, until after its hooks have stopped."""


module: Final = make_module("ops", section("ops", OpsSettings), provide(_serve), invoke(_begin))
"""Serves `/livez`, `/readyz`, `/metrics` and `/info` by the section `ops`. Give it early: it serves from there on."""

__all__ = ["OpsServer", "OpsSettings", "module"]
