"""The producer: what is published at once goes to the broker together."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TypeVar, overload

import msgspec

from things_kit.engine.cancelling import abandon
from things_kit.engine.outbound import checked_batch, prepare
from things_kit.engine.transforming import apply
from things_kit.engine.transmission import Transmission
from things_kit.messaging.errors import BrokerUnavailable, ClosedError, PublishError
from things_kit.messaging.instrument import Send
from things_kit.messaging.keys import Key
from things_kit.messaging.message import Message
from things_kit.messaging.producer import message_to_publish
from things_kit.messaging.topic import UNSET, Topic, Unset
from things_kit.messaging.transform import Transform

T = TypeVar("T")

GATHER: Final = 1000
"""The most single messages that one send gathers: more would only make the first of them wait."""


class _Waiting(msgspec.Struct, eq=False):
    """Messages of one call, and the future of their errors by index."""

    messages: Sequence[Message]
    deadline: float
    outcome: "asyncio.Future[dict[int, Exception]]"


class BrokerProducer:
    """Publishes through a driver, in the order of the calls.

    One send is under way at a time; all that is published meanwhile goes with the next one.
    With `insist`, for what must not get lost, a topic to which nobody listens is an outage instead of an error, and a
    dead letter may have the bytes that are kept for its headers. With `any_size` the broker alone says what is too large.
    With `answers` its topics are others' inboxes: what is not there is not made, and telemetry does not see their names,
    of which each requester has another.
    """

    def __init__(
        self,
        transmission: Transmission,
        *,
        insist: bool = False,
        any_size: bool = False,
        answers: bool = False,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self._transmission = transmission
        self._insist = insist
        self._any_size = any_size
        self._transforms = transforms
        self._transforming = asyncio.Lock()
        self._send_chunk = transmission.answer if answers else transmission.send
        self._timeout = transmission.url.engine.publish_timeout
        self._queue: deque[_Waiting] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._sending: list[_Waiting] = []
        self._closed = False
        self._send_in: Send = self._enqueue
        for instrument in () if answers else reversed(transmission.instruments):
            self._send_in = instrument.sending(transmission.url.endpoint)(self._send_in)

    @overload
    async def publish(self, message: Message) -> None: ...

    @overload
    async def publish(
        self,
        topic: Topic[T],
        payload: T,
        /,
        *,
        key: Key | Unset = UNSET,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
        timestamp: datetime | None = None,
    ) -> None: ...

    async def publish(self, message: Message | Topic[Any], payload: Any = UNSET, **fields: Any) -> None:
        """Publish one message, or the payload of one by its topic's contract; returns when the broker has confirmed it.

        Args:
            message: The message, or a Topic.
            payload: What the topic's message carries.
            fields: With a Topic, as `Topic.message` takes them: key, headers, id, timestamp.

        Raises:
            PublishError: The message was refused; `MessageTooLarge` where it is too large.
            BrokerUnavailable: The broker, or the topic's schema registry, stayed away for longer than `publish_timeout`.
            ClosedError: The producer or its broker was closed before.
            TypeError: The payload is not of the topic's type, or the arguments do not go together.
        """
        if isinstance(message, Topic):
            await self._transmission.prepare(message)
        one = (message_to_publish(message, payload, fields),)
        errors = await (self._send_transformed(one) if self._transforms else self._send_in(one))
        if errors:
            raise errors[0]

    async def publish_batch(self, messages: Sequence[Message]) -> None:
        """Publish many; returns when all are confirmed.

        Raises:
            PublishError: `failures` maps the index of each message that is not confirmed to its error.
            ClosedError: The producer or its broker was closed before.
        """
        messages = checked_batch(messages)
        if not messages and not self._closed:
            return
        errors = await (self._send_transformed(messages) if self._transforms else self._send_in(messages))
        if errors:
            index, first = next(iter(sorted(errors.items())))
            raise PublishError(
                f"{len(errors)} of {len(messages)} messages were not published; message {index}: {first}",
                errors,
            ) from first

    async def _send_transformed(self, messages: Sequence[Message]) -> dict[int, Exception]:
        """One call after the other, as a transform may wait: messages of one key keep their order."""
        checked_batch(messages)
        ready: list[Message] = []
        indices: list[int] = []
        errors: dict[int, Exception] = {}
        async with self._transforming:
            for index, message in enumerate(messages):
                try:
                    ready.append(await self._transformed(message))
                except PublishError as error:
                    errors[index] = error
                except BrokerUnavailable as error:  # those behind it must not overtake it
                    errors |= dict.fromkeys(range(index, len(messages)), error)
                    break
                else:
                    indices.append(index)
            sending = asyncio.ensure_future(self._send_in(ready)) if ready else None
            await asyncio.sleep(0)  # it has its place in the queue now
        failed = {} if sending is None else await sending
        return errors | {indices[index]: error for index, error in failed.items()}

    async def _transformed(self, message: Message) -> Message:
        _, refused = prepare([message], None, ours=self._insist)
        if refused:
            raise refused[0]
        return await apply(self._transforms, message, self._timeout)

    async def close(self, within: float | None = None) -> None:
        """Send what is waiting, for at most `within` seconds, then close. Closing twice is fine.

        What is not confirmed by then is `BrokerUnavailable` for those who wait for it.
        """
        self._transmission.check_loop()
        self._closed = True
        ends = None if within is None else asyncio.get_running_loop().time() + within
        while self._sender is not None:
            left = None if ends is None else max(0.0, ends - asyncio.get_running_loop().time())
            done, _ = await asyncio.wait({self._sender}, timeout=left)
            if not done:
                abandon(self._sender)
                self._give_up("the producer was closed before the broker confirmed it", None)
                return

    async def __aenter__(self) -> "BrokerProducer":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _enqueue(self, messages: Sequence[Message]) -> "asyncio.Future[dict[int, Exception]]":
        self._transmission.check_loop()
        if self._closed:
            raise ClosedError("the producer is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        waiting = _Waiting(messages, deadline, loop.create_future())
        self._queue.append(waiting)
        if self._sender is None:
            self._sender = loop.create_task(self._send_all(), name="things_kit producer")
            self._sender.add_done_callback(self._sender_ended)
        return waiting.outcome

    async def _send_all(self) -> None:
        while self._queue:
            self._sending = self._gather()
            await self._send(self._sending)
        self._sender = None

    def _gather(self) -> list[_Waiting]:
        """The calls whose messages go together: many small ones, or one large one alone."""
        gathered: list[_Waiting] = []
        count = 0
        most = min(GATHER, self._transmission.driver.capabilities.max_batch)
        while self._queue and (not gathered or count + len(self._queue[0].messages) <= most):
            waiting = self._queue.popleft()
            if not waiting.outcome.done():  # its caller went away
                gathered.append(waiting)
                count += len(waiting.messages)
        return gathered

    async def _send(self, gathered: Sequence[_Waiting]) -> None:
        capabilities = self._transmission.driver.capabilities
        messages = [message for waiting in gathered for message in waiting.messages]
        if not messages:
            return
        ready, errors = prepare(
            messages, None if self._any_size else capabilities.max_message_bytes, ours=self._insist
        )
        indices: Sequence[int] = range(len(messages))
        if errors:
            indices = [index for index in indices if index not in errors]
        with self._expiring(gathered) as until:
            for start in range(0, len(ready), capabilities.max_batch):
                chunk = ready[start : start + capabilities.max_batch]
                deadline = self._deadline(gathered)
                results = await self._send_chunk(
                    chunk, deadline, until=max(until, deadline), insist=self._insist
                )
                if any(results):
                    numbered = enumerate(results, start)
                    errors.update(
                        {indices[number]: result for number, result in numbered if result is not None}
                    )
        if errors:  # what has to be sent again keeps its id
            for number, index in enumerate(indices):
                messages[index] = ready[number]
        self._answer(gathered, messages, errors)

    @contextmanager
    def _expiring(self, gathered: Sequence[_Waiting]) -> Iterator[float]:
        """Until when a send that has begun may take; meanwhile, whoever's time is over is told so.

        A send that ended with the time of the oldest of its callers would be repeated for the sake of the next oldest,
        and all of it arrive again and again, on a broker that is slow to confirm because of just that.
        """
        until = max(waiting.deadline for waiting in gathered)
        if self._transmission.away is None:
            yield until
            return
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_at(waiting.deadline, self._expire, waiting)
            for waiting in gathered
            if waiting.deadline < until
        ]
        try:
            yield until
        finally:
            for timer in timers:
                timer.cancel()

    def _expire(self, waiting: _Waiting) -> None:
        """Tell a caller that the broker has not confirmed its messages in time."""
        if not waiting.outcome.done():
            error = self._transmission.unavailable(self._timeout, self._transmission.away)
            waiting.outcome.set_result(dict.fromkeys(range(len(waiting.messages)), error))

    def _deadline(self, gathered: Sequence[_Waiting]) -> float:
        """Until when the broker may stay away: waiting behind others counts only if it was away meanwhile."""
        if self._transmission.away is None:
            return asyncio.get_running_loop().time() + self._timeout
        return min(waiting.deadline for waiting in gathered)

    def _answer(
        self, gathered: Sequence[_Waiting], messages: Sequence[Message], errors: dict[int, Exception]
    ) -> None:
        if not errors:
            for waiting in gathered:
                if not waiting.outcome.done():
                    waiting.outcome.set_result({})
            return
        first, now, again = 0, asyncio.get_running_loop().time(), []
        for waiting in gathered:
            end = first + len(waiting.messages)
            mine = {i - first: errors[i] for i in range(first, end) if i in errors}
            away = any(isinstance(error, BrokerUnavailable) for error in mine.values())
            if away and waiting.deadline > now:
                waiting.messages = messages[first:end]
                again.append(waiting)  # it was sent along with an older one, whose time is over
            elif not waiting.outcome.done():
                waiting.outcome.set_result(mine)
            first = end
        self._queue.extendleft(reversed(again))

    def _sender_ended(self, sender: asyncio.Task[None]) -> None:
        """If it did not end by itself, but with its loop or by a fault of ours, nobody may wait for ever."""
        error = asyncio.CancelledError() if sender.cancelled() else sender.exception()
        if error is None:
            return
        self._sender = None
        self._give_up("the producer was interrupted", error)

    def _give_up(self, why: str, cause: BaseException | None) -> None:
        waiting = [*self._sending, *self._queue]
        self._queue.clear()
        for each in waiting:
            if not each.outcome.done():
                failure = BrokerUnavailable(f"{why}; whether the message arrived is not known")
                failure.__cause__ = cause
                each.outcome.set_exception(failure)
