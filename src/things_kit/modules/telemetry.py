"""The module `telemetry`: OpenTelemetry's spans and metrics of all brokers of an app."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated, Any, Final
from weakref import WeakSet

from pydantic import BaseModel, Field

from things_kit.app.app import App
from things_kit.app.parts import module as make_module
from things_kit.app.parts import provide
from things_kit.app.settings import section
from things_kit.messaging.instrument import Instrument
from things_kit.modules.instruments import Instruments, MetricsPage

try:
    import prometheus_client
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    from things_kit.middleware.metrics import Metrics
    from things_kit.middleware.tracing import Tracing
    from things_kit.modules.lag import Lag
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the module telemetry needs the package {error.name!r}, which is not installed: "
        'pip install "things-kit[otel]"',
        name=error.name,
    ) from None

_ours: Final[WeakSet[Any]] = WeakSet()
"""Providers that an app has made, and shut down at its end: the global one may be of an app that ran before."""


class TelemetrySettings(BaseModel):
    """The section `telemetry`. What it does not say, OpenTelemetry's own variables do, such as OTEL_SERVICE_NAME."""

    service_name: str | None = None
    endpoint: str | None = Field(
        default=None, description="A collector that takes OTLP over HTTP, such as http://localhost:4318."
    )
    traces: bool = True
    metrics: bool = True
    sample: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="The share of the traces begun here that are recorded."
    )
    lag_interval: Annotated[float, Field(gt=0)] | None = Field(
        default=30.0,
        description="Seconds after which brokers are asked again how far groups lag; null for never.",
    )
    create_spans: bool = Field(
        default=True, description="Whether each message of a publish_batch has a span of its own."
    )

    def exports(self, signal: str) -> bool:
        """Whether there is a collector for TRACES or METRICS."""
        variables = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        return self.endpoint is not None or any(os.environ.get(name) for name in variables)

    def to(self, path: str) -> str | None:
        """Where an exporter sends; None for what the variables say."""
        return None if self.endpoint is None else f"{self.endpoint.rstrip('/')}/v1/{path}"

    def resource(self) -> Resource:
        """What all spans and metrics say of the app."""
        return Resource.create({SERVICE_NAME: self.service_name} if self.service_name else {})


class Telemetry:
    """What an app sees of its messages: its instruments, and a page of metrics where there are any."""

    def __init__(self, instruments: list[Instrument], page: Any) -> None:
        self.instruments = instruments
        self.page = page


async def _set_up(
    app: App,
    settings: TelemetrySettings,
    tracers: trace.TracerProvider | None,
    meters: metrics.MeterProvider | None,
) -> AsyncIterator[Telemetry]:
    """Use the app's own providers, or the process's, or make some; the latter are flushed and shut down at the end."""
    instruments: list[Instrument] = []
    made: list[TracerProvider | MeterProvider] = []
    if settings.traces:
        tracers = tracers or _global_tracers() or _make_tracers(settings, made)
        instruments.append(Tracing(tracers, create_spans=settings.create_spans))
    if settings.metrics:
        meters = meters or _global_meters() or _make_meters(settings, made)
        instruments.append(Metrics(meters))
    try:
        async with _lag(app, settings, meters):
            yield Telemetry(instruments, prometheus_client.make_asgi_app() if settings.metrics else None)
    finally:
        await asyncio.gather(*(asyncio.to_thread(provider.shutdown) for provider in made))


def _lag(
    app: App, settings: TelemetrySettings, meters: metrics.MeterProvider | None
) -> AbstractAsyncContextManager[None]:
    if meters is None or not settings.metrics or settings.lag_interval is None:
        return nullcontext()
    return Lag(app, meters).watched(settings.lag_interval)


def _global_tracers() -> trace.TracerProvider | None:
    found = trace.get_tracer_provider()
    return found if isinstance(found, TracerProvider) and found not in _ours else None


def _global_meters() -> metrics.MeterProvider | None:
    found = metrics.get_meter_provider()
    return found if isinstance(found, MeterProvider) and found not in _ours else None


def _make_tracers(
    settings: TelemetrySettings, made: list[TracerProvider | MeterProvider]
) -> trace.TracerProvider | None:
    """A provider that exports, the process's own from now on; None where nobody would get the spans."""
    if not settings.exports("TRACES"):
        return None
    # It takes longer to import than the app
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    sampler = None if settings.sample is None else ParentBasedTraceIdRatio(settings.sample)
    provider = TracerProvider(sampler, settings.resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.to("traces"))))
    made.append(provider)
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(provider)
    _ours.add(provider)
    return provider


def _make_meters(
    settings: TelemetrySettings, made: list[TracerProvider | MeterProvider]
) -> metrics.MeterProvider:
    """A provider that Prometheus can ask, and that exports where there is a collector."""
    readers: list[MetricReader] = [PrometheusMetricReader()]
    if settings.exports("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - as above
            OTLPMetricExporter,
        )

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(settings.to("metrics"))))
    provider = MeterProvider(readers, settings.resource(), shutdown_on_exit=False)
    made.append(provider)
    if not isinstance(metrics.get_meter_provider(), MeterProvider):
        metrics.set_meter_provider(provider)
    _ours.add(provider)
    return provider


def _instruments(telemetry: Telemetry) -> Instruments:
    return Instruments(telemetry.instruments)


def _page(telemetry: Telemetry) -> MetricsPage:
    return MetricsPage(telemetry.page)


module: Final = make_module(
    "telemetry",
    section("telemetry", TelemetrySettings),
    provide(_set_up),
    provide(_instruments),
    provide(_page),
)
"""Sees what all brokers of the app send and handle, by the section `telemetry`."""

__all__ = ["TelemetrySettings", "module"]
