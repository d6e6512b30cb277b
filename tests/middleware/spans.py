"""What these tests look for among finished spans."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext


class Spans:
    """A provider whose spans can be looked at."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self, name: str) -> Sequence[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.all(name)
        return span


def identity(span: ReadableSpan) -> tuple[int, int]:
    return _identity(span.get_span_context())


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else _identity(span.parent)


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [_identity(link.context) for link in span.links]


def _identity(context: SpanContext | None) -> tuple[int, int]:
    assert context is not None
    return context.trace_id, context.span_id
