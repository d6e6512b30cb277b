"""A connection of AMQP 1.0, part 2 of its standard: how it is opened, kept, watched and lost, and whose each frame is."""

import asyncio
from struct import pack
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from things_kit.brokers.servicebus.amqp.codec import Described, MalformedError, Symbol, decode, encode, uint

if TYPE_CHECKING:
    from things_kit.brokers.servicebus.amqp.links import Link

SASL: Final = b"AMQP\x03\x01\x00\x00"
AMQP: Final = b"AMQP\x00\x01\x00\x00"
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
MECHANISMS, INIT, OUTCOME = 0x40, 0x41, 0x44

FRAME: Final = 65_536
"""The largest frame that we take, and the largest that Service Bus does."""

SILENCE: Final = 20.0
"""Seconds after which a connection on which nothing comes is lost. The service is asked to say something in half of that."""

BEAT: Final = 30.0
"""The most seconds for which we say nothing; less where the service asks for it."""

LOOK: Final = 5.0
"""Seconds between two looks at that."""

FAREWELL: Final = 0.5
"""Seconds for which the answer to a goodbye is waited for."""

FRAMING: Final = "amqp:connection:framing-error"
LOST: Final = "amqp:connection:lost"
"""The condition of an error that nobody sent."""

_ABSENT: Final = [None] * 14
"""The fields that a list leaves out at its end."""

ResultT = TypeVar("ResultT")


class AmqpError(Exception):
    """What the service ended or refused something with, or how the connection was lost."""

    def __init__(self, condition: str, description: str = "") -> None:
        super().__init__(description or condition)
        self.condition = condition

    @classmethod
    def of(cls, error: Any, otherwise: str) -> "AmqpError":
        """What is said by an `error` of the protocol; it may be missing."""
        said = error.value if isinstance(error, Described) and isinstance(error.value, list) else []
        condition, description, *_ = [*said, None, None]
        return cls(str(condition or "amqp:connection:forced"), str(description or otherwise))


async def unless(ended: asyncio.Future[AmqpError], coming: asyncio.Future[ResultT]) -> ResultT:
    """What is to come. Raises the error if the other ends before."""
    waiting: set[asyncio.Future[Any]] = {ended, coming}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not coming.done():
        raise ended.result()
    return coming.result()


