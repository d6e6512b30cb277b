"""Publishing with confirms: every message has an answer, also where the channel is closed over one of them."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from pika.spec import Basic, Confirm

from things_kit.brokers.rabbitmq.amqp.channel import Channel
from things_kit.brokers.rabbitmq.amqp.frames import content_frames, method_frame
from things_kit.brokers.rabbitmq.errors import ERRORS, NOT_FOUND, REFUSED, lost, refused_exchange, size_limit
from things_kit.brokers.rabbitmq.link import Link
from things_kit.brokers.rabbitmq.wire import Letter
from things_kit.engine.driver import UnknownTopic
from things_kit.messaging.errors import MessageTooLarge, PublishError

AT_ONCE: Final = 200
"""Messages that are written before the loop gets its turn."""

UNCONFIRMED: Final = 4_000
"""Messages that may wait for their confirm at once: asyncio keeps without bound what the socket does not take."""

UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024

FRAME: Final = 131_072
"""Bytes of a frame, unless the broker wants smaller ones; all headers of a message must be in one."""

BLOCKED: Final = 1.0
"""Seconds to wait for a broker that blocks publishing, before the engine is told why nothing happens."""

Result: TypeAlias = Exception | None


class Unroutable(PublishError):
    """No queue is bound to where the message was published."""


class Batch:
    """Letters on their way over one channel, and what became of each."""

    def __init__(self, letters: Sequence[Letter], results: list[Result], pending: Sequence[int]) -> None:
        self.letters = letters
        self.pending = pending
        self.unsent: list[int] = []  # what the channel's end left without an answer
        self.settled = asyncio.Event()
        self._results = results
        self._left = len(pending)

    def answer(self, index: int, result: Result) -> None:
        """One of them has its answer."""
        self._results[index] = result
        self._left -= 1
        if not self._left:
            self.settled.set()

    def lose(self, index: int) -> None:
        """One of them will have none."""
        self.unsent.append(index)
        self.answer(index, None)


class Publisher:
    """A channel in confirm mode, opened again when the broker closes it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._opening = asyncio.Lock()
        self._channel: Channel | None = None
        self._open: OrderedDict[int, tuple[Batch, int]] = OrderedDict()  # by delivery tag
        self._bytes = 0
        self._tag = 0
        self._returned: Counter[Any] = Counter()
        self._room = asyncio.Event()
        self._limit: int | None = None

    async def publish(self, letters: Sequence[Letter]) -> list[Result]:
        """Publish, and wait until each is confirmed or refused. Raises ConnectionLost."""
        results = [self._too_large(letter) for letter in letters]
        pending = [index for index, refusal in enumerate(results) if refusal is None]
        while pending:
            await self._link.until_unblocked(BLOCKED)
            channel = await self._ready()
            batch = Batch(letters, results, pending)
            await self._write(channel, batch)
            await batch.settled.wait()
            unsent = sorted(batch.unsent)
            pending = self._sort_out(letters, results, unsent, channel.error) if unsent else []
        return results

    def _too_large(self, letter: Letter) -> Result:
        if self._limit is not None and len(letter.body) > self._limit:
            return MessageTooLarge(
                f"a message has {len(letter.body)} bytes; this RabbitMQ takes {self._limit} (its max_message_size)"
            )
        headers: dict[str, Any] = dict(letter.properties.headers or {})
        if sum(map(len, headers.values())) + sum(map(len, headers)) < FRAME // 8:
            return None
        size = sum(len(name.encode()) + len(text.encode()) + 6 for name, text in headers.items())
        if size <= FRAME - 2_048:  # for what is counted only roughly
            return None
        return MessageTooLarge(
            f"the headers and key of a message have {size} bytes; RabbitMQ takes about {FRAME}"
        )

    async def _ready(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.error is not None:
                channel = await self._link.channel()
                self._tag = self._bytes = 0
                self._open, self._returned = OrderedDict(), Counter()
                channel.on_return, channel.on_confirm = self._on_return, self._on_confirm
                channel.on_lost(self._on_lost)
                with ERRORS.during("asking for confirms"):
                    await channel.ask(Confirm.Select())
                self._channel = channel
            return self._channel

    async def _write(self, channel: Channel, batch: Batch) -> None:
        letters, pending, number = batch.letters, batch.pending, channel.number
        methods: dict[tuple[str, str], bytes] = {}
        for start in range(0, len(pending), AT_ONCE):
            while channel.error is None and (
                len(self._open) >= UNCONFIRMED or self._bytes >= UNCONFIRMED_BYTES
            ):
                self._room.clear()
                await self._room.wait()
            if channel.error is not None:
                for index in pending[start:]:
                    batch.lose(index)
                return
            frames: list[bytes] = []
            for index in pending[start : start + AT_ONCE]:
                exchange, key, properties, body = letters[index]
                method = methods.get((exchange, key))
                if method is None:
                    publish = Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
                    method = methods[exchange, key] = method_frame(number, publish)
                frames.append(method)
                frames += content_frames(number, properties, body, channel.connection.most)
                self._tag += 1
                self._open[self._tag] = batch, index
                self._bytes += len(body)
            channel.connection.write(b"".join(frames))
            await asyncio.sleep(0)

    def _sort_out(
        self, letters: Sequence[Letter], results: list[Result], unsent: list[int], error: Exception | None
    ) -> list[int]:
        """What is to be sent again on a new channel, after the broker has closed one over some message."""
        missing, refused = refused_exchange(error, NOT_FOUND), refused_exchange(error, REFUSED)
        limit = size_limit(error)
        if error is None or (missing is None and refused is None and limit is None):
            raise lost(error or ConnectionAbortedError("the channel was closed"))
        self._limit = self._limit if limit is None else limit
        for index in unsent:
            letter = letters[index]
            if letter.exchange == missing:
                results[index] = UnknownTopic(missing)
            elif letter.exchange == refused:
                results[index] = ERRORS.refusal(error, letter.exchange)
            else:
                results[index] = self._too_large(letter)
        return [index for index in unsent if results[index] is None]

    # --- what the broker says

    def _on_confirm(self, method: Any) -> None:
        refused = isinstance(method, Basic.Nack)
        for batch, index in self._confirmed(method.delivery_tag, method.multiple):
            self._bytes -= len(batch.letters[index].body)
            result: Result = None
            if refused:
                result = PublishError(
                    "RabbitMQ could not take the message: a queue of it is full or not well"
                )
            elif self._returned and self._was_returned(batch.letters[index]):
                result = Unroutable("no queue is bound there")
            batch.answer(index, result)
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

    def _on_return(self, method: Any, properties: Any, body: bytes) -> None:
        self._returned[Letter(method.exchange, method.routing_key, properties, body).mark] += 1

    def _was_returned(self, letter: Letter) -> bool:
        mark = letter.mark
        found = self._returned[mark] > 0
        self._returned[mark] -= 1
        if self._returned[mark] <= 0:
            del self._returned[mark]
        return found

    def _on_lost(self, _: Exception) -> None:
        unanswered, self._open = self._open, OrderedDict()
        for batch, index in unanswered.values():
            batch.lose(index)
        self._room.set()
