"""Spans for what is sent and handled, and the context of the sender in the message's headers."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
    use_span,
)

from things_kit.messaging.handler import Handle, HandleBatch, Middleware
from things_kit.messaging.instrument import Ask, Endpoint, Send
from things_kit.messaging.message import Message
from things_kit.messaging.names import in_any_case
from things_kit.messaging.outcomes import Later, Retry
from things_kit.middleware import conventions as words

NOWHERE: Final = Context()
"""What a message's context begins in: not in that of the worker, which is nobody's."""


class Tracing:
    """Spans by OpenTelemetry's conventions for messaging: "send orders", "process orders", "create orders".

    The context of the span that first sent a message goes with it in its headers, by the propagators that are set up:
    by default as W3C's `traceparent`, `tracestate` and `baggage`. A message that has a context keeps it, whoever gave
    it and however often it is sent again. So all attempts, dead letters and replays belong to the trace of the first
    sending: handling is its child, and sending again links to it.
    """

    def __init__(self, provider: TracerProvider | None = None, *, create_spans: bool = True) -> None:
        """Make the instrument.

        Args:
            provider: Where spans go; the global provider where None.
            create_spans: Whether each message of a `publish_batch` has a span of its own to be handled under. Else
                all of them are handled under the span of the sending.
        """
        self._tracer = get_tracer(words.SCOPE, tracer_provider=provider, schema_url=words.SCHEMA)
        self._create_spans = create_spans

    def sending(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """A span for each sending, and the context into headers."""
        common = words.of_operation(endpoint, "send")
        creating = words.of_operation(endpoint, "create")

        def wrap(send: Send) -> Send:
            async def traced(messages: Sequence[Message]) -> dict[int, Exception]:
                if not all(map(_sound, messages)):
                    return await send(messages)  # it will be refused
                messages = [_identified(message) for message in messages]
                if len(messages) > 1 and self._create_spans:
                    messages = [self._created(message, creating) for message in messages]
                return await _sent(send, messages, self._send_span(messages, common))

            return traced

        return wrap

    def _created(self, message: Message, common: words.Attributes) -> Message:
        """The message with a context of its own, unless it has one."""
        if _link(message):
            return message
        said = common | words.of_message(message, common[words.SYSTEM])
        with self._tracer.start_as_current_span(
            f"create {message.topic}", kind=SpanKind.PRODUCER, attributes=said
        ):
            return _carrying(message, contexts.get_current())

    def _send_span(self, messages: Sequence[Message], common: words.Attributes) -> Span:
        links = [link for message in messages for link in _link(message)]
        topic = words.destination(messages)
        said = dict(common)
        if len(messages) == 1:
            said |= words.of_message(messages[0], common[words.SYSTEM])
        else:
            said[words.COUNT] = len(messages)
            if topic is not None:
                said[words.DESTINATION] = topic
        return self._tracer.start_span(
            "send" if topic is None else f"send {topic}",
            kind=SpanKind.CLIENT if len(links) == len(messages) else SpanKind.PRODUCER,
            attributes=said,
            links=links,
        )

    def asking(self, endpoint: Endpoint) -> Callable[[Ask], Ask]:
        """A span from the request until its reply: that of the sending is its child."""
        common = words.of_operation(endpoint, "request", "send")
        system = common[words.SYSTEM]

        def wrap(ask: Ask) -> Ask:
            async def traced(message: Message) -> Message:
                if not _sound(message):
                    return await ask(message)  # it will be refused
                message = _identified(message)
                span = self._tracer.start_span(
                    f"request {message.topic}",
                    kind=SpanKind.CLIENT,
                    attributes=common | words.of_message(message, system),
                    links=_link(message),
                )
                with use_span(span, record_exception=False, set_status_on_exception=False), _Ending(span):
                    return await ask(message)

            return traced

        return wrap

    def answering(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """A span for each reply, under the attempt that it comes from; its context goes along."""
        common = words.of_operation(endpoint, "reply", "send") | {words.TEMPORARY: True}
        system = common[words.SYSTEM]

        def wrap(send: Send) -> Send:
            async def traced(messages: Sequence[Message]) -> dict[int, Exception]:
                said = common | words.of_message(messages[0], system)
                span = self._tracer.start_span("reply (temporary)", kind=SpanKind.PRODUCER, attributes=said)
                return await _sent(send, messages, span)

            return traced

        return wrap

    def handling(self, endpoint: Endpoint, group: str | None) -> Middleware:
        """A span for each attempt, under the context that came with the message."""
        common = words.of_consumption(endpoint, group)
        system, start = common[words.SYSTEM], self._tracer.start_span

        def wrap(handle: Handle) -> Handle:
            async def traced(message: Message) -> None:
                context = propagate.extract(message.headers, NOWHERE, _FOUND)
                said = common | words.of_message(message, system)
                said[words.ATTEMPT] = message.attempt
                span = start(
                    f"process {message.topic}", context, SpanKind.CONSUMER, said, _link(message, context)
                )
                with _Current(span, context), _Ending(span):
                    await handle(message)

            return traced

        return wrap

    def handling_batches(self, endpoint: Endpoint, group: str | None) -> Callable[[HandleBatch], HandleBatch]:
        """A span for each call, linked to the context that came with each message."""
        common = words.of_consumption(endpoint, group)

        def wrap(handle: HandleBatch) -> HandleBatch:
            async def traced(messages: list[Message]) -> None:
                topic = words.destination(messages)
                said = common | {words.COUNT: len(messages)}
                if topic is not None:
                    said[words.DESTINATION] = topic
                links = [link for message in messages for link in _link(message)]
                name = "process" if topic is None else f"process {topic}"
                span = self._tracer.start_span(name, NOWHERE, SpanKind.CONSUMER, said, links)
                with _Current(span, NOWHERE), _Ending(span):
                    await handle(messages)

            return traced

        return wrap


async def _sent(send: Send, messages: Sequence[Message], span: Span) -> dict[int, Exception]:
    """Send messages that carry a span's context, and end it with what became of them."""
    context = set_span_in_context(span)
    with _Ending(span) as ending:
        errors = await send([_carrying(message, context) for message in messages])
        if errors:
            ending.failed(next(iter(errors.values())))
    return errors


