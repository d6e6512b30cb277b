"""A namespace, over one connection that all links share: opened when it is needed, and replaced once it is lost."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from things_kit.brokers.servicebus.amqp.codec import Symbol, uint
from things_kit.brokers.servicebus.amqp.connection import LOST, AmqpError, Connection
from things_kit.brokers.servicebus.amqp.conversation import Conversation
from things_kit.brokers.servicebus.amqp.links import Arrived, Link
from things_kit.brokers.servicebus.amqp.websocket import over_websocket
from things_kit.brokers.servicebus.options import Settings
from things_kit.brokers.servicebus.rights import credential_of, token_for
from things_kit.engine.errors import sentence
from things_kit.engine.secrets import masked
from things_kit.engine.tls import TLSOptions, tls_context

log = logging.getLogger("things_kit.servicebus")

PATIENCE: Final = 10.0
"""Seconds until a connection or a link is open, or an answer is here, or the connection is in doubt."""

EARLY: Final = 300.0
"""Seconds before their end in which rights are shown anew; half of it is between two looks at that."""

SESSION: Final = Symbol("com.microsoft:session-filter")
TIMEOUT: Final = Symbol("com.microsoft:timeout")

LinkT = TypeVar("LinkT", bound=Link)


class Client:
    """What a driver reaches Service Bus by, between `open` and `close`. Its methods raise AmqpError and OSError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext | None = None
        self._opening = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._connection: Connection | None = None
        self._senders: dict[str, Link] = {}
        self._attaching: dict[str, asyncio.Lock] = {}
        self._conversations: dict[str, Conversation] = {}
        self._rights: dict[str, float] = {}
        self._keeping: asyncio.Task[None] | None = None
        self.credential: Any = None

    async def open(self) -> None:
        """Make what connections need; nothing is sent yet. Raises ConfigError."""
        if self._keeping is not None:
            return
        self.credential = self.credential or credential_of(self._settings)
        if not self._settings.options.emulator:
            trusted = TLSOptions(ca=self._settings.options.ca)
            self._tls = await asyncio.to_thread(tls_context, self._settings.url, trusted)
        self._keeping = asyncio.create_task(self._keep_rights(), name="things_kit servicebus rights")

    async def close(self) -> None:
        """Close the connection, with all that is on it."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        if self._connection is not None:
            await self._connection.close()
        if self.credential is not None:
            await self.credential.close()

    async def ping(self) -> None:
        """See that the service answers on the connection. No right is needed for that."""
        async with self.within(PATIENCE):
            async with self._opening:
                connection = await self._connected()
            (await _opened(Link(connection))).abandon()

    # --- the connection

    async def _connected(self) -> Connection:
        """The connection, or a new one in place of one that is lost; called under the lock."""
        if self._connection is None or self._connection.lost.done():
            self._rights.clear()
            self._connection = connection = Connection(self._settings.namespace)
            try:
                host, port = self._settings.address
                if self._settings.options.websockets:
                    await over_websocket(connection, host, port, self._tls)
                else:
                    loop = asyncio.get_running_loop()
                    await loop.create_connection(lambda: connection, host, port, ssl=self._tls)
                await connection.opened()
            except BaseException:
                await connection.close()
                raise
        return self._connection

    @contextlib.asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """What is awaited in the context is to come in time; else a connection that is silent as well is given up."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            if self._connection is not None:
                self._connection.doubt(seconds - 1)
            raise AmqpError(LOST, f"the service does not answer within {seconds:g} s") from error

    # --- rights

    async def _allowed(self, entity: str, *, anew: bool = False) -> Connection:
        """The connection, once it has been shown the rights to an entity."""
        async with self._opening:
            connection = await self._connected()
            if anew or entity not in self._rights:
                audience = f"amqp://{self._settings.namespace}/{entity}"
                kind, token, until = await token_for(audience, self._settings, self.credential)
                expiration = datetime.fromtimestamp(until, UTC)
                fields = {"operation": "put-token", "type": kind, "name": audience, "expiration": expiration}
                await (await self._conversation(connection, "$cbs")).answer(token, fields)
                # By the loop's clock, as ours on the wall may be set back
                self._rights[entity] = asyncio.get_running_loop().time() + until - time.time()
        return connection

    async def _keep_rights(self) -> None:
        """Show anew what runs out soon."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(EARLY / 2)
            for entity in [each for each, end in self._rights.items() if end - clock() < EARLY]:
                try:
                    async with self.within(PATIENCE):
                        await self._allowed(entity, anew=True)
                except Exception as error:  # noqa: BLE001 - whatever a credential raises; the next look tries again
                    why = masked(sentence(error))
                    log.warning("the rights to %s could not be shown anew: %s", entity, why)

    # --- what is on it

    async def sender(self, entity: str) -> Link:
        """The link over which an entity is published to, opened once."""
        async with self._attaching.setdefault(entity, asyncio.Lock()):  # several batches may want it at once
            sender = self._senders.get(entity)
            if sender is None or sender.ended.done():
                async with self.within(PATIENCE):
                    sender = await _opened(Link(await self._allowed(entity), target=entity))
                self._senders[entity] = sender
            return sender

    async def drop(self, entity: str) -> None:
        """Close an entity's sender; the next message opens another."""
        sender = self._senders.pop(entity, None)
        if sender is not None:
            await sender.close()

    async def receiver(self, entity: str, arrived: Arrived, *, next_session: float | None = None) -> Link:
        """A link that receives once it is asked to; for `next_session` it waits so long for a session that has messages."""
        filters = properties = None
        if next_session is not None:
            filters, properties = {SESSION: None}, {TIMEOUT: uint(round(next_session * 1000))}
        async with self.within(PATIENCE + (next_session or 0)):
            connection = await self._allowed(entity)
            return await _opened(
                Link(connection, source=entity, arrived=arrived, filters=filters, properties=properties)
            )

    async def _conversation(self, connection: Connection, node: str) -> Conversation:
        found = self._conversations.get(node)
        if found is None or found.ended.done():
            found = self._conversations[node] = await _opened(Conversation(connection, node))
        return found

    async def ask(self, entity: str, operation: str, link: Link, body: dict[str, Any]) -> None:
        """Have what manages an entity do something that concerns a link to it."""
        fields = {"operation": f"com.microsoft:{operation}", "associated-link-name": link.name}
        async with self.within(PATIENCE):
            async with self._asking:
                connection = await self._allowed(entity)
                conversation = await self._conversation(connection, f"{entity}/$management")
            await conversation.answer(body, fields)


async def _opened(link: LinkT) -> LinkT:
    try:
        await link.open()
    except BaseException:
        link.abandon()
        raise
    return link
