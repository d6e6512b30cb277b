"""Receiving replies: the server pushes them and nobody acknowledges them; their numbers say whether one is missing.

An inbox is one process's, so nobody else may have what this one does not handle, and a consumer with acknowledgements would
keep for the server what the process knows by itself: how far it is. Whoever reads on after a lost connection begins there.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Subject

from things_kit.brokers.nats.admin import Place, Streams
from things_kit.brokers.nats.connection import Connection
from things_kit.brokers.nats.receiver import HEARTBEAT, SILENCE, Past
from things_kit.brokers.nats.wire import coordinates, envelope, unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription

STALLED: Final = "Nats-Consumer-Stalled"
"""In a heartbeat: where to say that we have read what was sent."""

LAST: Final = "Nats-Last-Consumer"
"""In a heartbeat: the number of the last message that was sent."""


class InboxReceiver:
    """What is pushed out of an inbox's stream. A delivery's token is its position there."""

    def __init__(
        self, connection: Connection, streams: Streams, subscription: Subscription, past: Past
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._subscription = subscription
        self._places = past.places
        self._known = (subscription.topic, subscription.group)
        self._loop = asyncio.get_running_loop()
        self._envelope = envelope()
        self._stream = ""
        self._created = ""
        self._consumer = ""
        self._subject: Subject | None = None
        self._arrived: list[Msg] = []
        self._held: dict[int, None] = {}  # positions, in order
        self._seen = 0  # the position of the last that was put into the inbox
        self._number = 0  # of the last message that was sent
        self._heard = self._loop.time()
        self._changed = asyncio.Event()
        self._failure: ConnectionLost | None = None

    async def begin(self) -> None:
        """Have the server push what has not been handled. Raises ConnectionLost, ConfigError."""
        topic = self._subscription.topic
        self._stream = await self._streams.stream_of(topic, create=self._subscription.create)
        info = await self._streams.stream(self._stream)
        if info is None:
            raise ConnectionLost(f"the stream of {topic!r} is gone")
        self._created, start = info["created"], 1
        place = self._places.get(self._known)
        if place is not None and place.created == self._created:
            start = place.seq
        self._seen = start - 1
        deliver, self._subject = await self._connection.receive_by(self._accept)
        self._unwatch = self._connection.watch(self._changed.set)
        try:
            self._consumer = await self._streams.push(self._stream, topic, deliver, start, HEARTBEAT)
        except BaseException:
            self._unwatch()
            with contextlib.suppress(ConnectionLost):
                await self.quiesce()
            raise
        self._heard = self._loop.time()

    # --- receiving

    async def fetch(self, limit: int, wait: float) -> None:
        """Hand out what was pushed."""
        self._check()
        ends = self._loop.time() + wait
        while not self._arrived and (left := ends - self._loop.time()) > 0:
            self._changed.clear()
            silent = self._heard + SILENCE - self._loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(left, silent))):
                    await self._changed.wait()
            except TimeoutError:
                await self._check_silence()
            self._check()
        arrived, self._arrived = self._arrived[:limit], self._arrived[limit:]
        self._subscription.inbox.put([self._delivery(msg) for msg in arrived])

    def _delivery(self, msg: Msg) -> Delivery:
        at = coordinates(msg.reply)
        self._held[at.seq] = None
        self._seen = at.seq
        return Delivery(unpack(msg, self._envelope, at, 1), at.seq)

    async def _accept(self, msg: Msg) -> None:
        self._heard = self._loop.time()
        headers = msg.headers or {}
        if headers.get("Status") is not None and not msg.data:
            await self._note(msg.reply, headers)
            return
        number = coordinates(msg.reply).number
        self._expect(number - 1)
        self._number = number
        self._arrived.append(msg)
        self._changed.set()

    async def _note(self, reply: str, headers: dict[str, str]) -> None:
        """The server says that it is there, how far it is, and where it wants to hear that we are as far."""
        self._expect(int(headers.get(LAST, self._number)))
        for subject in filter(None, (reply, headers.get(STALLED))):
            await self._connection.tell(subject)

    def _expect(self, number: int) -> None:
        if number != self._number and self._failure is None:
            self._failure = ConnectionLost(f"a reply in {self._subscription.topic!r} was lost on its way")
            self._changed.set()

    def _check(self) -> None:
        self._connection.check()
        if self._failure is not None:
            raise self._failure

    async def _check_silence(self) -> None:
        """Raises ConnectionLost if nothing was heard for long, perhaps as the stream was deleted: that is said to nobody."""
        if self._loop.time() - self._heard >= SILENCE:
            await self.overdue()
            raise ConnectionLost(f"{self._subscription.topic!r} was silent for {SILENCE:g} s")

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """It is handled, or nobody will."""
        for delivery in (*acknowledged, *(each.delivery for each in released)):
            self._held.pop(delivery.token, None)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Nobody waits for these."""

    async def overdue(self) -> int | None:
        """What the server has not sent."""
        info = await self._streams.consumer(self._stream, self._consumer)
        if info is None:
            raise ConnectionLost(f"the stream of {self._subscription.topic!r} is gone")
        return int(info["num_pending"])

    # --- closing

    async def quiesce(self) -> None:
        """Have nothing more pushed."""
        if self._subject is not None:
            self._connection.check()
            subject, self._subject = self._subject, None
            await self._connection.stop_receiving(subject)

    async def close(self) -> None:
        """Delete the consumer; where the connection is lost it goes by itself. The place is kept until the inbox is removed."""
        self._unwatch()
        first: int = next(iter(self._held), self._seen + 1)
        self._places[self._known] = Place(self._created, first)
        self._connection.check()
        await self.quiesce()
        await self._streams.leave(self._stream, self._consumer)
