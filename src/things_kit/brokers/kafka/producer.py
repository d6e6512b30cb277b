"""The thread that publishes to Kafka: messages go in by the batch, and delivery reports come back by the batch."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from things_kit.brokers.kafka.options import Settings, error_of, refused
from things_kit.brokers.kafka.records import Clock, raw_headers
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.kafka")

ANYWHERE: Final = -1
"""The partition of a message that leaves it to the partitioner (RD_KAFKA_PARTITION_UA)."""

IDLE: Final = 1.0
"""Seconds between two looks at librdkafka's events while nothing is being sent."""

BUSY: Final = 0.003
"""Seconds for which a wait for delivery reports may keep the next batch waiting."""

Results = list[Exception | None]


class Sending:
    """One `send`: its messages, and what became of each so far."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.answer: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self.given_up = False
        self._loop = asyncio.get_running_loop()
        self._results: Results = [None] * len(messages)
        self._open = len(messages)

    def report(self, index: int, error: KafkaError | None, _: Any) -> None:
        """A delivery report, or why there will be none. In the sending thread."""
        if error is not None:
            self._results[index] = refused(error, self.messages[index].topic)
        self._open -= 1
        if not self._open:
            self._tell()

    def _tell(self) -> None:
        """All is known: one call to the loop for the whole batch."""
        lost = next((result for result in self._results if isinstance(result, ConnectionLost)), None)
        try:
            self._loop.call_soon_threadsafe(self._settle, lost)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("a delivery report came after the event loop was closed")

    def _settle(self, lost: ConnectionLost | None) -> None:
        if self.answer.done():
            return
        if lost is not None:
            self.answer.set_exception(lost)
        else:
            self.answer.set_result(self._results)


class SendingThread:
    """Owns the producer. librdkafka keeps the order of what it is given, and repeats what was not confirmed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: SimpleQueue[Sending | None] = SimpleQueue()
        self._producer: Producer = settings.created(Producer, settings.producer())
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="things_kit kafka producer", daemon=True)
        self._thread.start()

    async def send(self, messages: Sequence[Message]) -> Results:
        """One result a message, once all are known. Raises ConnectionLost.

        Cancelled, it leaves to `message.timeout.ms` what librdkafka already has: that may still arrive.
        """
        sending = Sending(messages)
        if not messages:
            return []
        self._jobs.put(sending)
        try:
            return await sending.answer
        finally:
            sending.given_up = True

    def close(self) -> None:
        """End the thread; what is not confirmed by now is nobody's any more. Blocks."""
        self._stopping = True
        self._jobs.put(None)
        self._thread.join()

    # --- in the thread

    def _run(self) -> None:
        producer = self._producer
        while True:
            try:
                sending = self._jobs.get(timeout=IDLE) if not len(producer) else self._jobs.get_nowait()
            except Empty:
                if len(producer):
                    producer.flush(BUSY)  # what waits goes out at once: nothing is coming to linger for
                else:
                    producer.poll(0)
                continue
            if sending is None:
                break
            self._produce(producer, sending)
            producer.poll(0)
        producer.purge()
        producer.poll(0)
        del self._producer

    def _produce(self, producer: Producer, sending: Sending) -> None:
        """Hand a batch to librdkafka; a full queue is waited out, which is the back-pressure of a slow broker."""
        produce, clock, report = producer.produce, Clock(), sending.report
        for index, message in enumerate(sending.messages):
            native, exact = clock.stamp(message.timestamp)  # type: ignore[arg-type] # the engine gives it
            where = ANYWHERE if message.partition is None else message.partition
            done = partial(report, index)
            while not sending.given_up:
                try:
                    # Twice `done`: by position, the first of the two names of this argument counts even if None
                    produce(
                        message.topic, message.value, message.key, where, done, done,
                        native, raw_headers(message, exact),
                    )  # fmt: skip
                except BufferError:
                    producer.poll(0.05)
                    if self._stopping:
                        return
                except KafkaException as error:
                    report(index, error_of(error), None)
                    break
                else:
                    break