class _Ending:
    """Ends a span, with what it failed of."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> "_Ending":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Retry | Later):
            self._span.set_attribute(words.ERROR_TYPE, words.error_type(error))  # asked for, so not a fault
        elif error is not None:
            self.failed(error)
        self._span.end()

    def failed(self, error: BaseException) -> None:
        """Note a failure."""
        self._span.set_attribute(words.ERROR_TYPE, words.error_type(error))
        with suppress(Exception):  # one that cannot be printed is still only the handler's failure
            self._span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
            self._span.record_exception(error)


class _Current:
    """Makes a span the current one of its worker.

    After a failure it stays so until the worker's next message: what follows from the failure, such as the dead letter,
    is sent from tasks that begin in this context, and so belongs to the attempt.
    """

    def __init__(self, span: Span, context: Context) -> None:
        self._context = set_span_in_context(span, context)

    def __enter__(self) -> None:
        self._token = contexts.attach(self._context)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            contexts.detach(self._token)


class _Found(Getter[Mapping[str, str]]):
    """Finds headers in any case, as their standards say."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        text = in_any_case(carrier, key)
        return None if text is None else [text]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


class _Added(Setter[dict[str, str]]):
    """Sets headers, but none that the message has."""

    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        if in_any_case(carrier, key) is None:
            carrier[key] = value


_FOUND: Final = _Found()
_ADDED: Final = _Added()


def _carrying(message: Message, context: Context) -> Message:
    """The message with this context in its headers, unless it has one."""
    if _link(message):
        return message
    headers = dict(message.headers)
    propagate.inject(headers, context, _ADDED)
    return message.replace(headers=headers)


def _link(message: Message, context: Context | None = None) -> list[Link]:
    """The context that came with a message, as a link; none where it has none."""
    if context is None:
        if not message.headers:
            return []
        context = propagate.extract(message.headers, NOWHERE, _FOUND)
    came_from = get_current_span(context).get_span_context()
    return [Link(came_from)] if came_from.is_valid else []


def _identified(message: Message) -> Message:
    return message if message.id is not None else message.replace(id=f"{secrets.token_hex(12)}-0")


def _sound(message: object) -> bool:
    return (
        isinstance(message, Message)
        and isinstance(message.topic, str)
        and isinstance(message.value, bytes)
        and isinstance(message.headers, Mapping)
        and all(type(name) is type(text) is str for name, text in message.headers.items())
    )
