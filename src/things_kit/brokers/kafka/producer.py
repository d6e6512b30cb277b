"""The thread that publishes to Kafka: messages go in by the batch, and delivery reports come back by the batch."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from things_kit.brokers.kafka.batches import LARGEST
from things_kit.brokers.kafka.errors import GIVEN_UP, error_of, refused
from things_kit.brokers.kafka.options import Settings
from things_kit.brokers.kafka.parting import PARTING, part, told, within_or_not
from things_kit.brokers.kafka.wire import Clock, raw_headers
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.kafka")

ANYWHERE: Final = -1
"""The partition of a message that leaves it to the partitioner (RD_KAFKA_PARTITION_UA)."""

IDLE: Final = 1.0
"""Seconds between two looks at librdkafka's events while nothing is being sent."""

BUSY: Final = 0.003
"""Seconds for which a wait for delivery reports may keep the next batch waiting."""

OVERDUE: Final = 12.0
"""Seconds without any delivery report after which it is asked whether the broker answers others; longer than librdkafka
takes to replace a connection that went silent."""

LOOK: Final = 0.5
"""Seconds between two such questions, at least."""

AGAIN: Final = 3.0
"""Seconds that librdkafka then has to find back to a broker that answers."""

PURGE: Final = 1.0
"""Seconds that the reports of messages may take that are given up."""

Results = list[Exception | None]

Judge = Callable[[KafkaError, str], Exception]
"""What a delivery report for a message to a topic means that says an error."""


class Sending:
    """One `send`: its messages, the sizes of batches for topics that have one, and what became of each so far."""

    def __init__(self, messages: Sequence[Message], sizes: Mapping[str, int], judge: Judge) -> None:
        self.messages = messages
        self.sizes = sizes
        self.answer: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self.given_up = False
        self.open = len(messages)
        self._judge = judge
        self._results: Results = [None] * len(messages)

    def failed(self, index: int, error: KafkaError) -> None:
        """A message is not published, nor will be. In the sending thread."""
        self._results[index] = self._judge(error, self.messages[index].topic)
        self.open -= 1
        if not self.open:
            self.ended()

    def ended(self) -> None:
        """There is a report of each message. In the sending thread; the loop hears of all at once."""
        told(self.answer.get_loop(), self._settle)

    def _settle(self) -> None:
        if self.answer.done():
            return
        failures = filter(None, self._results)  # nearly always none of thousands
        lost = next((each for each in failures if isinstance(each, ConnectionLost)), None)
        if lost is not None:
            self.answer.set_exception(lost)
        else:
            self.answer.set_result(self._results)

    async def answered(self, within: float) -> bool:
        """Wait for the answer for so many seconds; whether it is there."""
        await asyncio.wait({self.answer}, timeout=within)
        return self.answer.done()


