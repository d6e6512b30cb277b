"""Requests: a message is published, and its reply awaited in an inbox that all requests of a broker share."""

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from things_kit.codecs.models import converter
from things_kit.codecs.payload import name_of, payload_decoder, raw_decoder
from things_kit.engine.answers import requested
from things_kit.engine.cancelling import Shared, ended
from things_kit.engine.clock import steady
from things_kit.engine.consumer import BrokerConsumer
from things_kit.engine.driver import ConnectionLost, Listing
from things_kit.engine.naming import REPLIES, inbox_expired
from things_kit.engine.options import ConsumerOptions
from things_kit.engine.producer import BrokerProducer
from things_kit.engine.transmission import Transmission
from things_kit.messaging.codec import Unprepared
from things_kit.messaging.errors import (
    BrokerUnavailable,
    ClosedError,
    ConfigError,
    DecodeError,
    RemoteError,
    ThingsKitError,
)
from things_kit.messaging.instrument import Ask, FollowsRequests
from things_kit.messaging.message import Message
from things_kit.messaging.names import CONTENT_TYPE, CORRELATION_ID, ERROR, ERROR_TYPE, in_any_case
from things_kit.messaging.policy import DISCARD, Seconds, seconds

log = logging.getLogger("things_kit.broker")

LIFE: Final = 24 * 3600.0
"""Seconds for which an inbox serves at most. Its name says when that ends, so that anybody can remove a dead one's."""

GROUP: Final = "replies"
"""Whose place in an inbox the broker keeps while the connection is lost."""

MAKE: Final = 0.5
"""Seconds that making the inbox may still take when nobody wants it any more."""

REMOVE: Final = 2.0
"""Seconds that closing may take to remove the inbox; whoever makes the next one removes it else."""


class Requests:
    """All requests of one broker object. The inbox is made by the first of them."""

    def __init__(self, transmission: Transmission) -> None:
        self.closed = False
        self._transmission = transmission
        self._inbox: _Inbox | None = None
        self._producer: BrokerProducer | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self._opening = Shared(self._renew, "things_kit inbox")
        self._sweeping: asyncio.Task[None] | None = None

    async def ask(self, message: Message, timeout: Seconds) -> Message:
        """Publish a message, and return its reply.

        Raises:
            RemoteError: Its handler failed for good.
            TimeoutError: There was no reply in time.
            ClosedError: The broker was closed meanwhile.
        """
        wait = seconds(timeout, "timeout")
        if not wait:
            raise ConfigError("timeout must be more than 0 seconds")
        if not isinstance(message, Message):
            raise TypeError(f"request takes a Message or a Topic, not {type(message).__name__}")
        ask: Ask = functools.partial(self._asked, wait=wait)
        for instrument in reversed(self._transmission.instruments):
            if isinstance(instrument, FollowsRequests):
                ask = instrument.asking(self._transmission.url.endpoint)(ask)
        return await ask(message)

    async def _asked(self, message: Message, wait: float) -> Message:
        inbox = await self._ready()
        producer = self._producer = self._producer or BrokerProducer(self._transmission)
        correlation_id, reply = inbox.expect()
        try:
            async with asyncio.timeout(wait) as limit:
                await producer.publish(requested(message, inbox.name, correlation_id, wait))
                answer = await reply
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"no reply from {message.topic!r} within {wait:g} s") from error
        except BrokerUnavailable as error:
            if not self.closed:
                raise
            raise ClosedError("the broker was closed before the request was confirmed") from error
        finally:
            inbox.forget(correlation_id)
        if ERROR_TYPE in answer.headers:
            raise RemoteError(answer.headers[ERROR_TYPE], answer.headers.get(ERROR, ""))
        return answer

    async def close(self) -> None:
        """End all requests with ClosedError, and remove the inbox."""
        self.closed = True
        await self._opening.end()
        for task in (self._sweeping, *self._retired):
            if task is not None:
                await ended(task)
        if self._producer is not None:
            await self._producer.close(0.0)
        if self._inbox is not None:
            await self._inbox.close()

    async def _ready(self) -> "_Inbox":
        if self.closed:
            raise ClosedError(f"{self._transmission.url.display} is closed")
        if self._inbox is None or not self._inbox.lasts:
            await self._opening.made()
        if self.closed or self._inbox is None:
            raise ClosedError(f"{self._transmission.url.display} was closed meanwhile")
        return self._inbox

    async def _renew(self) -> None:
        inbox = _Inbox(self._transmission)
        await inbox.open()
        if self._inbox is not None:
            self._retire(self._inbox)
        self._inbox = inbox
        self._sweeping = asyncio.create_task(self._sweep(), name="things_kit sweep of inboxes")

    def _retire(self, inbox: "_Inbox") -> None:
        task = asyncio.create_task(inbox.retire(), name="things_kit old inbox")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _sweep(self) -> None:
        """Remove the inboxes of processes that died, where the broker does not do it by itself."""
        driver = self._transmission.driver
        if driver.capabilities.passing_inbox or not isinstance(driver, Listing):
            return
        try:
            for topic in await driver.topics():
                if inbox_expired(topic, steady()):
                    await driver.remove(topic)
        except (ConnectionLost, ThingsKitError) as error:
            log.debug("old inboxes were not removed: %s", error)


