"""Channels: questions and their answers, and the messages that come."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pika import spec

from things_kit.brokers.rabbitmq.amqp.frames import HEADER, METHOD, Content, method_frame
from things_kit.brokers.rabbitmq.amqp.properties import read_properties
from things_kit.engine.driver import ConnectionLost

if TYPE_CHECKING:
    from things_kit.brokers.rabbitmq.amqp.connection import Connection

ANSWER: Final = 10.0
"""Seconds to answer a question. A quorum queue without a leader never answers: of three nodes two are away, or the only
one was killed within half a second of the queue's birth, and has forgotten its name."""

FAREWELL: Final = 0.75
"""Seconds for the broker to answer when we leave a channel, and when we leave it for good."""


class Closed(Exception):
    """The broker has closed a channel or the connection, by this code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _nobody(*_: Any) -> None:
    """Nobody listens to what comes."""


class Channel:
    """A channel; lost for good once it closes.

    Attributes:
        error: Why it closed; None while it is open.
        on_delivery: Called with each message: method, properties and body.
        on_return: The same for what was published and no queue took.
        on_confirm: Called with each `Basic.Ack` and `Basic.Nack`.
        on_cancel: Called with the tag of a consumer that the broker has ended.
    """

    def __init__(self, connection: "Connection", number: int) -> None:
        self.connection = connection
        self.number = number
        self.error: Exception | None = None
        self.on_delivery: Callable[[Any, Any, bytes], None] = _nobody
        self.on_return: Callable[[Any, Any, bytes], None] = _nobody
        self.on_confirm: Callable[[Any], None] = _nobody
        self.on_cancel: Callable[[str], None] = _nobody
        self._answers: deque[asyncio.Future[Any]] = deque()  # in the order of their questions
        self._listeners: list[Callable[[Exception], object]] = []
        self._method: Any = None  # of a message that is coming, with what came of it
        self._properties: Any = None
        self._parts: list[bytes] = []
        self._left = 0

    # --- what we say

    def tell(self, method: Any) -> None:
        """Send a method that has no answer; nothing, once it is closed."""
        if self.error is None:
            self.connection.write(method_frame(self.number, method))

    def expect(self) -> "asyncio.Future[Any]":
        """The next answer that is nobody else's."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody may have left
        self._answers.append(answer)
        return answer

    async def ask(self, *questions: Any) -> Any:
        """Send methods; returns the answer to the last of them.

        Raises:
            Exception: What closed the channel or the connection.
            ConnectionLost: There is no answer in time; the channel is given up.
        """
        if self.error is not None:
            raise self.error
        answers = [self.expect() for _ in questions]
        for question in questions:
            self.tell(question)
        try:
            async with asyncio.timeout(ANSWER):
                for answer in answers:
                    await answer
        except TimeoutError as late:
            lost = ConnectionLost(f"it gave no answer to {questions[0].NAME} within {ANSWER:g} s")
            self.leave(lost)
            raise lost from late
        return answers[-1].result()

    def on_lost(self, listener: Callable[[Exception], object]) -> None:
        """Call this with the reason when the channel closes, by whoever's wish."""
        self._listeners.append(listener)

    def leave(self, reason: Exception) -> None:
        """Close it; until the broker has agreed its number stays taken. What was delivered and not settled goes back."""
        self.tell(spec.Channel.Close(200, "", 0, 0))
        self.end(reason)

    async def close(self) -> None:
        """Close it, and wait for the broker's consent if that comes in time."""
        if self.error is None:
            self.leave(ConnectionAbortedError("we left"))
            consent = self.expect()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(FAREWELL):
                    await consent

    def end(self, reason: Exception) -> None:
        """Nothing more is said; whoever waits for an answer gets the reason."""
        self.error = self.error or reason
        answers, self._answers = self._answers, deque()
        for answer in answers:
            if not answer.done():
                answer.set_exception(reason)
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(reason)

    # --- what the broker says

    def read(self, kind: int, data: bytes, begins: int, end: int) -> None:
        """A frame, which lies there."""
        if kind == spec.FRAME_METHOD:
            number = METHOD.unpack_from(data, begins)[0]
            self._take(spec.methods[number]().decode(data, begins + METHOD.size))
        elif self._method is None:
            return  # a heartbeat, or of a message that came as we left
        elif kind == spec.FRAME_HEADER:
            self._left = HEADER.unpack_from(data, begins)[1]
            self._properties = read_properties(data[begins + HEADER.size : end])
            if not self._left:
                self._complete(b"")
        elif kind == spec.FRAME_BODY:
            self._left -= end - begins
            self._parts.append(data[begins:end])
            if self._left <= 0:
                parts, self._parts = self._parts, []
                self._complete(parts[0] if len(parts) == 1 else b"".join(parts))

    def _complete(self, body: bytes) -> None:
        method, self._method = self._method, None
        if isinstance(method, spec.Basic.Deliver):
            self.on_delivery(method, self._properties, body)
        elif isinstance(method, spec.Basic.Return):
            self.on_return(method, self._properties, body)
        else:
            self._answer(Content(method, self._properties, body))

    def _take(self, method: Any) -> None:
        kind = type(method)
        if kind is spec.Channel.CloseOk or kind is spec.Channel.Close:
            self._is_closed(method)
        elif self.error is not None:
            return  # it came as we left
        elif kind in {spec.Basic.Deliver, spec.Basic.Return, spec.Basic.GetOk}:
            self._method = method
        elif kind is spec.Basic.Ack or kind is spec.Basic.Nack:
            self.on_confirm(method)
        elif kind is spec.Basic.Cancel:
            self.on_cancel(method.consumer_tag)
        elif kind is spec.Connection.Close:
            self.tell(spec.Connection.CloseOk())
            self.connection.hang_up(Closed(method.reply_code, str(method.reply_text)))
        elif kind is spec.Connection.Blocked or kind is spec.Connection.Unblocked:
            self.connection.block(str(method.reason) if kind is spec.Connection.Blocked else None)
        else:
            self._answer(method)

    def _is_closed(self, method: Any) -> None:
        if isinstance(method, spec.Channel.Close):
            self.connection.write(method_frame(self.number, spec.Channel.CloseOk()))
            self.connection.forget(self.number)
            self.end(Closed(method.reply_code or 0, str(method.reply_text)))
        else:
            self.connection.forget(self.number)
            self._answer(method)

    def _answer(self, answer: Any) -> None:
        waiting = self._answers.popleft() if self._answers else None
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
