"""The client's AMQP links, all over one connection, opened without pauses.

A client makes its links through a class that can be replaced. Ours does what the client's does, but for a few things: the
client makes a connection for each link, and sleeps after each frame while it opens one; it asks for messages and settles
them only while somebody calls it, one at a time; and it connects a receiver again whose messages are still in hand.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from weakref import WeakSet

from azure.servicebus._pyamqp.aio import ReceiveClientAsync, SendClientAsync
from azure.servicebus._pyamqp.aio._receiver_async import ReceiverLink
from azure.servicebus._pyamqp.constants import LinkState, Role, SessionState
from azure.servicebus._pyamqp.error import ErrorCondition
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.aio._transport._pyamqp_transport_async import PyamqpTransportAsync
from azure.servicebus.exceptions import ServiceBusConnectionError

from things_kit.brokers.servicebus.wire import Wire

Arrived: TypeAlias = Callable[[Any, Any], Awaitable[None]]
"""Is given the first frame of a message, and the message, while the connection's task processes it."""

FAREWELL: Final = 2.0
"""Seconds that saying goodbye may take."""

FRAMES: Final = 1000
"""Frames, or waits for one, for which a link that opens does not pause, as the client does after each."""


class Intake(ReceiverLink):
    """A receiving link that knows what became of each delivery that it settles, when it was drained, and when it is over."""

    outcomes: dict[int, asyncio.Future[Any]]
    drained: asyncio.Event
    over: asyncio.Event

    async def _set_state(self, new_state: LinkState) -> None:
        await super()._set_state(new_state)
        if new_state in {LinkState.DETACHED, LinkState.ERROR}:
            self.over.set()

    async def _incoming_disposition(self, frame: Any) -> None:
        role, first, last, settled, state = frame[:5]
        if role != Role.Sender or not settled:
            return
        last = first if last is None else last
        numbers = range(first, last + 1) if last - first < len(self.outcomes) else list(self.outcomes)
        for number in numbers:
            if (
                first <= number <= last
                and (outcome := self.outcomes.pop(number, None))
                and not outcome.done()
            ):
                outcome.set_result(state)

    async def _incoming_transfer(self, frame: Any) -> None:
        await super()._incoming_transfer(frame)  # type: ignore[no-untyped-call]
        if self.current_link_credit <= 0:
            self.drained.set()

    async def _incoming_flow(self, frame: Any) -> None:
        """The service says that it has nothing for the rest of the credit, which is used up so."""
        if frame[5] is not None:
            self.delivery_count = frame[5]
            self.current_link_credit = frame[6] or 0
        if self.current_link_credit <= 0:
            self.drained.set()


class _Connected:
    """What both kinds of links have in common."""

    transport: "Transport"
    _connection: Any
    _session: Any

    async def open_async(self, connection: Any = None) -> None:
        """Over the connection that all links share."""
        if self._session is None:
            await super().open_async(await self.transport.wire(self))  # type: ignore[misc]

    async def close_async(self) -> None:
        """Detach all links before their AMQP session ends: the client does it after, for which the service hangs up."""
        if self._session is not None:
            await self._begun()
            for link in list(self._session.links.values()):
                await link.detach(close=True)
        await super().close_async()  # type: ignore[misc]

    async def _begun(self) -> None:
        """Wait for the answer to the AMQP session's beginning.

        To one that ends before, a peer may answer with a session that belongs to nothing here, for which the client closes the
        connection, and with it all other links.
        """
        with contextlib.suppress(Exception):  # over a dead connection no answer comes
            async with asyncio.timeout(FAREWELL):
                while self._session.state == SessionState.BEGIN_SENT:
                    await self._connection.listen(wait=FAREWELL)

    async def client_ready_async(self) -> bool:
        """Whether the link is open, or cannot be: each round ends with the next frame."""
        for _ in range(FRAMES):
            if await super().client_ready_async():  # type: ignore[misc]
                return True
        return False


