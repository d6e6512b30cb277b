"""Which attempt a redelivered message is.

A quorum queue counts how often a message came back, in `x-delivery-count`. That is how a message that kills whoever handles
it becomes older. But what a consumer gives back unbegun, as it stops, counts there too and is no attempt. So whoever gives
back notes the count and the attempt that go with it, and tells the group's other consumers through an exchange, to which
each listens on its own channel. Who is the last leaves all that it knows in a queue, for who comes next.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from pika.spec import BasicProperties

from things_kit.brokers.rabbitmq.link import Channel
from things_kit.brokers.rabbitmq.names import RETURNED
from things_kit.brokers.rabbitmq.wire import Letter

MOST: Final = 100_000
"""Notes that are kept; the oldest go first."""

AT_ONCE: Final = 1_000
"""Notes in one message to the others."""

Note: TypeAlias = tuple[int, int]
"""The count with which a message comes back next, and the attempt that it then is."""


class Returned:
    """What this process knows of messages that were given back."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], Note] = {}

    def note(self, queue: str, notes: Mapping[str, Note]) -> None:
        """Keep these, by the ids of messages."""
        for identity, note in notes.items():
            self._notes.pop((queue, identity), None)
            self._notes[queue, identity] = note
        while len(self._notes) > MOST:
            del self._notes[next(iter(self._notes))]

    def of(self, queue: str) -> dict[str, Note]:
        """What is known of a queue's messages."""
        return {identity: note for (of, identity), note in self._notes.items() if of == queue}

    def hear(self, queue: str, told: bytes) -> None:
        """Keep what another consumer told; what cannot be understood is left."""
        try:
            self.note(queue, msgspec.json.decode(told, type=dict[str, Note]))
        except msgspec.MsgspecError:
            return

    def attempt(self, queue: str, identity: str, count: int, stored: int) -> int:
        """The attempt of a message that came back so often and carries this attempt itself."""
        base, attempt = self._notes.get((queue, identity), (0, stored))
        return attempt + count - base if count >= base else stored


def told(notes: Mapping[str, Note]) -> list[bytes]:
    """What the others are told, in parts."""
    rows = list(notes.items())
    return [
        msgspec.json.encode(dict(rows[start : start + AT_ONCE])) for start in range(0, len(rows), AT_ONCE)
    ]


def news(queue: str, notes: Sequence[bytes]) -> list[Letter]:
    """Letters that tell all receivers of a queue what is about to come back."""
    return [Letter(RETURNED, queue, BasicProperties(headers={}), note) for note in notes]


async def listen(channel: Channel, queue: str, hear: Callable[[bytes], None]) -> None:
    """Hear over the channel of a receiver what the queue's others tell."""
    raw = channel.raw
    await channel.ask(raw.exchange_declare, RETURNED, exchange_type="direct", durable=True)
    own = (await channel.ask(raw.queue_declare, "", exclusive=True, auto_delete=True)).queue
    await channel.ask(raw.queue_bind, own, RETURNED, routing_key=queue)

    def on_message(_: Any, __: Any, ___: Any, body: bytes) -> None:
        hear(body)

    await channel.ask(raw.basic_consume, own, on_message, auto_ack=True)
