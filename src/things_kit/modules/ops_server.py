"""A web server in a thread of its own, so that it answers whatever the app's event loop does."""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.ops")

GRACE: Final = 2
"""Seconds that a request may take once the server stops."""


class _Config(uvicorn.Config):
    """Logs as the app does: uvicorn's own set-up concerns the whole process, and so a web application beside us."""

    def configure_logging(self) -> None:
        """Leave everything as it is."""


class _Protocol(H11Protocol):
    """Does not log every probe."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False


class OpsServer:
    """Serves from `start` until `stop`, at `url`. Outside of the main thread it leaves signals alone."""

    def __init__(self, asgi: Any, host: str, port: int) -> None:
        """Listen at once.

        Raises:
            ConfigError: The address is in use, or not ours.
        """
        self._socket = _listening(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{shown}:{self.port}"
        config = _Config(asgi, http=_Protocol, lifespan="off", ws="none", timeout_graceful_shutdown=GRACE)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="things_kit ops", daemon=True)

    def start(self) -> None:
        """Answer requests."""
        self._thread.start()
        log.info("ops endpoints on %s", self.url)

    async def stop(self) -> None:
        """Answer those that are under way, and leave nothing behind."""
        self._server.should_exit = True
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        with self._socket, _quietly(threading.get_ident()):
            try:
                asyncio.run(self._server.serve([self._socket]))
            except Exception:
                log.exception("the ops endpoints do not answer any more")


@contextmanager
def _quietly(thread: int) -> Iterator[None]:
    """Leave out what uvicorn says of starting and ending here: "Shutting down" is not the app's news to its readers."""

    def wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.INFO

    uvicorns = logging.getLogger("uvicorn.error")
    uvicorns.addFilter(wanted)
    try:
        yield
    finally:
        uvicorns.removeFilter(wanted)


def _listening(host: str, port: int) -> socket.socket:
    try:
        if port > 65535:
            raise OSError("there are none above 65535")
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = str(error.strerror or error).partition(" (")[0]
        raise ConfigError(
            f"ops.port: the ops endpoints cannot listen on {host}:{port}: {why}; expected a free "
            "port of this machine, or 0 for any"
        ) from error
