"""A link that receives: what arrives is handed on at once, and settled in batches."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec
from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus._pyamqp.outcomes import Accepted, Modified, Released
from azure.servicebus._pyamqp.receiver import check_disposition_outcome
from azure.servicebus._transport._pyamqp_transport import PyamqpTransport
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import ServiceBusConnectionError

from things_kit.brokers.servicebus.errors import GONE
from things_kit.brokers.servicebus.transport import Intake, Receiving
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.servicebus")

ANSWER: Final = 15.0
"""Seconds within which the service confirms a settlement, before the connection is taken for lost."""

RIGHTS: Final = 20.0
"""Seconds after which the client looks whether its token must be replaced."""

DRAINED: Final = 2.0
"""Seconds within which it says that nothing more is on its way."""

RENEWING: Final = 10.0
"""Seconds that renewing locks may take."""

PATIENCE: Final = 5.0
"""Seconds that closing may take: over a dead connection the client waits for answers."""

Outcome = Literal["accepted", "modified", "released"]
"""Done with; given back, as one more delivery; given back, as if it had not been delivered."""

_STATES: Final[dict[Outcome, Any]] = {
    "accepted": Accepted(),
    "modified": Modified(delivery_failed=True, undeliverable_here=False, message_annotations=None),
    "released": Released(),
}


class Taken(msgspec.Struct, eq=False, gc=False):
    """A message that is locked for us: as it came, as we made it, over which link, and whether we have settled it."""

    received: ServiceBusReceivedMessage
    message: Message
    link: "Incoming"
    settled: bool = False


class Incoming:
    """An open link. It brings nothing until it is asked.

    The client's own methods settle a message at a time, each with a call that waits for its answer, and give
    none back without counting it; so this speaks with the client's protocol library.
    """

    def __init__(self, receiver: ServiceBusReceiver, arrived: "Arrived") -> None:
        self.trouble: Exception | None = None
        self._receiver = receiver
        self._handler: Receiving = receiver._handler  # type: ignore[assignment]  # noqa: SLF001
        self._link: Intake = self._handler._link  # noqa: SLF001
        self._hand_on = arrived
        self._handler.arrived = self._arrived
        self._ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch(), name="things_kit servicebus link")

    async def _arrived(self, frame: Any, message: Any) -> None:
        await self._hand_on(self, self._receiver._build_received_message((frame, message)))  # noqa: SLF001

    async def _watch(self) -> None:
        """Find out when the link ends, and why; and renew its right to be there, which lasts for an hour."""
        trouble: Exception = ServiceBusConnectionError(message="The link was closed.")
        over = self._link.over
        try:
            while self._handler.attached and not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RIGHTS):
                        await over.wait()
                if not over.is_set():
                    await self._handler.auth_complete_async()  # type: ignore[no-untyped-call]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the end of the link
            trouble = self._of_service(error)
        self.trouble = trouble
        self._ended.set_result(trouble)
        for outcome in self._link.outcomes.values():
            if not outcome.done():
                outcome.set_result(trouble)

    def _of_service(self, error: Exception) -> Exception:
        return PyamqpTransport.create_servicebus_exception(log, error)

    @property
    def ended(self) -> asyncio.Future[Exception]:
        """Why the link has ended, when it has."""
        return self._ended

    # --- asking

    @property
    def credit(self) -> int:
        """How many messages it was asked for that have not come."""
        return self._link.current_link_credit

    async def ask(self, credit: int) -> None:
        """Have it bring so many, all told. An end of the link is told by `ended`."""
        if self.trouble is None:
            with contextlib.suppress(Exception):
                await self._link.flow(link_credit=credit)

    async def drain(self) -> None:
        """Have it bring nothing more; returns when all that was on its way is here."""
        if self.trouble is not None or self.credit <= 0:
            return
        self._link.drained.clear()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DRAINED):
                await self._link.flow(link_credit=self.credit, drain=True)
                await self._link.drained.wait()

    # --- settling

    async def settle(self, taken: Sequence[Taken], outcome: Outcome) -> None:
        """Settle messages of this link; what somebody else has by now is passed over. Raises what the client raises."""
        waiting = [answer for each in taken if (answer := await self._send(each, outcome)) is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=ANSWER)
        for answer in waiting:
            if not answer.done():
                raise ServiceBusConnectionError(message="The service does not confirm a settlement.")
            self._check(answer.result(), outcome)

    async def _send(self, taken: Taken, outcome: Outcome) -> asyncio.Future[Any] | None:
        """Say what becomes of a message; returns a future of the service's answer, if there will be one.

        The client itself releases messages, where it does so at all, without asking for an answer.
        """
        if taken.settled:
            return None
        taken.settled = True
        if self.trouble is not None:
            self._check(self.trouble, outcome)
            return None
        number, tag = taken.received._delivery_id, taken.received._delivery_tag  # noqa: SLF001
        released = outcome == "released"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not released:
            self._link.outcomes[number] = answer
        try:
            await self._link._outgoing_disposition(number, number, tag, released, _STATES[outcome], None)  # noqa: SLF001
        except Exception as error:
            raise self._of_service(error) from error
        return None if released else answer

    def _check(self, answer: Any, outcome: Outcome) -> None:
        trouble = answer
        if not isinstance(answer, Exception):
            if answer and outcome in answer:
                return
            try:
                check_disposition_outcome(0, answer, outcome)
            except Exception as error:  # noqa: BLE001
                trouble = self._of_service(error)
        if self._receiver.session is None and not isinstance(trouble, GONE):
            raise trouble  # a session is lost by itself, and others have its messages

    async def let_go(self, taken: Sequence[Taken]) -> None:
        """They come again, and this delivery does not count; over a dead connection they come again anyway."""
        for each in taken:
            with contextlib.suppress(Exception):  # also of the protocol library, which has errors of its own
                await self._send(each, "released")

    async def pass_over(self, taken: Taken) -> None:
        """Complete what is not for us, without waiting for an answer: if it comes again, it is passed over again."""
        with contextlib.suppress(Exception):
            await self._send(taken, "accepted")

    # --- locks

    async def renew(self, taken: Sequence[Taken]) -> None:
        """Lock messages for longer, by one request; raises a GONE, and renews none, if one of them is lost.

        The client has a public method for one message alone; called for several at once, it gives their requests the same
        number, and the service closes the connection; one after the other takes longer than the locks last.
        """
        tokens: list[Any] = [each.received.lock_token for each in taken]
        answer = await self._receiver._renew_locks(*tokens, timeout=RENEWING)  # noqa: SLF001
        for each, expiry in zip(taken, answer[b"expirations"], strict=True):
            each.received._expiry = datetime.fromtimestamp(expiry / 1000, UTC)  # noqa: SLF001

    async def renew_session(self) -> None:
        """Keep the session, and with it all of its messages, for longer. Raises a GONE if it is lost."""
        await self._receiver.session.renew_lock(timeout=RENEWING)

    async def close(self) -> None:
        """Close it, whatever the connection says to that."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self.trouble = self.trouble or ServiceBusConnectionError(message="The link was closed.")
        self._link.current_link_credit = 0  # else the client drains it once more
        with contextlib.suppress(Exception):
            async with asyncio.timeout(PATIENCE):
                await self._receiver.close()


Arrived: TypeAlias = Callable[[Incoming, ServiceBusReceivedMessage], Awaitable[None]]
"""Is given each message that a link brings, in order."""