class Connection(asyncio.Protocol):
    """A client's end, without a login: rights are shown later, for each entity. `lost` is how it ended, once it has."""

    def __init__(self, hostname: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._hostname = hostname
        self._stream: asyncio.Transport | None = None
        self._input = bytearray()
        self._output: list[bytes] = []
        self._sessions: dict[int, Link] = {}
        self._theirs: dict[int, Link] = {}
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[AmqpError] = self._loop.create_future()
        self._heard = self._said = self._due = self._loop.time()
        self._beat = BEAT
        self._looking: asyncio.TimerHandle | None = None
        self._closing = False
        self.largest_frame = FRAME

    async def opened(self) -> None:
        """Wait for the service to have opened it. Raises AmqpError."""
        await unless(self.lost, self._opened)

    # --- asyncio's protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # a stream's
        """Begin the handshake."""
        self._stream = transport
        self._write(SASL)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take the frames that are complete."""
        self._heard = self._loop.time()
        self._input += data
        try:
            self._read()
        except (
            MalformedError,
            LookupError,
            TypeError,
        ) as error:  # or of fields that are not as they should be
            self._lose(AmqpError(FRAMING, f"the service sends what is not AMQP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes any more."""
        self._lose(AmqpError(LOST, f"the connection broke: {exc}" if exc else "the service hung up"))
        self._gone.set_result(None)

    def _read(self) -> None:
        data, at = self._input, 0
        while len(data) - at >= len(AMQP):
            greeting = data.startswith(b"AMQP", at)
            size = len(AMQP) if greeting else int.from_bytes(data[at : at + 4], "big")
            if not len(AMQP) <= size <= FRAME:
                raise MalformedError(f"a frame of {size} bytes")
            if len(data) - at < size:
                break
            (self._greeted if greeting else self._framed)(bytes(data[at : at + size]))
            at += size
        del data[:at]

    # --- what comes

    def _greeted(self, header: bytes) -> None:
        if header == AMQP:
            beat = uint(round(SILENCE / 2 * 1000))
            self.send(0, OPEN, [str(uuid4()), self._hostname, uint(FRAME), None, beat])
        elif header != SASL:
            raise MalformedError(f"it speaks {header!r}")

    def _framed(self, frame: bytes) -> None:
        start = frame[4] * 4
        if start == len(frame):  # a heartbeat
            return
        performative, end = decode(frame, start)
        if not isinstance(performative, Described) or not isinstance(performative.value, list):
            raise MalformedError("a frame without a performative")
        code, fields = performative.descriptor, performative.value + _ABSENT
        if frame[5]:
            self._authenticating(code, fields)
        else:
            self._received(int.from_bytes(frame[6:8], "big"), code, fields, frame[end:])

    def _authenticating(self, code: int, fields: list[Any]) -> None:
        if code == MECHANISMS:
            self._write(_frame(0, INIT, [Symbol("ANONYMOUS"), b"", self._hostname], sasl=1))
        elif code == OUTCOME and fields[0]:
            self._lose(AmqpError("amqp:unauthorized-access", "it lets nobody in without a login"))
        elif code == OUTCOME:
            self._write(AMQP)

    def _received(self, number: int, code: int, fields: list[Any], payload: bytes) -> None:
        if code == OPEN and not self._opened.done():
            self.largest_frame = min(FRAME, fields[2] or FRAME)
            self._beat = min(BEAT, (fields[4] or BEAT * 2000) / 2000)
            self._opened.set_result(None)
        elif code == CLOSE:
            if not self._closing:
                self.send(0, CLOSE, [])
            self._lose(AmqpError.of(fields[0], "the service closed the connection"))
        else:
            if code == BEGIN and fields[0] in self._sessions:
                self._theirs[number] = self._sessions[fields[0]]
            session = self._theirs.get(number)
            if code == END:
                self._theirs.pop(number, None)
            if session is not None:
                session.received(code, fields, payload)

    # --- sending

    def begin(self, link: "Link") -> int:
        """The number of a new session, which it keeps until `end`. Raises AmqpError if the connection is lost."""
        if self.lost.done():
            raise self.lost.result()
        number = next(number for number in range(0x10000) if number not in self._sessions)
        self._sessions[number] = link
        return number

    def end(self, number: int) -> None:
        """A session has ended, on both sides."""
        self._sessions.pop(number, None)

    def send(self, channel: int, code: int, fields: list[Any], payload: bytes = b"") -> None:
        """Send a frame, with all others of this turn of the loop."""
        self._write(_frame(channel, code, fields, payload))

    def _write(self, data: bytes) -> None:
        if not self._output:
            self._loop.call_soon(self._flush)
        self._output.append(data)

    def _flush(self) -> None:
        data, self._output = b"".join(self._output), []
        if self._stream is not None and data:
            self._said = self._loop.time()
            self._stream.write(data)

    # --- the watch, and the end

    def _look(self) -> None:
        """See that something was said, by both. A loop that stood still has perhaps not read yet what there is."""
        now = self._loop.time()
        if now - self._due <= LOOK:
            self.doubt(SILENCE)
        if self.lost.done():
            return
        if now - self._said + LOOK > self._beat and self._opened.done():
            self._write(pack(">IBBH", len(AMQP), 2, 0, 0))
        self._due = now + min(LOOK, self._beat / 2)
        self._looking = self._loop.call_at(self._due, self._look)

    def doubt(self, seconds: float) -> None:
        """It is lost if nothing came for so long: somebody waited for it, and in vain."""
        silence = self._loop.time() - self._heard
        if silence >= seconds:
            self._lose(AmqpError(LOST, f"nothing was heard of the service for {silence:.0f} s"))

    def _lose(self, error: AmqpError) -> None:
        if self.lost.done():
            return
        self.lost.set_result(error)
        self._flush()
        if self._looking is not None:
            self._looking.cancel()
        if self._stream is not None:
            self._stream.abort()
        for session in list(self._sessions.values()):
            session.lost(error)
        self._sessions.clear()

    async def close(self) -> None:
        """Say goodbye, and close; a service that does not answer is not waited for long."""
        if not self.lost.done() and self._opened.done():
            self._closing = True
            self.send(0, CLOSE, [])
            await asyncio.wait({self.lost}, timeout=FAREWELL)
        self._lose(AmqpError(LOST, "the connection was closed"))
        if self._stream is not None:
            await self._gone  # asyncio closes the socket in its next turn


def _frame(channel: int, code: int, fields: list[Any], payload: bytes = b"", *, sasl: int = 0) -> bytes:
    content = encode(Described(code, fields)) + payload
    return pack(">IBBH", len(content) + 8, 2, sasl, channel) + content
