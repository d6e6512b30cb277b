"""What modules hand to one another of telemetry, without its packages: an app may have none."""

from typing import Any

from things_kit.messaging.instrument import Instrument


class Instruments(tuple[Instrument, ...]):
    """What wraps the sending and handling of all brokers of an app. Provided by the module `telemetry`."""

    __slots__ = ()


class MetricsPage:
    """An ASGI application that answers with all metrics of the process, as Prometheus reads them.

    `asgi` is None where metrics are off.
    """

    def __init__(self, asgi: Any) -> None:
        self.asgi = asgi

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        await self.asgi(scope, receive, send)
