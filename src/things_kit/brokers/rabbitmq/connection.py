"""pika's connection on asyncio's own transport, with shorter ways for what comes and goes by the thousand.

Private parts of pika are used here, so its versions are pinned in pyproject.toml; decision 16 lists them, and what each
way of ours has to do because pika's does it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Self, TypeAlias

import pika
from pika import exceptions, frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection

from things_kit.brokers.rabbitmq.heartbeats import Heartbeats
from things_kit.brokers.rabbitmq.properties import read_properties

log = logging.getLogger("things_kit.rabbitmq")

HEAD: Final = 7
"""Bytes before a frame's payload: its kind, its channel and its size."""

Begun: TypeAlias = list[Any]
"""The frames that came of a message whose body may be next: none, its method, or its method and its header."""


def answer(future: "asyncio.Future[Any]", result: object) -> None:
    """Give a future its result, unless nobody waits for it any more."""
    if not future.done():
        future.set_result(result)


def fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    """Give a future an error, unless nobody waits for it any more."""
    if not future.done():
        future.set_exception(error)


class Connection(AsyncioConnection, asyncio.Protocol):
    """Takes whole messages straight to their consumers, sends without ceremony, and can be left without an answer.

    Attributes:
        heard: When something came last, in the loop's time.
    """

    _frame_buffer: bytes
    _channels: dict[int, Any]
    _opened: bool
    _error: Exception | None
    _got_eof: bool
    bytes_received: int
    frames_received: int
    bytes_sent: int
    frames_sent: int
    _adapter_emit_data: Callable[[bytes], None]
    _get_body_frame_max_length: Callable[[], int]
    _process_frame: Callable[[Any], None]
    _proto_connection_lost: Callable[[Exception | None], None]
    _proto_connection_made: Callable[[asyncio.BaseTransport], None]
    _proto_eof_received: Callable[[], bool]
    _send_frame: Callable[[frame.Frame], None]
    _terminate_stream: Callable[[Exception], None]
    _transport: asyncio.Transport | None

    @classmethod
    async def open(cls, parameters: pika.ConnectionParameters, patience: float) -> Self:
        """Connect to one host and log in. Raises OSError, ssl.SSLError, TimeoutError, and pika's errors."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        connection = cls(
            parameters,
            on_open_callback=lambda _: answer(opened, None),
            on_open_error_callback=lambda _, error: fail(opened, error),
            custom_ioloop=loop,
            internal_connection_workflow=False,
        )
        tls = parameters.ssl_options
        limit = asyncio.timeout(patience)
        try:
            async with limit:
                await loop.create_connection(
                    lambda: connection,
                    parameters.host,
                    parameters.port,
                    ssl=None if tls is None else tls.context,
                    server_hostname=None if tls is None else tls.server_hostname,
                )
                await opened
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"it did not let us in within {patience:g} s") from None
        finally:
            if not connection.is_open:
                opened.cancel()
                connection.drop(exceptions.ConnectionOpenAborted("it was given up"))
        return connection

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.heard = asyncio.get_running_loop().time()
        super().__init__(*arguments, **named)

    @property
    def most(self) -> int:
        """Bytes of a body's frame."""
        return self._get_body_frame_max_length()

    def emit(self, frames: Sequence[bytes]) -> None:
        """Write frames that are marshalled already, at once: pika writes three times for each message."""
        data = b"".join(frames)
        self.bytes_sent += len(data)
        self.frames_sent += len(frames)
        self._adapter_emit_data(data)

    def drop(self, reason: Exception) -> None:
        """End it without a word to the broker; who waits for its end is told the reason a moment later."""
        if self._transport is not None:
            self._terminate_stream(self._error or reason)

    # --- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The host has answered: say which protocol we speak."""
        self._proto_connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """What cannot be read ends the connection, as nobody knows where the next frame begins."""
        self.heard = asyncio.get_running_loop().time()
        try:
            self._on_data_available(data)
        except Exception as error:
            log.exception("what RabbitMQ sent cannot be read; the connection is opened anew")
            self.drop(error)

    def eof_received(self) -> bool:
        """The broker says no more."""
        return self._proto_eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give pika the reason that it insists on, which a transport that was given up while it opened has not."""
        if exc is None and self._error is None and not self._got_eof:
            exc = ConnectionAbortedError("it was given up")
        self._proto_connection_lost(exc)

    # --- what pika does otherwise

    def _create_heartbeat_checker(self) -> Heartbeats | None:
        interval = self.params.heartbeat
        if not isinstance(interval, int) or interval == 0:
            return None
        return Heartbeats(
            interval,
            send=lambda: self._send_frame(frame.Heartbeat()),
            heard=lambda: self.heard,
            silent=lambda text: self.drop(exceptions.AMQPHeartbeatTimeout(text)),
        )

    def _on_data_available(self, data_in: bytes) -> None:
        """Decode each frame where it lies: pika copies all that is behind it, for each anew.

        Frames are counted as pika counts them: its check of heartbeats takes a connection for dead whose
        `bytes_received` stays the same.
        """
        data = self._frame_buffer + data_in
        self._frame_buffer = b""
        start, length = 0, len(data)
        begun: Begun = []
        while start + HEAD <= length:
            end = start + HEAD + int.from_bytes(data[start + 3 : start + HEAD], "big") + 1
            if data[start : start + 4] == b"AMQP" or end > length:
                break
            self.bytes_received += end - start
            if len(begun) == 2 and self._ends(begun, data, start, end):
                self._deliver(begun, data[start + HEAD : end - 1])
                begun = []
            else:
                value = _decoded(data, start, end)
                if _goes_on(begun, value):
                    begun.append(value)
                else:
                    self._process_all([*begun, value])
                    begun = []
            start = end
        self._process_all(begun)
        if start < length:
            super()._on_data_available(data[start:])  # type: ignore[misc]

    def _ends(self, begun: Begun, data: bytes, start: int, end: int) -> bool:
        """Whether this frame is all of the body of the message that was begun."""
        method, header = begun
        return (
            data[start] == spec.FRAME_BODY
            and end - start - HEAD - 1 == header.body_size
            and int.from_bytes(data[start + 1 : start + 3], "big") == method.channel_number
            and data[end - 1] == spec.FRAME_END
            and method.channel_number in self._channels
        )

    def _deliver(self, begun: Begun, body: bytes) -> None:
        """Hand out a message at once, which pika would put together again from its frames."""
        self.frames_received += 3
        method, header = begun
        self._channels[method.channel_number]._on_deliver(method, header, body)  # noqa: SLF001 - where pika goes too

    def _process_all(self, values: Begun) -> None:
        for value in values:
            self._process_frame(value)


def _decoded(data: bytes, start: int, end: int) -> Any:
    """A frame; pika reads all but the properties of messages, which anybody may have written."""
    if data[start] != spec.FRAME_HEADER or data[end - 1] != spec.FRAME_END:
        return frame.decode_frame(data[start:end])[1]
    channel = int.from_bytes(data[start + 1 : start + 3], "big")
    size = start + HEAD + 4  # behind the class and the weight, which are the same for all
    properties = read_properties(data[size + 8 : end - 1])
    return frame.Header(channel, int.from_bytes(data[size : size + 8], "big"), properties)


def _goes_on(begun: Begun, value: Any) -> bool:
    """Whether this is the next frame of a message: its method if none was begun, or the header that belongs to it."""
    if not begun:
        return type(value) is frame.Method and type(value.method) is spec.Basic.Deliver
    return (
        len(begun) == 1
        and type(value) is frame.Header
        and value.body_size > 0
        and value.channel_number == begun[0].channel_number
    )
