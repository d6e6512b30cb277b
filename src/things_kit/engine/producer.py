"""The producer: what is published at once goes to the broker together."""

import asyncio
import functools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TypeVar, overload

import msgspec

from things_kit.engine.cancelling import abandon
from things_kit.engine.clock import steady
from things_kit.engine.driver import Scheduled
from things_kit.engine.held import refusal
from things_kit.engine.outbound import checked_batch, chunks, prepare
from things_kit.engine.scheduling import scheduling, sender_of
from things_kit.engine.transforming import apply
from things_kit.engine.transmission import Sending, Transmission
from things_kit.messaging.errors import BrokerUnavailable, ClosedError, PublishError
from things_kit.messaging.instrument import FollowsRequests, Send
from things_kit.messaging.keys import Key
from things_kit.messaging.message import Message
from things_kit.messaging.plain import plain
from things_kit.messaging.policy import Seconds
from things_kit.messaging.producer import message_to_publish
from things_kit.messaging.schedule import due_at
from things_kit.messaging.topic import UNSET, Topic, Unset
from things_kit.messaging.transform import Transform

T = TypeVar("T")

GATHER: Final = 1000
"""The most single messages that one send gathers: more would only make the first of them wait."""


class _Waiting(msgspec.Struct, eq=False):
    """Messages of one call, and the future of their errors by index; `due` is when they are to come, if not at once."""

    messages: Sequence[Message]
    deadline: float
    outcome: "asyncio.Future[dict[int, Exception]]"
    due: datetime | None = None
    schedule_id: str | None = None


