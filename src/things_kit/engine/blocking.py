"""Publishing from code that is not async, over a thread with an event loop of its own."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload
from weakref import WeakSet

from things_kit.messaging.errors import BrokerUnavailable, ClosedError, ConfigError
from things_kit.messaging.keys import Key
from things_kit.messaging.message import Message
from things_kit.messaging.policy import Seconds
from things_kit.messaging.topic import UNSET, Topic, Unset
from things_kit.messaging.transform import Transform

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker
    from things_kit.engine.producer import BrokerProducer

T = TypeVar("T")
ResultT = TypeVar("ResultT")

ENDING: Final = 10.0
"""Seconds for the thread to end, once what it had to send was flushed."""


class BlockingProducer:
    """Publishes like a producer, and returns when the broker has confirmed. Made by `connect(url).blocking()`.

    Any number of threads may share one: what they publish at the same time goes to the broker together. It connects
    when it is first used, or entered; after a fork the child connects anew.
    """

    def __init__(self, make: Callable[[], "Broker"], transforms: Sequence[Transform] = ()) -> None:
        self._make = make
        self._transforms = transforms
        self._closed = False
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        """Begin without a connection, as after a fork: the thread is the parent's, and so may be a held lock."""
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._opening: Future[_Session] | None = None

    # --- publishing

    @overload
    def publish(
        self,
        message: Message,
        /,
        *,
        after: Seconds | None = None,
        at: datetime | None = None,
        schedule_id: str | None = None,
    ) -> None: ...

    @overload
    def publish(
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

    def publish(self, message: Message | Topic[Any], payload: Any = UNSET, /, **fields: Any) -> None:
        """Publish one message, or the payload of one by its topic's contract; returns when the broker has confirmed it.

        Raises:
            PublishError: The message was refused; `MessageTooLarge` where it is too large.
            BrokerUnavailable: The broker stayed away for longer than `publish_timeout`.
            ClosedError: The producer was closed before.
            ConfigError: An event loop runs here: await `broker.producer().publish` there; or a time that is none.
            UnsupportedError: The broker cannot keep it until `after` or `at`, or knows no `schedule_id`.
            TypeError: The payload is not of the topic's type.
        """
        session = self._opened()
        session.ask(session.producer.publish(message, payload, **fields))  # type: ignore[arg-type] # as it was given

    def publish_batch(
        self, messages: Sequence[Message], *, after: Seconds | None = None, at: datetime | None = None
    ) -> None:
        """Publish many, all of them for the same time where one is given; returns when all are confirmed.

        Raises:
            PublishError: `failures` maps the index of each refused message to its error; the others are confirmed.
            ClosedError, ConfigError: As for `publish`.
        """
        session = self._opened()
        session.ask(session.producer.publish_batch(messages, after=after, at=at))

    # --- opening and closing

    def open(self) -> None:
        """Connect now. Raises BrokerUnavailable, ConfigError."""
        self._opened()

    def close(self) -> None:
        """Send what is waiting in other threads, disconnect, and end the thread. Closing twice is fine."""
        self._closed = True
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> "_Session":
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - public, but raises where there is none
            raise ConfigError(
                "an event loop runs in this thread, which a blocking producer would hold up: await "
                "`broker.producer().publish(...)`, or call this in a thread"
            )
        if self._closed:
            raise ClosedError("the producer is closed")
        while True:
            with self._lock:
                if self._session is not None:
                    return self._session
                opening, ours = self._opening, self._opening is None
                if opening is None:
                    opening = self._opening = Future()
            if ours:
                return self._connected(opening)
            with contextlib.suppress(CancelledError):  # who connected was interrupted: the next one does it
                return opening.result()

    def _connected(self, opening: "Future[_Session]") -> "_Session":
        """Connect, for all threads that want to publish meanwhile: none waits for the failures of those before it."""
        try:
            session = _Session(self._make(), self._transforms)
        except BaseException as error:
            with self._lock:
                self._opening = None
            if isinstance(error, Exception):
                opening.set_exception(error)
            else:
                opening.cancel()
            raise
        with self._lock:
            self._opening, closed = None, self._closed
            self._session = None if closed else session
        if closed:
            session.close()
        opening.set_result(session)  # of one that was closed meanwhile its own error tells
        return session


class _Session:
    """A broker that is open on the loop of a thread."""

    producer: "BrokerProducer"

    def __init__(self, broker: "Broker", transforms: Sequence[Transform]) -> None:
        self._broker = broker
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, name=f"things_kit {broker.url.display}", daemon=True
        )
        self._thread.start()
        try:
            self.ask(broker.open())
        except BaseException:
            self.close()
            raise
        self.producer = broker.producer(transforms=transforms)

    def ask(self, call: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What a coroutine returns on the loop; one that nobody waits for any more is cancelled."""
        try:
            future: Future[ResultT] = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError:  # closed meanwhile
            call.close()
            raise ClosedError("the producer is closed") from None
        try:
            return future.result()
        except CancelledError:
            raise BrokerUnavailable(
                "the producer was closed meanwhile; whether the message arrived is not known"
            ) from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the broker and end the thread."""
        with contextlib.suppress(ClosedError):
            try:
                self.ask(self._broker.close())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(ENDING)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()


_all: Final[WeakSet[BlockingProducer]] = WeakSet()
_inherited: Final[list[_Session]] = []
"""Of the process that forked this one: they are never closed here, as that would be said on the parent's connections."""


def _forked() -> None:
    for producer in _all:
        if producer._session is not None:  # noqa: SLF001 - of this very module
            _inherited.append(producer._session)  # noqa: SLF001
        producer._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
