"""A connection and its channels as coroutines: pika tells everything by callbacks."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from pika import frame, spec
from pika.channel import Channel as RawChannel

from things_kit.brokers.rabbitmq.connection import Connection, answer, fail
from things_kit.brokers.rabbitmq.errors import lost, opening
from things_kit.brokers.rabbitmq.options import Settings
from things_kit.engine.driver import ConnectionLost

FAREWELL: Final = 0.75
"""Seconds for the broker to answer when we leave a channel, and when we leave it for good."""

ANSWER: Final = 10.0
"""Seconds to answer a question. A quorum queue without a leader never answers: of three nodes two are away, or the only
one was killed within half a second of the queue's birth, and has forgotten its name."""

_pika = logging.getLogger("pika")
if _pika.level == logging.NOTSET:
    # It reports each try of a reconnect as several errors with tracebacks; what they mean is in our own errors
    _pika.setLevel(logging.CRITICAL)


class Link:
    """A connection that is opened again by whoever needs it next.

    Attributes:
        blocked: Why the broker takes no messages over this connection now; None if it does.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self.blocked: str | None = None
        self.properties: dict[str, Any] = {}

    async def ready(self) -> Connection:
        """The connection, opened if it is not. Raises ConnectionLost, ConfigError."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="things_kit rabbitmq connection")
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        opening = self._opening
        await asyncio.wait({opening})  # and not the task itself, which others wait for as well
        if opening.cancelled():
            raise ConnectionLost("it is being closed")
        return opening.result()

    async def _open(self) -> Connection:
        """The first host that lets us in."""
        failure: Exception = ConnectionLost("its URL has no host")
        for parameters in self._settings.parameters():
            try:
                opened = await Connection.open(parameters, self._settings.patience)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next host may be well
                failure = error
            else:
                self._connection = opened
                self._begin(opened)
                return opened
        raise opening(failure, self._settings.url.display)

    def _begin(self, connection: Connection) -> None:
        self._gone = gone = asyncio.get_running_loop().create_future()
        self._unblock()
        self.properties = connection.server_properties or {}
        connection.add_on_close_callback(self._closed(gone))
        connection.add_on_connection_blocked_callback(lambda _, frame: self._block(str(frame.method.reason)))
        connection.add_on_connection_unblocked_callback(lambda _, __: self._unblock())

    def _closed(self, gone: "asyncio.Future[None]") -> Callable[[Any, BaseException], None]:
        def closed(_: Any, error: BaseException) -> None:
            self._unblock()
            if not gone.done():
                gone.set_result(None)

        return closed

    def _block(self, why: str) -> None:
        self.blocked = why
        self._unblocked.clear()

    def _unblock(self) -> None:
        self.blocked = None
        self._unblocked.set()

    async def until_unblocked(self, within: float) -> None:
        """Raises ConnectionLost if the broker still takes nothing then."""
        if self.blocked is None:
            return
        try:
            async with asyncio.timeout(within):
                await self._unblocked.wait()
        except TimeoutError:
            raise ConnectionLost(f"it takes no messages for now: {self.blocked}") from None

    async def channel(self) -> "Channel":
        """A channel of its own. Raises ConnectionLost, ConfigError."""
        connection = await self.ready()
        opened: asyncio.Future[RawChannel] = asyncio.get_running_loop().create_future()
        try:
            raw = connection.channel(on_open_callback=lambda raw: answer(opened, raw))
        except Exception as error:  # pika has no common ancestor for what this raises
            raise lost(error) from error
        channel = Channel(raw, connection)
        channel.on_lost(lambda error: fail(opened, error))
        try:
            async with asyncio.timeout(ANSWER):
                await opened
        except Exception as error:
            raise lost(error) from error
        return channel

    async def close(self) -> None:
        """Leave, with the broker's consent if it answers in time."""
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait({self._opening})
        connection, gone = self._connection, self._gone
        self._connection = None
        if connection is None or gone is None or gone.done():
            return
        if connection.is_open:
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await asyncio.shield(gone)
        if not gone.done():
            connection.drop(ConnectionAbortedError("it did not answer when we left"))
            await gone