class _Hearing:
    """When a broker was last heard of: at `at`, and since then where there is `news`."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.news = False

    def note(self) -> None:
        """What was heard was heard now."""
        if self.news:
            self.at, self.news = time.monotonic(), False


class _Report(msgspec.Struct, eq=False, gc=False):
    """What librdkafka is to call about one message. There are many at a time: the garbage collector need not know them."""

    sending: Sending
    hearing: _Hearing
    index: int

    def __call__(self, error: KafkaError | None, _: Any) -> None:
        sending = self.sending
        if error is not None:
            sending.failed(self.index, error)
            return
        self.hearing.news = True
        sending.open -= 1
        if not sending.open:
            sending.ended()


class SendingThread:
    """Owns the producers, nearly always one. librdkafka keeps their order, and repeats what was not confirmed."""

    def __init__(self, settings: Settings, ping: Callable[[], Awaitable[None]]) -> None:
        self._settings = settings
        self._ping = ping
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._forsaken = False
        self._hearing = _Hearing()
        self._jobs: SimpleQueue[Sending | None] = SimpleQueue()
        self._producers: dict[int, Producer] = {}
        self._producer(LARGEST)
        self._fatal: KafkaError | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="things_kit kafka producer", daemon=True)
        self._thread.start()

    async def send(self, messages: Sequence[Message], sizes: Mapping[str, int]) -> Results:
        """One result a message, once all are known. `sizes` are those of topics with smaller batches.

        Raises ConnectionLost.

        Cancelled, it leaves to `message.timeout.ms` what librdkafka already has: that may still arrive.
        """
        if not messages:
            return []
        sending = Sending(messages, dict(sizes), self._judge)
        self._jobs.put(sending)
        try:
            while not sending.answer.done():
                await self._attend(sending)
            return sending.answer.result()
        finally:
            sending.given_up = True
            sending.answer.cancel()

    async def _attend(self, sending: Sending) -> None:
        """Wait for the answer. If no broker confirms anything though it answers others, the producers are replaced.

        For how long is counted over all that is sent: after an outage each of them may have little time left.
        """
        if await sending.answered(max(LOOK, self._silent_until - time.monotonic())):
            return
        if self._silent_until > time.monotonic():
            return
        try:
            await self._ping()
        except ConnectionLost:
            return  # it is away: librdkafka goes on trying
        heard_at = self._hearing.at
        await sending.answered(max(LOOK, self._silent_until + AGAIN - time.monotonic()))
        if self._hearing.at == heard_at and not sending.answer.done():
            self._forsaken = True
            await sending.answered(AGAIN)

    @property
    def _silent_until(self) -> float:
        return self._hearing.at + OVERDUE

    async def close(self) -> None:
        """End the thread; what is not confirmed by now is nobody's any more."""
        self._stopping = True
        self._jobs.put(None)
        await within_or_not(self._ended, PARTING)

    # --- in the thread

    def _run(self) -> None:
        while not self._stopping:
            sending = self._next()
            if sending is not None:
                self._produce(sending)
            self._serve()
        self._drop_all().join(PARTING)
        told(self._loop, self._ended.set)

    def _next(self) -> Sending | None:
        """What is to be sent; None after a wait in which nothing came, or to end."""
        busy = [producer for producer in self._producers.values() if len(producer)]
        if not busy:
            self._hearing.at = time.monotonic()  # nothing is asked of a broker
        with contextlib.suppress(Empty):
            return self._jobs.get_nowait() if busy else self._jobs.get(timeout=IDLE)
        for producer in busy:  # what waits goes out at once: nothing is coming to linger for
            self._serve_one(producer.flush, BUSY)
        return None

    def _serve(self) -> None:
        for producer in self._producers.values():
            self._serve_one(producer.poll, 0)
        if self._fatal is not None or self._forsaken:
            why = self._fatal or "the client does not find back to a broker that answers"
            log.warning("publishing begins anew: %s", why)
            self._drop_all()
            self._fatal, self._forsaken = None, False
            self._hearing.at = time.monotonic()
            self._producer(LARGEST)

    def _serve_one(self, call: Callable[[float], object], wait: float) -> None:
        """Have librdkafka call back. It raises what is fatal: that producer publishes nothing any more."""
        try:
            call(wait)
        except KafkaException as error:
            self._fatal = error_of(error)
        self._hearing.note()

    def _drop_all(self) -> threading.Thread:
        """Report what is open as given up, and have the producers end in a thread of their own."""
        producers = list(self._producers.values())
        self._producers.clear()
        ends = time.monotonic() + PURGE
        for producer in producers:
            with contextlib.suppress(KafkaException):
                producer.purge()
            while len(producer) and time.monotonic() < ends:
                self._serve_one(producer.poll, 0.01)
        del producer
        return part(producers.clear, "producer end")

    def _producer(self, size: int) -> Producer:
        if size not in self._producers:
            self._producers[size] = self._settings.created(Producer, self._settings.producer(size))
        return self._producers[size]

    def _judge(self, error: KafkaError, topic: str) -> Exception:
        if error.code() >= 0:  # else it is librdkafka that gave up
            self._hearing.news = True
        if self._fatal is not None and error.code() in GIVEN_UP:
            error = self._fatal
        return refused(error, topic)

    def _produce(self, sending: Sending) -> None:
        """Hand a batch to librdkafka; a full queue is waited out, which is the back-pressure of a slow broker."""
        clock, sizes, hearing = Clock(), sending.sizes, self._hearing
        producer = self._producer(LARGEST)
        produce = producer.produce
        moment, native = None, 0
        for index, message in enumerate(sending.messages):
            if message.timestamp is not moment:
                moment = message.timestamp
                native = clock.native(moment)  # type: ignore[arg-type] # the engine gives it
            where = ANYWHERE if message.partition is None else message.partition
            done = _Report(sending, hearing, index)
            if sizes:
                producer = self._producer(sizes.get(message.topic, LARGEST))
                produce = producer.produce
            while not sending.given_up:
                try:
                    # Twice `done`: by position, the first of the two names of this argument counts even if None
                    produce(
                        message.topic, message.value, message.key, where, done, done,
                        native, raw_headers(message),
                    )  # fmt: skip
                except BufferError:
                    self._serve_one(producer.poll, 0.05)
                    if self._stopping:
                        return
                except KafkaException as error:
                    self._serve_one(producer.poll, 0)  # for what is fatal, if it is
                    sending.failed(index, error_of(error))
                    break
                else:
                    break