class _Inbox:
    """A topic of this process alone, and who waits for what arrives there."""

    def __init__(self, transmission: Transmission) -> None:
        self._ends = steady() + LIFE
        self.name = f"{REPLIES}{int(self._ends):x}-{uuid4().hex[:16]}"
        self._transmission = transmission
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._mark, self._number = secrets.token_hex(8), 0
        self._empty = asyncio.Event()
        own = transmission.driver.capabilities.lasting_inbox
        options = ConsumerOptions(
            topics=(self.name,),
            handler=self._arrived,
            group=GROUP if own else None,
            dead_letter=DISCARD,
            ordering="none",
            drain_timeout=0.5,
        )
        self._consumer = BrokerConsumer(transmission, options)

    async def open(self) -> None:
        """Make it. Raises BrokerUnavailable after `publish_timeout`, or ConfigError."""
        making = asyncio.create_task(self._make(), name="things_kit new inbox")
        try:
            await asyncio.shield(making)
        except BaseException:
            await asyncio.shield(self._unmake(making))
            raise

    async def _make(self) -> None:
        await self._transmission.declare(self.name, [GROUP] if self._consumer.options.group else ())
        await self._consumer.start()

    async def _unmake(self, making: "asyncio.Task[None]") -> None:
        """What a broker is about to make when it is cancelled may come to be all the same, behind its removal."""
        await asyncio.wait({making}, timeout=MAKE)
        await ended(making)
        await self.close()

    @property
    def lasts(self) -> bool:
        """Whether it can be used for another request."""
        return self._consumer.running and steady() < self._ends - LIFE / 2

    def expect(self) -> tuple[str, "asyncio.Future[Message]"]:
        """A new correlation id, and what will be its reply."""
        self._number += 1
        correlation_id = f"{self._mark}-{self._number}"
        reply = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        self._empty.clear()
        return correlation_id, reply

    def forget(self, correlation_id: str) -> None:
        """Nobody waits for this reply any more."""
        reply = self._waiting.pop(correlation_id, None)
        if reply is not None:
            reply.cancel()
        if not self._waiting:
            self._empty.set()

    async def _arrived(self, message: Message) -> None:
        """The first reply wins; late ones, and what was never asked for, are dropped."""
        reply = self._waiting.get(message.headers.get(CORRELATION_ID, ""))
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def retire(self) -> None:
        """Close it when the last of its requests has ended."""
        if self._waiting:
            await self._empty.wait()
        await self.close()

    async def close(self) -> None:
        """End its requests, and remove it."""
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ClosedError("the broker was closed before the reply came"))
        await self._consumer.stop()
        self._transmission.forget(self.name)
        with contextlib.suppress(ConnectionLost, ThingsKitError, TimeoutError):
            async with asyncio.timeout(REMOVE):
                await self._transmission.driver.remove(self.name)


def reply_decoder(kind: Any) -> Callable[[Message], Any]:
    """A function from a reply to a type; an empty reply is None. Raises ConfigError for what cannot be decoded to."""
    if kind is Message:
        return lambda message: message
    decode, raw = payload_decoder(kind), raw_decoder(kind) is not None

    def decoded(message: Message) -> Any:
        if message.value or raw or in_any_case(message.headers, CONTENT_TYPE) is not None:
            return decode(message)
        try:
            return converter(kind)(None)
        except Exception as error:
            raise DecodeError(f"the reply is empty, not {name_of(kind)}") from error

    return decoded


async def decode_reply(decode: Callable[[Message], Any], message: Message) -> Any:
    """Decode a reply, once what its codec needs was fetched."""
    while True:
        try:
            return decode(message)
        except Unprepared as error:
            await error.awaitable
