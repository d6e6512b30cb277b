"""Questions that Service Bus answers over AMQP, such as those to an entity's `$management`."""

import asyncio
from itertools import count
from typing import Any, Final, NamedTuple
from uuid import uuid4

from things_kit.brokers.servicebus.amqp.codec import Described, encode, sections
from things_kit.brokers.servicebus.amqp.connection import AmqpError, Connection
from things_kit.brokers.servicebus.amqp.links import ACCEPTED, Arrival, ReceivingLink, SendingLink, Session

PROPERTIES, FIELDS, VALUE = 0x73, 0x74, 0x77
"""The sections of a message: what the protocol knows of it, what users do, and a body that is one value."""

ANSWERS: Final = 100
"""Answers that may be on their way."""

OK: Final = range(200, 300)


class Answer(NamedTuple):
    """What came back."""

    fields: dict[str, Any]
    body: Any


class Conversation:
    """The two links to a node that answers."""

    def __init__(self, connection: Connection, node: str) -> None:
        self._asked: dict[str, asyncio.Future[Answer]] = {}
        self._number = count().__next__
        self._here = f"things-kit-{uuid4().hex}"
        self._session = Session(connection)
        self._questions = SendingLink(self._session, node)
        self._answers = ReceivingLink(self._session, node, self._answered, target=self._here)

    async def open(self) -> None:
        """Wait until both links are there. Raises AmqpError."""
        await self._questions.open()
        await self._answers.open()
        self._answers.ask(ANSWERS)

    @property
    def over(self) -> bool:
        """Whether there are no more answers."""
        return self._questions.ended.done() or self._answers.ended.done()

    async def ask(self, body: Any, fields: dict[str, Any]) -> Any:
        """The body of the answer. Raises AmqpError, also where it is no."""
        number = str(self._number())
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        question = (
            Described(PROPERTIES, [number, None, None, None, self._here]),
            Described(FIELDS, fields),
            Described(VALUE, body),
        )
        try:
            await self._questions.send(b"".join(map(encode, question)))
            await asyncio.wait({answer, self._answers.ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._asked[number]
        if not answer.done():
            raise self._answers.ended.result()
        return _checked(answer.result())

    def _answered(self, arrival: Arrival) -> None:
        self._answers.settle(arrival, ACCEPTED, answered=False)
        self._answers.ask(ANSWERS)
        found = dict(sections(arrival.payload))
        asked = self._asked.get(str((found.get(PROPERTIES) or [None] * 6)[5]))
        if asked is not None and not asked.done():
            asked.set_result(Answer(found.get(FIELDS) or {}, found.get(VALUE)))

    def close(self) -> None:
        """Say goodbye, and wait for nobody."""
        self._session.abandon()


def _checked(answer: Answer) -> Any:
    said = {name.lower().replace("-", ""): value for name, value in answer.fields.items()}
    if said.get("statuscode") in OK:
        return answer.body
    denied = said.get("statuscode") in {401, 403}
    condition = said.get("errorcondition") or (
        "amqp:unauthorized-access" if denied else "amqp:internal-error"
    )
    raise AmqpError(str(condition), str(said.get("statusdescription") or "it says no, and not why"))
