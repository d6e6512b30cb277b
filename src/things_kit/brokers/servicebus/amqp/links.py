"""Links of AMQP 1.0, part 2 of its standard. Each has a session of its own: what goes wrong with one ends no other."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from uuid import uuid4

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
"""Frames that may come between two of ours: what bounds them is the credit."""

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

SENDS, RECEIVES = 0, 1
"""Our handles, one for each direction."""

Arrived: TypeAlias = Callable[[int, bytes, bytes], None]
"""Takes a message that came: its number in the session, its tag, and its bytes."""


class Link:
    """A session with a link that sends to one node, one that receives from one, or, for questions and answers, both.

    `ended` is why it is no more, once it is. Receiving, it brings as many messages as it was told to ask for.

    Args:
        connection: What it is on.
        target: Where it sends to.
        source: What it receives from.
        arrived: Takes what comes.
        filters: What of that it wants.
        properties: What else the service should know of it.
        here: How answers to it are addressed.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        target: str | None = None,
        source: str | None = None,
        arrived: Arrived | None = None,
        filters: Any = None,
        properties: Any = None,
        here: str = "things-kit",
    ) -> None:
        self.ended: asyncio.Future[AmqpError] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.name = ""
        self.properties: dict[Any, Any] = {}
        self.source: Any = None
        self.largest = self.credit = 0
        self._connection = connection
        self._arrived = arrived
        self._parts: list[bytes] = []
        self._head: list[Any] = []
        self._begun = self._detaching = False
        self._ours: set[int] = set()
        self._theirs: dict[int, int] = {}
        self._attached: set[int] = set()
        self._outcomes: tuple[dict[int, asyncio.Future[Any]], ...] = ({}, {})
        self._counts = [0, 0]
        self._granted = self._window = self._next_in = self._next_out = self._deliveries = 0
        self._channel = connection.begin(self)
        self._send(BEGIN, [None, uint(0), uint(WINDOW), uint(WINDOW), uint(1)])
        if target is not None:
            self._attach(SENDS, [here], [target], None)
        if source is not None:
            self._attach(RECEIVES, [source, *[None] * 6, filters], [here], properties)

    def _attach(self, handle: int, source: list[Any], target: list[Any], properties: Any) -> None:
        self.name = f"things-kit-{uuid4().hex}"
        self._ours.add(handle)
        modes = [ubyte(0), ubyte(handle)]  # each side says what became of a message
        ends = [Described(0x28, source), Described(0x29, target)]
        first = uint(0) if handle == SENDS else None
        fields = [self.name, uint(handle), handle == RECEIVES, *modes, *ends, None, None, first]
        self._send(ATTACH, [*fields, None, None, None, properties])

    async def open(self) -> None:
        """Wait until the service has begun the session, and attached. Raises AmqpError."""
        await self._until(lambda: self._begun and self._attached == self._ours)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not self.ended.done():
            if holds():
                return
            self.changed.clear()
            await self.changed.wait()
        raise self.ended.result()

    def _send(self, code: int, fields: list[Any], payload: bytes = b"") -> None:
        if not self.ended.done():
            self._connection.send(self._channel, code, fields, payload)

    def _flow(self, *receiving: int, drain: bool = False) -> None:
        """Say how much may come; with its delivery count and credit where the link receives."""
        own = (RECEIVES, *receiving) if receiving else ()
        numbers = [uint(each) for each in (self._next_in, WINDOW, self._next_out, WINDOW, *own)]
        self._send(FLOW, [*numbers, None, drain] if own else [*numbers])

    # --- what comes

    def received(self, code: int, fields: list[Any], payload: bytes) -> None:
        """A frame came."""
        if code == BEGIN:
            self._next_in, self._window, self._begun = fields[1], fields[2], True
        elif code == ATTACH:
            self._attaches(fields)
        elif code == FLOW:
            self._flowed(fields)
        elif code == TRANSFER:
            self._transferred(fields, payload)
        elif code == DISPOSITION:
            self._disposed(self._outcomes[SENDS if fields[0] else RECEIVES], *fields[1:5])
        elif code == DETACH:
            self.abandon(AmqpError.of(fields[2], "the service closed the link"))
        elif code == END:
            self._send(END, [])
            self._connection.end(self._channel)
            self.lost(AmqpError.of(fields[0], "the service ended the session"))
        self.changed.set()

    def _attaches(self, fields: list[Any]) -> None:
        """The service attaches; without a terminus it only says that it will not."""
        self._theirs[fields[1]] = handle = SENDS if fields[2] else RECEIVES
        if fields[6 if handle == SENDS else 5] is not None:
            self._attached.add(handle)
        self.source, self.largest, self.properties = fields[5], fields[10] or 0, fields[13] or {}
        if handle == RECEIVES:
            self._counts[RECEIVES] = fields[9] or 0

    def _flowed(self, fields: list[Any]) -> None:
        """The service says how much it takes; how much of the credit it did not use; or asks what there is of it."""
        self._window = ((fields[0] or 0) + fields[1] - self._next_out) & WHOLE
        handle = None if fields[4] is None else self._theirs[fields[4]]
        count = fields[5] or 0
        if handle == SENDS:
            self._granted = (count + (fields[6] or 0) - self._counts[SENDS]) & WHOLE
        elif handle == RECEIVES and fields[5] is not None:
            self.credit = max(0, self.credit - ((count - self._counts[RECEIVES]) & WHOLE))
            self._counts[RECEIVES] = count
        if fields[9]:
            self._flow(*((self._counts[RECEIVES], self.credit) if handle == RECEIVES else ()))

    def _transferred(self, fields: list[Any], payload: bytes) -> None:
        """Put the parts of a message together. What comes after a goodbye goes to somebody else."""
        self._next_in = (self._next_in + 1) & WHOLE
        if self._detaching:
            return
        self._head = self._head or fields
        self._parts.append(payload)
        aborted = fields[9]
        if fields[5] and not aborted:
            return
        head, parts, self._head, self._parts = self._head, self._parts, [], []
        self._counts[RECEIVES] = (self._counts[RECEIVES] + 1) & WHOLE
        self.credit -= 1
        if self._arrived is not None and not aborted:
            self._arrived(head[1], head[2], b"".join(parts))

    def _disposed(
        self,
        outcomes: dict[int, asyncio.Future[Any]],
        first: int,
        last: int | None,
        settled: bool,
        state: Any,
    ) -> None:
        """The service says what became of deliveries, from one number to another."""
        span = 0 if last is None else (last - first) & WHOLE
        if not settled:
            return
        if span < len(outcomes):
            numbers = [(first + place) & WHOLE for place in range(span + 1)]
        else:
            numbers = [number for number in outcomes if (number - first) & WHOLE <= span]
        for number in numbers:
            outcome = outcomes.pop(number, None)
            if outcome is not None and not outcome.done():
                outcome.set_result(state)

    # --- sending

    async def send(self, payload: bytes, form: int = 0) -> None:
        """Send a message when the service wants one, and wait for it to have it. Raises AmqpError, also where it is refused."""
        size = self._connection.largest_frame - OVERHEAD
        parts = [payload[start : start + size] for start in range(0, len(payload), size)]
        await self._until(lambda: self._granted > 0 and self._window >= len(parts))
        number = self._deliveries & WHOLE
        self._deliveries += 1
        self._window -= len(parts)
        self._next_out = (self._next_out + len(parts)) & WHOLE
        self._counts[SENDS], self._granted = (self._counts[SENDS] + 1) & WHOLE, self._granted - 1
        outcome = self._outcome(SENDS, number)
        head: list[Any] = [uint(number), b"%d" % number, uint(form)]
        for place, part in enumerate(parts, 1):
            self._send(TRANSFER, [uint(SENDS), *head, False, place < len(parts)], part)
            head = [None, None, None]  # of the first part alone
        state = await outcome
        if isinstance(state, AmqpError):
            raise state
        if not isinstance(state, Described) or state.descriptor != ACCEPTED.descriptor:
            raise refused(state)

    def _outcome(self, handle: int, number: int) -> asyncio.Future[Any]:
        self._outcomes[handle][number] = outcome = asyncio.get_running_loop().create_future()
        return outcome

    # --- receiving

    def ask(self, credit: int) -> None:
        """Have it bring so many, all told."""
        self.credit = credit
        self._flow(self._counts[RECEIVES], credit)

    async def drain(self) -> None:
        """Have it bring nothing more; returns when all that was on its way is here, or the link ended."""
        if self.credit > 0:
            self._flow(self._counts[RECEIVES], self.credit, drain=True)
            with contextlib.suppress(AmqpError):
                await self._until(lambda: self.credit <= 0)

    def settle(self, number: int, state: Described, *, answered: bool = True) -> asyncio.Future[Any] | None:
        """Say what becomes of a message; a future of the service's answer, an AmqpError where the link ended before."""
        self._send(DISPOSITION, [True, uint(number), None, not answered, state])
        if not answered:
            return None
        answer = self._outcome(RECEIVES, number)
        if self.ended.done():
            answer.set_result(self.ended.result())
        return answer

    @property
    def unanswered(self) -> list[asyncio.Future[Any]]:
        """What the service has not said to settlements."""
        return [answer for answer in self._outcomes[RECEIVES].values() if not answer.done()]

    # --- the end

    def _detach(self) -> None:
        if not self._detaching:
            self._detaching = True
            for handle in self._ours:
                self._send(DETACH, [uint(handle), True])

    async def close(self) -> None:
        """Detach and end it. The service is waited for: then it knows that we hold nothing."""
        try:
            if not self.ended.done():
                self._detach()
                await asyncio.wait({self.ended}, timeout=FAREWELL)
        finally:
            self.abandon()

    def abandon(self, error: AmqpError | None = None) -> None:
        """As `close`, for whom cannot wait. What still comes for it is nobody's."""
        self._detach()
        self._send(END, [])
        self.lost(error or AmqpError(CLOSED, "the link was closed"))

    def lost(self, error: AmqpError) -> None:
        """It is no more."""
        self._detaching = True
        if not self.ended.done():
            self.ended.set_result(error)
        for outcomes in self._outcomes:
            for outcome in outcomes.values():
                if not outcome.done():
                    outcome.set_result(error)
        self.changed.set()


def refused(state: Any) -> AmqpError:
    """What it means that a message, or what was said of one, has not the outcome that it should have."""
    error = state.value[0] if isinstance(state, Described) and state.value else None
    return AmqpError.of(error, "the service did not accept it")
