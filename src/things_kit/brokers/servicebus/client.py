"""A namespace, over one connection that all links share: opened when it is needed, and replaced once it is lost."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from things_kit.brokers.servicebus.amqp.codec import Described, Symbol, uint
from things_kit.brokers.servicebus.amqp.connection import LOST, AmqpError, Connection
from things_kit.brokers.servicebus.amqp.conversation import Conversation
from things_kit.brokers.servicebus.amqp.links import Arrival, ReceivingLink, SendingLink, Session
from things_kit.brokers.servicebus.amqp.websocket import over_websocket
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.rights import Rights
from things_kit.engine.tls import TLSOptions, tls_context

PATIENCE: Final = 10.0
"""Seconds until a connection is open, or a link, or they are given up."""

SESSION: Final = Symbol("com.microsoft:session-filter")
TIMEOUT: Final = Symbol("com.microsoft:timeout")


class Client:
    """What a driver reaches Service Bus by, between `open` and `close`. Its methods raise AmqpError and OSError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext | None = None
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None
        self._rights: Rights | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._senders: dict[str, tuple[Session, SendingLink]] = {}
        self.credential: Any = None

    async def open(self) -> None:
        """Make what connections need; nothing is sent yet. Raises ConfigError."""
        if self.credential is None:
            self.credential = self._settings.credential()
        if not self._settings.options.emulator and self._tls is None:
            trusted = TLSOptions(ca=self._settings.options.ca)
            self._tls = await asyncio.to_thread(tls_context, self._settings.url, trusted)

    async def close(self) -> None:
        """Close the connection, with all that is on it."""
        connection, self._connection = self._connection, None
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if connection is not None:
            await connection.close()
        if self.credential is not None:
            await self.credential.close()
            self.credential = None

    async def ping(self) -> None:
        """See that the service answers on the connection. No right is needed for that."""
        async with self.within(PATIENCE):
            async with self._opening:
                connection = await self._connected()
            session = Session(connection)
            try:
                await session.begun()
            finally:
                session.abandon()

    # --- the connection

    async def _connected(self) -> Connection:
        """The connection, or a new one in place of one that is lost; called under the lock."""
        if self._connection is None or self._connection.lost.done():
            self._senders.clear()
            self._rights = None
            self._connection = connection = Connection(self._settings.namespace)
            try:
                await self._dial(connection)
                await connection.opened()
            except BaseException:
                await connection.close()
                raise
        return self._connection

    async def _dial(self, connection: Connection) -> None:
        host, port = self._settings.address
        if self._settings.options.websockets:
            await over_websocket(connection, host, port, self._tls)
        else:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, host, port, ssl=self._tls)

    async def _allowed(self, entity: str) -> Connection:
        """The connection, once it has been shown the rights to an entity."""
        async with self._opening:
            connection = await self._connected()
            if self._rights is None or self._rights.over:
                self._rights = await self._shown(connection)
            await self._rights.show(entity)
        return connection

    async def _shown(self, connection: Connection) -> Rights:
        conversation = await _opened(Conversation(connection, "$cbs"))
        if self._keeping is not None:
            self._keeping.cancel()
        rights = Rights(self._settings, self.credential, conversation)
        self._keeping = asyncio.create_task(rights.keep(), name="things_kit servicebus rights")
        return rights

    @contextlib.asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """What is awaited in the context is to come in time; else a connection that is silent as well is given up."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            if self._connection is not None:
                self._connection.doubt(seconds)
            raise AmqpError(LOST, f"the service does not answer within {seconds:g} s") from error

    # --- what is on it

    @contextlib.asynccontextmanager
    async def _session(self, entity: str, patience: float = PATIENCE) -> AsyncIterator[Session]:
        """A session whose links are to open within the context; else it is given up."""
        async with self.within(patience):
            session = Session(await self._allowed(entity))
            try:
                yield session
            except BaseException:
                session.abandon()
                raise

    async def sender(self, entity: str) -> SendingLink:
        """The link over which an entity is published to, opened once."""
        session, sender = self._senders.get(entity, (None, None))
        if sender is None or sender.ended.done():
            async with self._session(entity) as session:
                sender = SendingLink(session, entity)
                await sender.open()
            self._senders[entity] = session, sender
        return sender

    async def drop(self, entity: str) -> None:
        """Close an entity's sender; the next message opens another."""
        session, _ = self._senders.pop(entity, (None, None))
        if session is not None:
            await session.close()

    async def receiver(
        self, entity: str, arrived: Callable[[Arrival], None], *, next_session: float | None = None
    ) -> tuple[Session, ReceivingLink]:
        """A link that receives once it is asked to; for `next_session` it waits so long for a session that has messages."""
        filters = properties = None
        if next_session is not None:
            filters, properties = {SESSION: None}, {TIMEOUT: uint(round(next_session * 1000))}
        async with self._session(entity, PATIENCE + (next_session or 0)) as session:
            receiver = ReceivingLink(session, entity, arrived, filters=filters, properties=properties)
            await receiver.open()
        return session, receiver

    async def conversation(self, entity: str) -> Conversation:
        """With what answers questions about an entity."""
        async with self.within(PATIENCE):
            return await _opened(Conversation(await self._allowed(entity), f"{entity}/$management"))


async def _opened(conversation: Conversation) -> Conversation:
    try:
        await conversation.open()
    except BaseException:
        conversation.close()
        raise
    return conversation


def session_of(source: Any) -> Any:
    """Which session the service chose, by the source that it attached."""
    fields = source.value if isinstance(source, Described) else []
    chosen = (fields[7] if len(fields) > 7 else {}).get(SESSION)
    return chosen.value if isinstance(chosen, Described) else chosen