class _Sending(_Connected, SendClientAsync):
    """Sends over one link."""

    def _process_send_error(  # type: ignore[override]
        self, message_delivery: Any, condition: Any, description: Any = None, info: Any = None
    ) -> None:
        """Where the service took the link back, it said why, and the client forgot."""
        said = getattr(self._link, "_error", None)
        if condition == ErrorCondition.UnknownError and said is not None:
            condition, description, info = said.condition, said.description, said.info
        super()._process_send_error(message_delivery, condition, description, info)  # type: ignore[no-untyped-call]


class Receiving(_Connected, ReceiveClientAsync):
    """Receives over one link, which asks for nothing by itself."""

    arrived: Arrived | None = None
    _link: Any

    async def _client_ready_async(self) -> bool:
        ready: bool = await super()._client_ready_async()  # type: ignore[no-untyped-call]
        link: Any = self._link
        if link is not None and not isinstance(link, Intake):
            link.__class__ = Intake
            link.outcomes, link.drained, link.over = {}, asyncio.Event(), asyncio.Event()
            self._connection.tell_at_end(link.over)
        return ready

    async def _message_received_async(self, frame: Any, message: Any) -> None:
        if self.arrived is not None:
            await self.arrived(frame, message)

    @property
    def attached(self) -> bool:
        """Whether the link is there. Raises what the service, or the connection, ended it with."""
        if self._connection.trouble is not None:
            raise self._connection.trouble
        return self._link is not None and self._link.get_state() == LinkState.ATTACHED


class Transport:
    """What the links of a client have in common: their connection."""

    def __init__(self) -> None:
        self._opening = asyncio.Lock()
        self._wire: Wire | None = None
        self._opened: WeakSet[ServiceBusReceiver] = WeakSet()

    def sending(self, config: Any, **options: Any) -> Any:
        """Makes a sender, of what the client would make one of."""
        return self._of(_Sending, PyamqpTransportAsync.create_send_client_async(config, **options))

    def receiving(self, receiver: Any, **options: Any) -> Any:
        """Makes a receiver, once: on the next link the numbers of deliveries would mean other messages."""
        if receiver in self._opened:
            raise ServiceBusConnectionError(message="The connection is gone.")
        self._opened.add(receiver)
        made = self._of(Receiving, PyamqpTransportAsync.create_receive_client_async(receiver, **options))
        made._on_attach = _unless_refused(made._on_attach)  # noqa: SLF001
        return made

    def _of(self, kind: type, made: Any) -> Any:
        made.__class__ = kind
        made.transport = self
        return made

    async def wire(self, like: Any) -> Wire:
        """The connection: a new one where there is none, or it is of no use any more, with a link's settings."""
        async with self._opening:
            if self._wire is None or not self._wire.usable:
                await self.close()
                self._wire = wire = Wire(
                    f"{'amqps' if like._use_tls else 'amqp'}://{like._hostname}",  # noqa: SLF001
                    **{name: getattr(like, f"_{name}") for name in _SETTINGS},
                    sasl_credential=like._auth.sasl,  # noqa: SLF001
                    container_id=like._name,  # noqa: SLF001
                )
                await wire.open()
            return self._wire

    async def close(self) -> None:
        """Close the connection, whatever the other side says to that."""
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(Exception):  # over a dead connection the client fails in many ways
                async with asyncio.timeout(FAREWELL):
                    await wire.close()
            await wire.hang_up()


def _unless_refused(on_attach: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """A link that is refused has no source; the client looks for the session in it all the same, and logs that it fails."""

    async def attached(frame: Any) -> None:
        if frame.source is not None:
            await on_attach(frame)

    return attached


_SETTINGS: Final = (
    "ssl_opts", "max_frame_size", "channel_max", "idle_timeout", "properties", "network_trace", "transport_type",
    "http_proxy", "custom_endpoint_address", "socket_timeout", "use_tls",
)  # fmt: skip


def install(client: ServiceBusClient) -> Transport:
    """Have a client make its links so, for which it has no option; returns what is to be closed after it."""
    transport = Transport()
    links = {
        "create_send_client_async": staticmethod(transport.sending),
        "create_receive_client_async": staticmethod(transport.receiving),
    }
    client._amqp_transport = type("Links", (PyamqpTransportAsync,), links)  # noqa: SLF001
    return transport
