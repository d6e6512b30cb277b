"""Figures of what is sent and handled: how many, how long, and how many of them failed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from opentelemetry.metrics import MeterProvider, get_meter, get_meter_provider

from things_kit.messaging.handler import Handle, HandleBatch, Middleware
from things_kit.messaging.instrument import Endpoint, Send, Watched
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError, Later
from things_kit.middleware import conventions as words
from things_kit.middleware.gauges import gauges_of


class Metrics:
    """Counters and histograms by OpenTelemetry's conventions for messaging, each with its topic.

    `messaging.client.sent.messages`, `messaging.client.operation.duration`, `messaging.client.consumed.messages` and
    `messaging.process.duration`. Every attempt counts as consumed; a failure has `error.type`. Beside them the gauges
    `things_kit.consumer.put_off` and `things_kit.consumer.middleware`.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        """Make the instrument. Figures go to the provider; to the global one where None."""
        self._provider = provider or get_meter_provider()
        meter = get_meter(words.SCOPE, meter_provider=provider, schema_url=words.SCHEMA)
        self._sent = meter.create_counter(words.SENT, "{message}", "Messages that were to be sent.")
        self._consumed = meter.create_counter(words.CONSUMED, "{message}", "Messages handed to a handler.")
        self._sending = meter.create_histogram(
            words.OPERATION_DURATION, "s", "How long sending took.",
            explicit_bucket_boundaries_advisory=words.BUCKETS,
        )  # fmt: skip
        self._processing = meter.create_histogram(
            words.PROCESS_DURATION, "s", "How long a handler took.",
            explicit_bucket_boundaries_advisory=words.BUCKETS,
        )  # fmt: skip

    def sending(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """Count and time what is sent."""
        common = words.of_operation(endpoint, "send")

        def wrap(send: Send) -> Send:
            async def measured(messages: Sequence[Message]) -> dict[int, Exception]:
                begun = perf_counter()
                errors: Mapping[int, BaseException] = {}
                try:
                    failed = await send(messages)
                    errors = failed
                except BaseException as error:
                    errors = dict.fromkeys(range(len(messages)), error)
                    raise
                finally:
                    self._note_sent(common, messages, errors, perf_counter() - begun)
                return failed

            return measured

        return wrap

    def _note_sent(
        self,
        common: words.Attributes,
        messages: Sequence[Message],
        errors: Mapping[int, BaseException],
        took: float,
    ) -> None:
        counts = Counter(
            _kind(message, errors.get(index))
            for index, message in enumerate(messages)
            if isinstance(message, Message)
        )
        for (topic, error), count in counts.items():
            self._sent.add(count, common | _said(topic, error))
        topics = {topic for topic, _ in counts}
        error = words.error_type(next(iter(errors.values()))) if errors else None
        self._sending.record(took, common | _said(topics.pop() if len(topics) == 1 else None, error))

    def handling(self, endpoint: Endpoint, group: str | None) -> Middleware:
        """Count and time each attempt."""
        common = words.of_consumption(endpoint, group)

        def wrap(handle: Handle) -> Handle:
            async def measured(message: Message) -> None:
                begun = perf_counter()
                said = common | {words.DESTINATION: message.topic}
                begins = True
                try:
                    await handle(message)
                except Later:
                    begins = False  # that is no attempt
                    raise
                except BaseException as error:
                    said[words.ERROR_TYPE] = words.error_type(error)
                    raise
                finally:
                    if begins:
                        self._processing.record(perf_counter() - begun, said)
                        self._consumed.add(1, said)

            return measured

        return wrap

    def handling_batches(self, endpoint: Endpoint, group: str | None) -> Callable[[HandleBatch], HandleBatch]:
        """Count each message, and time each call."""
        common = words.of_consumption(endpoint, group)

        def wrap(handle: HandleBatch) -> HandleBatch:
            async def measured(messages: list[Message]) -> None:
                begun = perf_counter()
                failure: BaseException | None = None
                try:
                    await handle(messages)
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    if not isinstance(failure, Later):  # that is no attempt
                        self._note_handled(common, messages, failure, perf_counter() - begun)

            return measured

        return wrap

    def watch(self, endpoint: Endpoint, group: str | None, consumer: Watched) -> Callable[[], None]:
        """Have the gauges say how this consumer is, until what this returns is called."""
        return gauges_of(self._provider).watch(words.of_watched(endpoint, group, consumer.topics), consumer)

    def _note_handled(
        self,
        common: words.Attributes,
        messages: Sequence[Message],
        failure: BaseException | None,
        took: float,
    ) -> None:
        kind = None if failure is None else words.error_type(failure)
        self._processing.record(took, common | _said(words.destination(messages), kind))
        for (topic, error_kind), count in _consumed(messages, failure).items():
            self._consumed.add(count, common | _said(topic, error_kind))


def _consumed(messages: Sequence[Message], failure: BaseException | None) -> Counter[tuple[str, str | None]]:
    each: Mapping[int, BaseException] = {}
    if isinstance(failure, BatchError):
        each = failure.errors
    elif failure is not None:
        each = dict.fromkeys(range(len(messages)), failure)
    return Counter(_kind(message, each.get(index)) for index, message in enumerate(messages))


def _kind(message: Message, error: BaseException | None) -> tuple[str, str | None]:
    return str(message.topic), None if error is None else words.error_type(error)


def _said(topic: str | None, error: str | None) -> words.Attributes:
    said: words.Attributes = {}
    if topic is not None:
        said[words.DESTINATION] = topic
    if error is not None:
        said[words.ERROR_TYPE] = error
    return said