class Channel:
    """A channel, whose questions can be awaited; lost for good once it closes.

    Attributes:
        raw: pika's, for what needs no answer.
        connection: The one that it belongs to.
        error: Why it closed; None while it is open.
    """

    def __init__(self, raw: RawChannel, connection: Connection) -> None:
        self.raw = raw
        self.connection = connection
        self.error: Exception | None = None
        self._listeners: list[Callable[[Exception], object]] = []
        self._consuming = asyncio.Lock()
        self._ended: str | None = (
            None  # the last consumer that was cancelled, for which something may still come
        )
        raw.add_on_close_callback(self._closed)

    def on_lost(self, listener: Callable[[Exception], object]) -> None:
        """Call this with the reason when the channel closes, by whoever's wish."""
        self._listeners.append(listener)

    def _closed(self, _: Any, error: Exception) -> None:
        self.error = error
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(error)

    async def ask(self, question: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a method of the raw channel that takes a callback; returns the method of the answer.

        Raises:
            Exception: The channel's error, if it closes instead of answering.
        """
        if self.error is not None:
            raise self.error
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def failed(error: Exception) -> None:
            fail(answered, error)

        self._listeners.append(failed)
        try:
            question(*arguments, callback=lambda frame: answer(answered, frame), **named)
            async with asyncio.timeout(ANSWER):
                return (await answered).method
        except TimeoutError as late:
            error = ConnectionLost(f"it gave no answer to {question.__name__} within {ANSWER:g} s")
            self._abandon(error)
            raise error from late
        finally:
            with contextlib.suppress(ValueError):
                self._listeners.remove(failed)

    async def consume(
        self,
        queue: str,
        on_message: Callable[[Any, Any, Any, bytes], None],
        prefetch: int,
        tag: str,
        arguments: Mapping[str, int],
    ) -> None:
        """Begin a consumer that may have so many unsettled deliveries; 0: any number. Raises as `ask` does."""
        raw = self.raw
        async with self._consuming:  # the prefetch is that of the consumers that begin after it was said
            await self.ask(raw.basic_qos, prefetch_count=prefetch)
            await self.ask(raw.basic_consume, queue, on_message, consumer_tag=tag, arguments=dict(arguments))

    async def cancel(self, tag: str) -> None:
        """End a consumer. What still comes for it is handed out all the same; pika's own way would send it back."""

        def basic_cancel(callback: Callable[[Any], None]) -> None:
            self.raw.add_callback(callback, [spec.Basic.CancelOk])
            method = frame.Method(self.raw.channel_number, spec.Basic.Cancel(consumer_tag=tag))
            self.connection.emit([method.marshal()])

        async with self._consuming:
            await self.ask(basic_cancel)
        ended, self._ended = self._ended, tag
        if ended is not None:
            self._forget(ended)

    def drop_queue(self, queue: str) -> None:
        """Have a queue deleted, and do not wait for it. Never fails."""
        with contextlib.suppress(Exception):
            self.raw.queue_delete(queue)

    def _abandon(self, error: Exception) -> None:
        """Leave it, once what was asked is answered after all: or a late consumer would keep messages to itself."""
        self._forget_consumers()
        with contextlib.suppress(Exception):
            self.raw.close()
        self._closed(None, error)

    async def close(self) -> None:
        """Close it; what was delivered over it and not settled goes back. Never fails."""
        if self.error is not None:
            return
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forget_consumers()
        self.on_lost(lambda _: answer(closed, None))
        with contextlib.suppress(Exception):
            self.raw.close()
            async with asyncio.timeout(FAREWELL):
                await closed

    def _forget_consumers(self) -> None:
        """Keep pika from cancelling them before it closes the channel, as if the broker had done so.

        A quorum queue takes back what is on its way to a cancelled consumer before it takes back what that one holds,
        which is older; of a channel that just closes it takes back everything in order.
        """
        for tag in self.raw.consumer_tags:
            self._forget(tag)

    def _forget(self, tag: str) -> None:
        raw = self.raw
        told = frame.Method(raw.channel_number, spec.Basic.Cancel(tag))
        raw.callbacks.process(raw.channel_number, spec.Basic.Cancel, raw, told)


async def get(channel: Channel, queue: str) -> bytes | None:
    """Take one message out of a queue; None if it is empty."""
    if channel.error is not None:
        raise channel.error
    answered: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
    channel.on_lost(lambda error: fail(answered, error))
    channel.raw.add_callback(lambda _: answer(answered, None), [spec.Basic.GetEmpty])
    channel.raw.basic_get(queue, lambda _, __, ___, body: answer(answered, body), auto_ack=True)
    async with asyncio.timeout(ANSWER):
        return await answered
