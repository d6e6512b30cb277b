"""Questions that Service Bus answers over AMQP, such as those to an entity's `$management`."""

import asyncio
from itertools import count
from typing import Any, Final
from uuid import uuid4

from things_kit.brokers.servicebus.amqp.codec import Described, encode, sections
from things_kit.brokers.servicebus.amqp.connection import AmqpError, Connection, unless
from things_kit.brokers.servicebus.amqp.links import ACCEPTED, Link

PROPERTIES, FIELDS, VALUE = 0x73, 0x74, 0x77
"""The sections of a message: what the protocol knows of it, what users do, and a body that is one value."""

ANSWERS: Final = 100
"""Answers that may be on their way."""


class Conversation(Link):
    """A link to a node that answers."""

    def __init__(self, connection: Connection, node: str) -> None:
        self._asked: dict[str, asyncio.Future[dict[int, Any]]] = {}
        self._number = count().__next__
        self._here = f"things-kit-{uuid4().hex}"
        super().__init__(connection, target=node, source=node, arrived=self._answered, here=self._here)

    async def open(self) -> None:
        """Wait until there can be answers. Raises AmqpError."""
        await super().open()
        self.ask(ANSWERS)

    async def answer(self, body: Any, fields: dict[str, Any]) -> Any:
        """The body of what is answered to a question. Raises AmqpError, also where it is no."""
        number = str(self._number())
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        properties = [number, None, None, None, self._here]
        question = Described(PROPERTIES, properties), Described(FIELDS, fields), Described(VALUE, body)
        try:
            await self.send(b"".join(map(encode, question)))
            return _checked(await unless(self.ended, answer))
        finally:
            del self._asked[number]

    def _answered(self, number: int, _: bytes, payload: bytes) -> None:
        self.settle(number, ACCEPTED, answered=False)
        self.ask(ANSWERS)
        found = dict(sections(payload))
        asked = self._asked.get(str(found[PROPERTIES][5]))
        if asked is not None and not asked.done():
            asked.set_result(found)


def _checked(answer: dict[int, Any]) -> Any:
    said = {name.lower().replace("-", ""): value for name, value in answer[FIELDS].items()}
    status = said["statuscode"]
    if status in range(200, 300):
        return answer.get(VALUE)
    otherwise = "amqp:unauthorized-access" if status in {401, 403} else "amqp:internal-error"
    raise AmqpError(str(said.get("errorcondition") or otherwise), str(said.get("statusdescription")))
