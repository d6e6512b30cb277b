"""Links of AMQP 1.0, each in a session of its own: what goes wrong with one ends no other."""

import asyncio
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import msgspec

from things_kit.brokers.servicebus.amqp.codec import Described, ubyte, uint
from things_kit.brokers.servicebus.amqp.connection import (
    ATTACH,
    BEGIN,
    DETACH,
    DISPOSITION,
    END,
    FAREWELL,
    FLOW,
    TRANSFER,
    AmqpError,
    Connection,
)

WINDOW: Final = 1_000_000
"""Frames that may come between two of ours: what bounds them is the credit of each link."""

WHOLE: Final = 0xFFFFFFFF
"""The protocol's numbers begin anew after this one."""

OVERHEAD: Final = 512
"""Bytes of a frame that are not the message's."""

ACCEPTED: Final = Described(0x24, [])
RELEASED: Final = Described(0x26, [])
"""Given back, as if it had not been delivered."""
MODIFIED: Final = Described(0x27, [True, False])
"""Given back, as one more delivery."""

CLOSED: Final = "amqp:link:closed"
"""The condition of a link that was closed on this side."""


class Arrival(msgspec.Struct, eq=False, gc=False):
    """A message that came over a link: its number in the session, its tag, and its bytes."""

    number: int
    tag: bytes
    payload: bytes