class BrokerProducer:
    """Publishes through a driver, in the order of the calls.

    One send is under way at a time; all that is published meanwhile goes with the next one.
    With `insist`, for what must not get lost, a topic to which nobody listens is an outage instead of an error, and a
    dead letter may have the bytes that are kept for its headers. With `any_size` the broker alone says what is too large.
    With `answers` its topics are others' inboxes: what is not there is not made, and an instrument sees them as replies, if at
    all: of their names each requester has another.
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
        self._send_in = self._answering(self._enqueue) if answers else self._instrumented(self._enqueue)

    def _instrumented(self, send: Send) -> Send:
        for instrument in reversed(self._transmission.instruments):
            send = instrument.sending(self._transmission.url.endpoint)(send)
        return send

    def _answering(self, send: Send) -> Send:
        for instrument in reversed(self._transmission.instruments):
            if isinstance(instrument, FollowsRequests):
                send = instrument.answering(self._transmission.url.endpoint)(send)
        return send

    @overload
    async def publish(
        self,
        message: Message,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

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
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    async def publish(
        self,
        message: Message | Topic[Any],
        payload: Any = UNSET,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
        **fields: Any,
    ) -> None:
        """Publish one message, or the payload of one by its topic's contract; returns when the broker has confirmed it.

        Args:
            message: The message, or a Topic.
            payload: What the topic's message carries.
            after: In how many seconds it is to come, or in which `timedelta`.
            at: When it is to come, instead; the past is now.
            schedule_id: Its name among what is scheduled in its topic: the same again replaces it.
            fields: With a Topic, as `Topic.message` takes them: key, headers, id, timestamp.

        Raises:
            PublishError: The message was refused; `MessageTooLarge` where it is too large.
            BrokerUnavailable: The broker, or the topic's schema registry, stayed away for longer than `publish_timeout`.
            ClosedError: The producer or its broker was closed before.
            ConfigError: The time is none, or both are given, or a `schedule_id` without one.
            UnsupportedError: The broker cannot keep it until then, or knows no `schedule_id`.
            TypeError: The payload is not of the topic's type, or the arguments do not go together.
        """
        send = self._send_in
        if after is not None or at is not None or schedule_id is not None:
            send = self._sending_later(after, at, schedule_id)
        if isinstance(message, Topic):
            await self._transmission.prepare(message)
        one = (message_to_publish(message, payload, fields),)
        errors = await (self._send_transformed(one, send) if self._transforms else send(one))
        if errors:
            raise errors[0]

    async def publish_batch(
        self, messages: Sequence[Message], *, after: Seconds | None = None, at: datetime | None = None
    ) -> None:
        """Publish many, all of them for the same time where one is given; returns when all are confirmed.

        Raises:
            PublishError: `failures` maps the index of each message that is not confirmed to its error.
            ClosedError: The producer or its broker was closed before.
            ConfigError, UnsupportedError: As for `publish`.
        """
        send = self._send_in if after is None and at is None else self._sending_later(after, at)
        messages = checked_batch(messages)
        if not messages and not self._closed:
            return
        errors = await (self._send_transformed(messages, send) if self._transforms else send(messages))
        if errors:
            index, first = next(iter(sorted(errors.items())))
            raise PublishError(
                f"{len(errors)} of {len(messages)} messages were not published; message {index}: {first}",
                errors,
            ) from first

    async def _send_transformed(self, messages: Sequence[Message], send: Send) -> dict[int, Exception]:
        """One call after the other, as a transform may wait: messages of one key keep their order."""
        if self._closed:
            raise ClosedError("the producer is closed")
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
            sending = asyncio.ensure_future(send(ready)) if ready else None
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

    def _sending_later(
        self, after: Seconds | None, at: datetime | None, schedule_id: str | None = None
    ) -> Send:
        due = due_at(steady(), after, at, schedule_id)
        scheduling(self._transmission, ids=schedule_id is not None)
        schedule_id = plain(schedule_id)
        return self._instrumented(lambda messages: self._enqueue(messages, due, schedule_id))

    def _enqueue(
        self, messages: Sequence[Message], due: datetime | None = None, schedule_id: str | None = None
    ) -> "asyncio.Future[dict[int, Exception]]":
        self._transmission.check_loop()
        if self._closed:
            raise ClosedError("the producer is closed")
        refuse = refusal.get()
        if refuse is not None and not self._insist and (why := refuse(self._transmission.url)):
            raise PublishError(why)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        waiting = _Waiting(messages, deadline, loop.create_future(), due, schedule_id)
        self._queue.append(waiting)
        if self._sender is None:
            self._sender = loop.create_task(self._send_all(), name="things_kit producer")
            self._sender.add_done_callback(self._sender_ended)
        return waiting.outcome

    async def _send_all(self) -> None:
        while self._queue:
            self._sending = self._gather()
            await self._send(self._sending)
        self._sending = []  # else the last ones stay in memory until others come
        self._sender = None

    def _gather(self) -> list[_Waiting]:
        """The calls whose messages go together: many small ones, or one large one alone."""
        gathered: list[_Waiting] = []
        count = 0
        most = min(GATHER, self._transmission.driver.capabilities.max_batch)
        at_once = self._queue[0].due is None
        while (
            self._queue
            and (self._queue[0].due is None) is at_once
            and (not gathered or count + len(self._queue[0].messages) <= most)
        ):
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
        send_chunk = self._send_chunk
        if gathered[0].due is not None:
            later = self._later(gathered, ready, indices)
            send_chunk = functools.partial(self._transmission.send, later=later)
        with self._expiring(gathered) as until:
            for start, end in chunks(ready, capabilities.max_batch):
                chunk = ready[start:end]
                deadline = self._deadline(gathered)
                results = await send_chunk(chunk, deadline, until=max(until, deadline), insist=self._insist)
                if any(results):
                    numbered = enumerate(results, start)
                    errors.update(
                        {indices[number]: result for number, result in numbered if result is not None}
                    )
        if errors:  # what has to be sent again keeps its id
            for number, index in enumerate(indices):
                messages[index] = ready[number]
        self._answer(gathered, messages, errors)

    def _later(
        self, gathered: Sequence[_Waiting], ready: Sequence[Message], indices: Sequence[int]
    ) -> Sending:
        """How messages are sent that come later, each at the time that its call has said."""
        calls = [waiting for waiting in gathered for _ in waiting.messages]
        entries = [
            Scheduled(message, calls[index].due, calls[index].schedule_id)  # type: ignore[arg-type] # all have a time
            for message, index in zip(ready, indices, strict=True)
        ]
        return sender_of(scheduling(self._transmission), entries)

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
