"""The client, and its senders: each is a connection, and opened once."""

import asyncio
import contextlib
import ssl
from typing import Any, Final

import certifi
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender

from things_kit.brokers.servicebus.errors import CLIENT, sentence, translated
from things_kit.brokers.servicebus.incoming import Arrived, Incoming
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.transport import Transport, install
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import ConfigError

SASL: Final = b"AMQP\x03\x01\x00\x00"
"""The first that is said on a connection; a server repeats it."""

PATIENCE: Final = 5.0
"""Seconds that closing a link may take: over a dead connection it waits for answers."""

_LINK: Final[dict[str, Any]] = {"keep_alive": 0}
"""The connection's own task keeps it alive; the client's would hold up closing for a second."""


class Links:
    """A client between `open` and `close`, and the senders that it has opened."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._credential: Any = None
        self._client: ServiceBusClient | None = None
        self._senders: dict[str, ServiceBusSender] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._transport: Transport | None = None
        self._tls: ssl.SSLContext | None = None

    @property
    def client(self) -> ServiceBusClient:
        """The client. Raises ConfigError while there is none."""
        if self._client is None:
            raise ConfigError(f"{self._settings.display} is not open")
        return self._client

    @property
    def credential(self) -> Any:
        """Whose rights the client has."""
        return self._credential

    async def open(self) -> None:
        """Make the client; nothing is sent yet. Raises ConfigError."""
        if self._client is None:
            settings = self._settings
            self._credential = settings.credential()
            if not settings.options.emulator:
                trusted = settings.options.ca or certifi.where()
                self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=trusted)
            # Made once: else the client reads all certificates anew for each connection, also for one without TLS
            context = self._tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._client = ServiceBusClient(
                settings.namespace, self._credential, ssl_context=context, **settings.client()
            )
            self._transport = install(self._client)

    async def close(self) -> None:
        """Close the senders, side by side, and the client."""
        client, self._client = self._client, None
        if client is None:
            return
        senders, self._senders = list(self._senders.values()), {}
        await asyncio.gather(*(close_link(sender) for sender in senders))
        await client.close()
        if self._transport is not None:
            await self._transport.close()
        if hasattr(self._credential, "close"):
            await self._credential.close()

    async def ping(self) -> None:
        """Whether somebody there speaks AMQP. No right is needed for that. Raises ConnectionLost."""
        host, port = self._settings.address
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=self._tls)
        except OSError as error:
            raise ConnectionLost(f"{self._settings.display} cannot be reached: {sentence(error)}") from error
        try:
            if not self._settings.options.websockets:
                writer.write(SASL)
                await reader.readexactly(len(SASL))
        except (OSError, EOFError) as error:
            raise ConnectionLost(
                f"{self._settings.display} does not speak AMQP: {sentence(error)}"
            ) from error
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # --- senders

    def lock(self, entity: str) -> asyncio.Lock:
        """Held by whoever uses an entity's sender: the client sends one batch at a time."""
        return self._locks.setdefault(entity, asyncio.Lock())

    async def sender(self, entity: str) -> ServiceBusSender:
        """The open sender of an entity; called under its lock. Raises what the client raises."""
        sender = self._senders.get(entity)
        if sender is None:
            made = self.client.get_queue_sender if self._settings.by_queue else self.client.get_topic_sender
            sender = made(entity, **_LINK)
            try:
                await sender.__aenter__()
            except BaseException:
                await close_link(sender)
                raise
            self._senders[entity] = sender
        return sender

    async def drop(self, entity: str) -> None:
        """Close an entity's sender; the next message opens another."""
        sender = self._senders.pop(entity, None)
        if sender is not None:
            await close_link(sender)

    # --- receivers

    async def receiver(self, entity: str, subscription: str, arrived: Arrived, **options: Any) -> Incoming:
        """An open link that receives, and what to do with what it brings. Raises ConnectionLost, ConfigError."""
        options |= _LINK | {
            "prefetch_count": 1
        }  # with 0 the client itself would give back what nobody asked for
        if self._settings.by_queue:
            receiver = self.client.get_queue_receiver(entity, **options)
        else:
            receiver = self.client.get_subscription_receiver(entity, subscription, **options)
        receiver._config.retry_total = 0  # noqa: SLF001 - the engine opens another; this one cannot be opened twice
        try:
            await receiver.__aenter__()
        except CLIENT as error:
            await close_link(receiver)
            raise translated(error, f"receiving from {entity!r} as {subscription!r}") from error
        except BaseException:
            await close_link(receiver)
            raise
        return Incoming(receiver, arrived)


async def close_link(link: ServiceBusSender | ServiceBusReceiver) -> None:
    """Close it, whatever the connection says to that."""
    with contextlib.suppress(Exception):  # over a dead connection the client fails in many ways
        async with asyncio.timeout(PATIENCE):
            await link.close()
