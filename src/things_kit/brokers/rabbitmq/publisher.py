"""Publishing with confirms: every message has an answer, also where the channel is closed over one of them."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from pika import frame
from pika.spec import Basic

from things_kit.brokers.rabbitmq.errors import lost, missing_exchange, reason, refused_exchange, size_limit
from things_kit.brokers.rabbitmq.link import Channel, Link
from things_kit.brokers.rabbitmq.wire import Letter
from things_kit.engine.driver import UnknownTopic
from things_kit.messaging.errors import MessageTooLarge, PublishError

AT_ONCE: Final = 200
"""Messages that are handed to pika before the loop gets its turn."""

UNCONFIRMED: Final = 4_000
"""Messages that may wait for their confirm at once: pika keeps without bound what the socket does not take."""

UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024

FRAME: Final = 131_072
"""Bytes of a frame, unless the broker wants smaller ones; all headers of a message must be in one."""

BLOCKED: Final = 1.0
"""Seconds to wait for a broker that blocks publishing, before the engine is told why nothing happens."""

Result: TypeAlias = Exception | None


class Unroutable(PublishError):
    """No queue is bound to where the message was published."""


class Batch:
    """Letters on their way, and what became of each."""

    def __init__(self, letters: Sequence[Letter]) -> None:
        self.letters = letters
        self.results: list[Result] = [None] * len(letters)
        self.unsent: list[int] = []  # what the channel's end left without an answer
        self.left = 0
        self.settled = asyncio.Event()

    def answer(self, index: int, result: Result) -> None:
        """One of them has its answer."""
        self.results[index] = result
        self.done()

    def done(self) -> None:
        """One less to wait for."""
        self.left -= 1
        if not self.left:
            self.settled.set()


class Marshal:
    """Letters as pika's frames: `basic_publish` would make the same ones, but one by one."""

    def __init__(self, channel: int, most: int) -> None:
        self._channel = channel
        self._most = most
        self._methods: dict[tuple[str, str], bytes] = {}

    def letter(self, letter: Letter, frames: list[bytes]) -> None:
        """Append a letter's frames."""
        exchange, routing_key, properties, body = letter
        method = self._methods.get((exchange, routing_key))
        if method is None:
            publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
            method = self._methods[exchange, routing_key] = frame.Method(self._channel, publish).marshal()
        frames += (method, frame.Header(self._channel, len(body), properties).marshal())
        for start in range(0, len(body), self._most):
            frames.append(frame.Body(self._channel, body[start : start + self._most]).marshal())


