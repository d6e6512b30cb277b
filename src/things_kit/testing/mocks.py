"""Stand-ins for the three contracts: a handler that records, a producer that keeps, a consumer that only says so."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar, overload

from things_kit.brokers.memory import MemoryOptions
from things_kit.engine.clock import steady
from things_kit.engine.naming import looks_like_pattern
from things_kit.engine.outbound import checked_batch, prepare
from things_kit.messaging.errors import ClosedError, ConfigError, PublishError
from things_kit.messaging.keys import Key
from things_kit.messaging.message import Message
from things_kit.messaging.policy import Seconds
from things_kit.messaging.producer import message_to_publish
from things_kit.messaging.schedule import Schedule, due_at
from things_kit.messaging.topic import UNSET, Topic, Unset

T = TypeVar("T")

Outcome: TypeAlias = BaseException | type[BaseException] | None
"""What one call is to do: raise this, or return."""


class _Anything:
    def __repr__(self) -> str:
        return "anything"


ANYTHING: Final = _Anything()
"""In `assert_handled`: the field may be whatever it is."""


def _checked(outcome: Outcome) -> Outcome:
    kind = outcome if isinstance(outcome, type) else type(outcome)
    if outcome is not None and not issubclass(kind, BaseException):
        raise TypeError(f"an outcome is an exception to raise, or None; it is {outcome!r}")
    return outcome


class MockHandler:
    """A handler that records its messages and answers as told.

    Attributes:
        messages: All messages it was given, in order, those that then failed included.
    """

    def __init__(
        self, outcomes: Iterable[Outcome] = (), *, max_message_bytes: int = MemoryOptions().max_message_bytes
    ) -> None:
        """Answer the calls with `outcomes`, one after another, and return once they are used up.

        Raises:
            TypeError: An outcome is neither an exception nor None.
        """
        self.messages: list[Message] = []
        self._max_message_bytes = max_message_bytes
        self._outcomes = deque(map(_checked, outcomes))
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def handle(self, message: Message) -> None:
        """Record the message; raise or return as the next outcome says.

        Raises:
            PublishError: It is no message that a broker could have brought.
        """
        _, errors = prepare([message], self._max_message_bytes, ours=True)
        if errors:
            raise errors[0]
        self.messages.append(message)
        for count, future in self._waiting:
            if count <= len(self.messages) and not future.done():
                future.set_result(None)
        outcome = self._outcomes.popleft() if self._outcomes else None
        if outcome is not None:
            raise outcome

    async def handled(self, count: int = 1, timeout: float = 10.0) -> list[Message]:
        """Wait until `count` messages in all were handled, and return them.

        Raises:
            AssertionError: They were not there within `timeout` seconds.
        """
        if len(self.messages) < count:
            future = asyncio.get_running_loop().create_future()
            entry = (count, future)
            self._waiting.append(entry)
            try:
                async with asyncio.timeout(timeout):
                    await future
            except TimeoutError:
                raise AssertionError(
                    f"waited {timeout:g} s for {count} messages, but {self._seen(self.messages)}"
                ) from None
            finally:
                self._waiting.remove(entry)
        return self.messages[:count]

    def assert_handled(
        self,
        *,
        topic: str | _Anything = ANYTHING,
        key: bytes | _Anything | None = ANYTHING,
        value: bytes | _Anything = ANYTHING,
        count: int | None = None,
    ) -> list[Message]:
        """Assert that messages with these fields were handled, `count` of them if given; return them.

        Raises:
            AssertionError: None was, or another number of times; the text lists what was handled instead.
        """
        wanted = {
            name: expected
            for name, expected in (("topic", topic), ("key", key), ("value", value))
            if not isinstance(expected, _Anything)
        }
        found = [
            message
            for message in self.messages
            if all(getattr(message, name) == expected for name, expected in wanted.items())
        ]
        what = ", ".join(f"{name}={expected!r}" for name, expected in wanted.items()) or "any fields"
        if count is not None and len(found) != count:
            raise AssertionError(
                f"expected {count} messages with {what}, found {len(found)}; {self._seen(self.messages)}"
            )
        if count is None and not found:
            raise AssertionError(f"no message with {what} was handled; {self._seen(self.messages)}")
        return found

    @staticmethod
    def _seen(messages: Sequence[Message]) -> str:
        if not messages:
            return "none was handled at all"
        lines = [
            f"  topic={message.topic!r}, key={message.key!r}, value={message.value[:80]!r}, attempt={message.attempt}"
            for message in messages[-20:]
        ]
        return f"{len(messages)} were handled, at last:\n" + "\n".join(lines)


class MockProducer:
    """A producer that keeps what is published, and refuses what every broker's producer refuses.

    A value that is no bytes, a header that begins with `tk-` or a message that is too large fails in a test of a user's
    own as it would fail later.

    Attributes:
        messages: What was published, in order and as it was given.
        scheduled: Of these what was published with a time, as a `Schedule` each; the same `schedule_id` again replaces it.
        fail_with: While this is set, publish raises it; `publish_batch` raises PublishError, with it for each message.
        closed: Whether it was closed.
    """

    def __init__(
        self,
        *,
        fail_with: Exception | type[Exception] | None = None,
        max_message_bytes: int = MemoryOptions().max_message_bytes,
    ) -> None:
        self.messages: list[Message] = []
        self.scheduled: list[Schedule] = []
        self.fail_with = fail_with
        self.closed = False
        self._max_message_bytes = max_message_bytes

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
        """Keep one message, or the one that carries a payload by its topic's contract.

        Raises:
            PublishError: It is not what a message must be; `MessageTooLarge` where it is too large.
            ClosedError: The producer was closed before.
            ConfigError: The time is none, or both are given, or a `schedule_id` without one.
            TypeError: The payload is not of the topic's type.
            Exception: `fail_with`, where it is set.
        """
        due = due_at(steady(), after, at, schedule_id)
        if isinstance(message, Topic):
            await message.prepare()
        errors = self._keep([message_to_publish(message, payload, fields)], due, schedule_id)
        if errors:
            raise errors[0]

    async def publish_batch(
        self, messages: Sequence[Message], *, after: Seconds | None = None, at: datetime | None = None
    ) -> None:
        """Keep many messages, but those that are refused.

        Raises:
            PublishError: `failures` maps the index of each that was not kept to its error.
            ClosedError: The producer was closed before.
        """
        due = due_at(steady(), after, at)
        messages = checked_batch(messages)
        errors = self._keep(messages, due)
        if errors:
            index, first = next(iter(sorted(errors.items())))
            raise PublishError(
                f"{len(errors)} of {len(messages)} messages were not published; message {index}: {first}",
                errors,
            ) from first

    async def close(self) -> None:
        """Refuse what comes from now on. Closing twice is fine."""
        self.closed = True

    def _keep(
        self, messages: Sequence[Message], due: datetime | None = None, schedule_id: str | None = None
    ) -> dict[int, Exception]:
        """Keep those that a producer would publish; returns the errors of the others by index."""
        if self.closed:
            raise ClosedError("this producer is closed")
        _, errors = prepare(messages, self._max_message_bytes)
        for index, message in enumerate(messages):
            if index not in errors and looks_like_pattern(message.topic):
                errors[index] = ConfigError(
                    f"the topic {message.topic!r} looks like a pattern, which nothing here is"
                )
        if self.fail_with is not None:
            told = self.fail_with() if isinstance(self.fail_with, type) else self.fail_with
            errors = {**dict.fromkeys(range(len(messages)), told), **errors}
        kept = [message for index, message in enumerate(messages) if index not in errors]
        self.messages.extend(kept)
        if due is not None:
            self.scheduled = [
                known
                for known in self.scheduled
                if schedule_id is None
                or (known.message.topic, known.schedule_id)
                not in {(each.topic, schedule_id) for each in kept}
            ]
            self.scheduled += [Schedule(schedule_id, due, message) for message in kept]
        return errors


class MockConsumer:
    """A consumer that brings nothing and remembers what was asked of it.

    Attributes:
        started: How often it was started.
        stopped: How often it was stopped.
        waited: How often somebody waited for its end.
    """

    def __init__(self, *, fail_with: BaseException | type[BaseException] | None = None) -> None:
        """Be a consumer that breaks with `fail_with` for whoever waits, where it is given."""
        self.started = 0
        self.stopped = 0
        self.waited = 0
        self._fail_with = fail_with
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Note it."""
        self.started += 1
        self._ended.clear()

    async def stop(self) -> None:
        """Note it, and let go whoever waits."""
        self.stopped += 1
        self._ended.set()

    async def wait(self) -> None:
        """Wait until it is stopped, or raise `fail_with`."""
        self.waited += 1
        if self._fail_with is not None:
            raise self._fail_with
        await self._ended.wait()

    async def __aenter__(self) -> "MockConsumer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
