"""The client's AMQP connections, opened without pauses, and closed for good.

A client makes its connections through a class that can be replaced. Ours does what the client's does, but for a few things:
the client sleeps after each frame while it opens a link, about half a second in all; it forgets the socket of a connection
that broke; and it connects a receiver again whose messages are still in hand.
"""

import contextlib
import weakref
from typing import Any, Final

from azure.servicebus._pyamqp.aio import ReceiveClientAsync, SendClientAsync
from azure.servicebus._pyamqp.error import ErrorCondition
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.aio._transport._pyamqp_transport_async import PyamqpTransportAsync
from azure.servicebus.exceptions import ServiceBusConnectionError

_CONNECTED: Final[weakref.WeakSet[ServiceBusReceiver]] = weakref.WeakSet()

FRAMES: Final = 40
"""Frames, or waits for one, for which a link that opens does not pause; a dozen are usual."""


class _Connected:
    """What both kinds of links have in common."""

    _connection: Any

    async def client_ready_async(self) -> bool:
        for _ in range(FRAMES):
            if await super().client_ready_async():  # type: ignore[misc]
                return True
        return False

    async def close_async(self) -> None:
        connection = self._connection
        try:
            await super().close_async()  # type: ignore[misc]
        finally:
            await hang_up(connection)


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


class _Receiving(_Connected, ReceiveClientAsync):
    """Receives over one link."""


class Transport(PyamqpTransportAsync):
    """Makes the connections of a client."""

    @staticmethod
    def create_send_client_async(config: Any, **options: Any) -> Any:
        """A connection with a sender."""
        return _of(_Sending, PyamqpTransportAsync.create_send_client_async(config, **options))

    @staticmethod
    def create_receive_client_async(receiver: Any, **options: Any) -> Any:
        """A connection with a receiver, once: on the next, the numbers of deliveries would mean other messages."""
        if receiver in _CONNECTED:
            raise ServiceBusConnectionError(message="The connection is gone.")
        _CONNECTED.add(receiver)
        return _of(_Receiving, PyamqpTransportAsync.create_receive_client_async(receiver, **options))


def _of(kind: type, made: Any) -> Any:
    made.__class__ = kind
    return made


def install(client: ServiceBusClient) -> None:
    """Have a client make its connections so."""
    client._amqp_transport = Transport  # noqa: SLF001 - it has no option for that


async def hang_up(connection: Any) -> None:
    """Close the socket of a connection, if it is still open, whatever waits for it."""
    transport: Any = getattr(connection, "_transport", None)
    writer = getattr(transport, "writer", None)
    if writer is not None:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    elif getattr(transport, "sock", None) is not None and transport.connected:  # a websocket
        with contextlib.suppress(OSError):
            await transport.close()