class Session:
    """A session with the one link that it is for, or the two of a conversation."""

    def __init__(self, connection: Connection) -> None:
        self.window = 0
        self.largest_frame = connection.largest_frame
        self._connection = connection
        self._links: list[Link] = []
        self._by_handle: dict[int, Link] = {}
        self._next_in = self._next_out = self._deliveries = 0
        self._ended = False
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel = connection.begin(self)
        self.send(BEGIN, [None, uint(0), uint(WINDOW), uint(WINDOW), uint(1)])

    async def begun(self) -> None:
        """Wait for the service to have begun it as well. Raises AmqpError."""
        waiting: set[asyncio.Future[Any]] = {self._begun, self._connection.lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._begun.done():
            raise self._connection.lost.result()

    def add(self, link: "Link") -> int:
        """The handle of a link that is about to attach."""
        self._links.append(link)
        return len(self._links) - 1

    def send(self, code: int, fields: list[Any], payload: bytes = b"") -> None:
        """Send a frame of this session."""
        if not self._ended:
            self._connection.send(self._channel, code, fields, payload)

    def flow(self, *link: int, drain: bool = False) -> None:
        """Say how much may come; for a link by its handle, delivery count and credit."""
        numbers = [uint(each) for each in (self._next_in, WINDOW, self._next_out, WINDOW, *link)]
        self.send(FLOW, [*numbers, None, drain] if link else [*numbers])

    def transfers(self, frames: int) -> int:
        """The number of a delivery of ours that takes so many frames."""
        self.window -= frames
        self._next_out = (self._next_out + frames) & WHOLE
        self._deliveries += 1
        return (self._deliveries - 1) & WHOLE

    def received(self, code: int, fields: list[Any], payload: bytes) -> None:
        """A frame came."""
        if code == BEGIN:
            self._next_in, self.window = fields[1], fields[2]
            self._begun.set_result(None)
        elif code == FLOW:
            self.window = ((fields[0] or 0) + fields[1] - self._next_out) & WHOLE
            if fields[9] and fields[4] is None:
                self.flow()
        elif code == TRANSFER:
            self._next_in = (self._next_in + 1) & WHOLE
        elif code == DISPOSITION:
            for link in self._links:
                if link.receives is not fields[0]:
                    link.disposed(
                        fields[1], fields[1] if fields[2] is None else fields[2], fields[3], fields[4]
                    )
        elif code == END:
            self.send(END, [])
            self._connection.end(self._channel)
            self.lost(AmqpError.of(fields[0], "the service ended the session"))
        self._told(code, fields, payload)

    def _told(self, code: int, fields: list[Any], payload: bytes) -> None:
        """What a frame says to a link; to one that has not attached yet it says nothing."""
        if code == ATTACH:
            for link in self._links:
                if link.name == fields[0]:
                    self._by_handle[fields[1]] = link
                    link.attached(fields)
        elif code == DETACH and fields[0] in self._by_handle:
            self._by_handle.pop(fields[0]).detached(AmqpError.of(fields[2], "the service closed the link"))
        elif code == TRANSFER and fields[0] in self._by_handle:
            self._by_handle[fields[0]].transferred(fields, payload)
        elif code == BEGIN or (code == FLOW and fields[4] is None):
            for link in self._links:
                link.changed.set()
        elif code == FLOW and fields[4] in self._by_handle:
            self._by_handle[fields[4]].flowed(fields)

    def lost(self, error: AmqpError) -> None:
        """It is no more, with all of its links."""
        self._ended = True
        for link in self._links:
            link.over(error)

    async def close(self) -> None:
        """Detach its links, and end it. The service is waited for: then it knows that we hold nothing."""
        if not self._ended:
            for link in self._links:
                link.detach()
            await asyncio.wait({link.ended for link in self._links}, timeout=FAREWELL)
        self.abandon()

    def abandon(self) -> None:
        """As `close`, for whom cannot wait. What still comes for it is nobody's."""
        for link in self._links:
            link.detach()
        self.send(END, [])
        self.lost(AmqpError(CLOSED, "the link was closed"))


class Link:
    """What both kinds of links have in common. `ended` is why it is no more, once it is."""

    receives: bool

    def __init__(
        self, session: Session, source: Any, target: Any, properties: dict[Any, Any] | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = f"things-kit-{uuid4().hex}"
        self.ended: asyncio.Future[AmqpError] = loop.create_future()
        self.changed = asyncio.Event()
        self.properties: dict[Any, Any] = {}
        self.source: Any = None
        self.largest = 0
        self._attached = False
        self._detaching = False
        self._session = session
        self._outcomes: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._handle = session.add(self)
        modes = [ubyte(0), ubyte(1 if self.receives else 0)]  # each side says what became of a message
        fields = [
            self.name,
            uint(self._handle),
            self.receives,
            *modes,
            _terminus(0x28, source),
            _terminus(0x29, target),
        ]
        first = None if self.receives else uint(0)
        session.send(ATTACH, [*fields, None, None, first, None, None, None, properties])

    async def open(self) -> None:
        """Wait until it is attached. Raises AmqpError."""
        await self._until(lambda: self._attached)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self.ended.done():
                raise self.ended.result()
            self.changed.clear()
            await self.changed.wait()

    # --- what comes

    def attached(self, fields: list[Any]) -> None:
        """The service has attached; without a terminus it only says that it will not."""
        self.source, self.largest, self.properties = fields[5], fields[10] or 0, fields[13] or {}
        self._count = fields[9] or 0 if self.receives else 0
        self._attached = fields[5 if self.receives else 6] is not None
        self.changed.set()

    def detached(self, error: AmqpError) -> None:
        """The service has detached."""
        self.detach()
        self.over(error)

    def over(self, error: AmqpError) -> None:
        """Nothing more comes."""
        self._detaching = True
        if not self.ended.done():
            self.ended.set_result(error)
        for outcome in self._outcomes.values():
            if not outcome.done():
                outcome.set_result(error)
        self.changed.set()

    def detach(self) -> None:
        """Close it; `ended` says when the service knows."""
        if not self._detaching:
            self._detaching = True
            self._session.send(DETACH, [uint(self._handle), True])

    def disposed(self, first: int, last: int, settled: bool, state: Any) -> None:
        """The service has said what became of deliveries."""
        if not settled:
            return
        span = (last - first) & WHOLE
        numbers = (
            [(first + place) & WHOLE for place in range(span + 1)]
            if span < len(self._outcomes)
            else [number for number in self._outcomes if (number - first) & WHOLE <= span]
        )
        for number in numbers:
            outcome = self._outcomes.pop(number, None)
            if outcome is not None and not outcome.done():
                outcome.set_result(state)

    def transferred(self, fields: list[Any], payload: bytes) -> None:
        """A part of a message came."""

    def flowed(self, fields: list[Any]) -> None:
        """The service has said how much it wants, or has."""

    def _outcome(self, number: int) -> asyncio.Future[Any]:
        self._outcomes[number] = outcome = asyncio.get_running_loop().create_future()
        return outcome


class SendingLink(Link):
    """Sends messages, each when the service has asked for one."""

    receives = False

    def __init__(self, session: Session, target: str) -> None:
        super().__init__(session, self.__class__.__name__, target)
        self._credit = 0

    def flowed(self, fields: list[Any]) -> None:
        """Note how much may be sent."""
        self._credit = ((fields[5] or 0) + (fields[6] or 0) - self._count) & WHOLE
        self.changed.set()

    async def send(self, payload: bytes, form: int = 0) -> None:
        """Send a message, and wait for the service to have it. Raises AmqpError, also where it is refused."""
        size = self._session.largest_frame - OVERHEAD
        parts = [payload[start : start + size] for start in range(0, len(payload), size)]
        await self._until(lambda: self._credit > 0 and self._session.window >= len(parts))
        number = self._session.transfers(len(parts))
        self._count, self._credit = (self._count + 1) & WHOLE, self._credit - 1
        outcome = self._outcome(number)
        head = [uint(number), b"%d" % number, uint(form)]
        for place, part in enumerate(parts):
            more = place < len(parts) - 1
            self._session.send(
                TRANSFER, [uint(self._handle), *(head if not place else [None] * 3), False, more], part
            )
        state = await outcome
        if isinstance(state, AmqpError):
            raise state
        if not isinstance(state, Described) or state.descriptor != ACCEPTED.descriptor:
            raise refused(state)


class ReceivingLink(Link):
    """Receives as many messages as it was told to ask for, and says what became of them."""

    receives = True

    def __init__(
        self,
        session: Session,
        source: str,
        arrived: Callable[[Arrival], None],
        *,
        filters: dict[Any, Any] | None = None,
        properties: dict[Any, Any] | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(session, [source, filters], target or self.__class__.__name__, properties)
        self.credit = 0
        self._arrived = arrived
        self._parts: list[bytes] = []
        self._head: list[Any] = []

    def ask(self, credit: int) -> None:
        """Have it bring so many, all told."""
        self.credit = credit
        self._session.flow(self._handle, self._count, credit)

    async def drain(self) -> None:
        """Have it bring nothing more; returns when all that was on its way is here, or the link ended."""
        if self.credit > 0 and not self.ended.done():
            self._session.flow(self._handle, self._count, self.credit, drain=True)
            while self.credit > 0 and not self.ended.done():
                self.changed.clear()
                await self.changed.wait()

    def flowed(self, fields: list[Any]) -> None:
        """Note what the service did not use of the credit; where it asks, say what there is of it."""
        if fields[5] is not None:
            self.credit = max(0, self.credit - ((fields[5] - self._count) & WHOLE))
            self._count = fields[5]
        if fields[9]:
            self._session.flow(self._handle, self._count, self.credit)
        self.changed.set()

    def transferred(self, fields: list[Any], payload: bytes) -> None:
        """Put the parts of a message together. What comes after a goodbye goes to somebody else."""
        if self._detaching:
            return
        self._head = self._head or fields
        self._parts.append(payload)
        if fields[5] and not fields[9]:
            return
        head, parts, self._head, self._parts = self._head, self._parts, [], []
        self._count, self.credit = (self._count + 1) & WHOLE, self.credit - 1
        if not fields[9]:
            self._arrived(Arrival(head[1], head[2], b"".join(parts)))
        self.changed.set()

    @property
    def unanswered(self) -> list[asyncio.Future[Any]]:
        """What the service has not said to settlements."""
        return [answer for answer in self._outcomes.values() if not answer.done()]

    def settle(
        self, arrival: Arrival, state: Described, *, answered: bool = True
    ) -> asyncio.Future[Any] | None:
        """Say what becomes of a message; a future of the service's answer, an AmqpError where the link ended before."""
        self._session.send(DISPOSITION, [True, uint(arrival.number), None, not answered, state])
        if not answered:
            return None
        answer = self._outcome(arrival.number)
        if self.ended.done():
            answer.set_result(self.ended.result())
        return answer


def refused(state: Any) -> AmqpError:
    """What it means that a message, or what was said of one, has not the outcome that it should have."""
    error = state.value[0] if isinstance(state, Described) and state.value else None
    return AmqpError.of(error, "the service did not accept it")


def _terminus(code: int, address: Any) -> Described:
    """Where messages come from, with what filters them, or go to."""
    if isinstance(address, list):
        address, filters = address
        return Described(code, [address, *[None] * 6, filters])
    return Described(code, [address])