class Publisher:
    """A channel in confirm mode, opened again when the broker closes it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._opening = asyncio.Lock()
        self._channel: Channel | None = None
        self._open: OrderedDict[int, tuple[Batch, int]] = OrderedDict()
        self._bytes = 0
        self._tag = 0
        self._returned: Counter[Any] = Counter()
        self._room = asyncio.Event()
        self._limit: int | None = None

    async def publish(self, letters: Sequence[Letter]) -> list[Result]:
        """Publish, and wait until each is confirmed or refused. Raises ConnectionLost."""
        batch = Batch(letters)
        pending = self._fitting(batch)
        while pending:
            await self._link.until_unblocked(BLOCKED)
            channel = await self._ready()
            batch.left, batch.unsent = len(pending), []
            batch.settled.clear()
            await self._write(channel, batch, pending)
            await batch.settled.wait()
            pending = sorted(batch.unsent)
            if pending:
                pending = self._sort_out(batch, pending, channel.error)
        return batch.results

    def _fitting(self, batch: Batch) -> list[int]:
        """The indexes of those that can be sent at all."""
        fitting = []
        for index, letter in enumerate(batch.letters):
            if self._limit is not None and len(letter.body) > self._limit:
                batch.results[index] = too_large(len(letter.body), self._limit)
            elif (headers := _oversized(letter)) is not None:
                batch.results[index] = MessageTooLarge(
                    f"the headers and key of a message have {headers} bytes; RabbitMQ takes about {FRAME}"
                )
            else:
                fitting.append(index)
        return fitting

    async def _ready(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.error is not None:
                channel = await self._link.channel()
                self._tag = self._bytes = 0
                self._open, self._returned = OrderedDict(), Counter()
                channel.raw.add_on_return_callback(self._on_return)
                channel.on_lost(self._on_lost)
                try:
                    await channel.ask(channel.raw.confirm_delivery, self._on_confirm)
                except Exception as error:
                    raise lost(error) from error
                self._channel = channel
            return self._channel

    async def _write(self, channel: Channel, batch: Batch, pending: Sequence[int]) -> None:
        letters, connection = batch.letters, channel.connection
        marshal = Marshal(channel.raw.channel_number, connection.most)
        for start in range(0, len(pending), AT_ONCE):
            while channel.error is None and (
                len(self._open) >= UNCONFIRMED or self._bytes >= UNCONFIRMED_BYTES
            ):
                self._room.clear()
                await self._room.wait()
            part = pending[start : start + AT_ONCE]
            if channel.error is not None:
                for index in pending[start:]:
                    batch.unsent.append(index)
                    batch.done()
                return
            frames: list[bytes] = []
            for index in part:
                marshal.letter(letters[index], frames)
                self._tag += 1
                self._open[self._tag] = batch, index
                self._bytes += len(letters[index].body)
            connection.emit(frames)
            await asyncio.sleep(0)

    def _sort_out(self, batch: Batch, unsent: list[int], error: Exception | None) -> list[int]:
        """What is to be sent again on a new channel, after the broker has closed one over some message."""
        missing, refused, limit = missing_exchange(error), refused_exchange(error), size_limit(error)
        if missing is None and refused is None and limit is None:
            raise lost(error)
        self._limit = limit if limit is not None else self._limit
        again = []
        for index in unsent:
            letter = batch.letters[index]
            if letter.exchange == missing:
                batch.results[index] = UnknownTopic(missing)
            elif letter.exchange == refused:
                batch.results[index] = PublishError(f"RabbitMQ refuses it: {reason(error)}")
            elif limit is not None and len(letter.body) > limit:
                batch.results[index] = too_large(len(letter.body), limit)
            else:
                again.append(index)
        return again

    # --- what the broker says

    def _on_confirm(self, told: Any) -> None:
        method = told.method
        tag, refused = method.delivery_tag, isinstance(method, Basic.Nack)
        for batch, index in self._confirmed(tag, method.multiple):
            self._bytes -= len(batch.letters[index].body)
            if refused:
                batch.answer(
                    index,
                    PublishError("RabbitMQ could not take the message: a queue of it is full or not well"),
                )
            elif self._returned and self._was_returned(batch.letters[index]):
                batch.answer(index, Unroutable("no queue is bound there"))
            else:
                batch.done()
        self._room.set()

    def _confirmed(self, tag: int, multiple: bool) -> Iterator[tuple[Batch, int]]:
        """What a confirm is about, and no look at anything else: confirms come in no order, and old ones are many."""
        waiting = self._open
        if not multiple:
            if (entry := waiting.pop(tag, None)) is not None:
                yield entry
            return
        while waiting and next(iter(waiting)) <= tag:
            yield waiting.popitem(last=False)[1]

    def _on_return(self, _: Any, method: Basic.Return, properties: Any, body: bytes) -> None:
        self._returned[Letter(method.exchange or "", method.routing_key or "", properties, body).mark] += 1

    def _was_returned(self, letter: Letter) -> bool:
        mark = letter.mark
        if not self._returned[mark]:
            return False
        self._returned[mark] -= 1
        if not self._returned[mark]:
            del self._returned[mark]
        return True

    def _on_lost(self, _: Exception) -> None:
        unanswered, self._open = self._open, OrderedDict()
        for batch, index in unanswered.values():
            batch.unsent.append(index)
            batch.done()
        self._room.set()


def too_large(size: int, limit: int) -> MessageTooLarge:
    """The error for a body that the broker does not take."""
    return MessageTooLarge(f"a message has {size} bytes; this RabbitMQ takes {limit} (its max_message_size)")


def _oversized(letter: Letter) -> int | None:
    """The bytes of the headers if they do not fit into a frame, with room for what is counted only roughly."""
    headers: dict[str, Any] = dict(letter.properties.headers or {})
    if sum(map(len, headers.values())) + sum(map(len, headers)) < FRAME // 8:
        return None
    size = sum(
        len(name.encode()) + len(value.encode() if isinstance(value, str) else value) + 6
        for name, value in headers.items()
    )
    return size if size > FRAME - 2_048 else None
