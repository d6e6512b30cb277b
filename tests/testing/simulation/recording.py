"""Records what real servers hand out while connections break, leases end and servers are killed: `python -m tests.testing.simulation.recording [NAME ...]`.

A recording is a file beside this one, in `recorded/`. `test_recorded.py` asks whether the broker's model may do the same.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from things_kit import Message, connect
from things_kit.engine.broker import Broker
from things_kit.engine.driver import Delivery, Fetching, Release, Subscription
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import ServerProcess
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.relay import Relay

FOLDER: Final = Path(__file__).parent / "recorded"

LEASE: Final = 1.0
"""Seconds, where the broker has leases."""

SERVERS: Final[Mapping[str, tuple[Callable[[], ServerProcess], str]]] = {
    "redis": (RedisServer, f"lease={LEASE}"),
    "nats": (NATSServer, f"lease={LEASE}"),
    "postgres": (PostgresServer, f"lease={LEASE}"),
    "rabbitmq": (RabbitMQServer, ""),
}


class Event(msgspec.Struct, omit_defaults=True):
    """One thing that happened, and when.

    Attributes:
        what: "published", "joins", "delivered", "acknowledged", "given back", "lost" (a connection) or "killed" (the server).
        who: Which receiver.
    """

    at: float
    what: str
    who: str = ""
    id: str = ""
    key: str = ""
    attempt: int = 0


class Recording(msgspec.Struct):
    """What a server has done."""

    broker: str
    lease: float | None
    events: list[Event]


class Party:
    """One receiver, and the inbox into which it puts what comes."""

    def __init__(self, name: str, note: Callable[..., None], broker: Broker) -> None:
        self.name = name
        self.held: dict[str, Delivery] = {}
        self._note = note
        self._broker = broker
        self._came = asyncio.Event()
        self._receiver: Any = None

    async def join(self, topic: str) -> None:
        """Subscribe."""
        self._note("joins", self.name)
        self._receiver = await self._broker.transmission.driver.subscribe(
            Subscription(topic=topic, group="g", max_in_flight=10, inbox=self)
        )

    async def take(self, count: int, within: float = 20.0) -> None:
        """Have so many in hand."""
        async with asyncio.timeout(within):
            while len(self.held) < count:
                self._came.clear()
                if isinstance(self._receiver, Fetching):
                    await self._receiver.fetch(count - len(self.held), 0.5)
                else:
                    self._receiver.credit(count)
                    await self._came.wait()

    async def settle(self, *done: str, back: Sequence[str] = ()) -> None:
        """Acknowledge some, and give some back."""
        releases = [Release(self.held[each], attempt=self.held[each].message.attempt) for each in back]
        for each in done:
            self._note("acknowledged", self.name, each)
        for release in releases:
            self._note("given back", self.name, release.delivery.message.id, attempt=release.attempt)
        await self._receiver.settle([self.held[each] for each in done], releases)
        for each in (*done, *back):
            del self.held[each]

    # --- see Inbox

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Something has come."""
        for delivery in deliveries:
            message = delivery.message
            self._note("delivered", self.name, message.id, attempt=message.attempt)
            self.held[message.id or ""] = delivery
        self._came.set()
        return ()

    async def let_go(self, which: Any) -> None:
        """Nobody asks for it here."""

    def forget(self, which: Any) -> None:
        """Nobody asks for it here."""

    def ailing(self, reason: str | None) -> None:
        """It may be."""

    def fail(self, error: Exception) -> None:
        """It is seen by what follows."""


class Recorder:
    """Writes down one course of events on a server of its own."""

    def __init__(self, name: str, server: ServerProcess, options: str) -> None:
        self.events: list[Event] = []
        self._server = server
        self._url = f"{server.url}{'&' if '?' in server.url else '?'}{options}"
        self._began = time.monotonic()
        self._topic = f"recorded-{name}"
        self._brokers: list[Broker] = []

    def note(self, what: str, who: str = "", id: str | None = "", **more: Any) -> None:  # noqa: A002
        """This happens now."""
        self.events.append(Event(round(time.monotonic() - self._began, 3), what, who, id=id or "", **more))

    async def party(self, name: str, port: int | None = None) -> Party:
        """A receiver that has joined, through this port where it is given."""
        url = self._url if port is None else self._url.replace(f":{self._server.ports[0]}", f":{port}", 1)
        broker = connect(url)
        await broker.open()
        self._brokers.append(broker)
        party = Party(name, self.note, broker)
        await party.join(self._topic)
        return party

    async def publish(self, *numbers: int) -> None:
        """Messages of two keys."""
        async with connect(self._url) as broker:
            for number in numbers:
                key = f"k{number % 2}"
                self.note("published", id=f"m{number}", key=key)
                await broker.producer().publish(Message(self._topic, b"", key=key.encode(), id=f"m{number}"))

    async def run(self) -> list[Event]:
        """One is given back, a connection breaks, a lease ends, and the server is killed."""
        async with connect(self._url) as broker:
            await broker.declare(self._topic, groups=["g"])
        await self.publish(0, 1, 2, 3)
        async with Relay(self._server.ports[0]) as relay:
            first = await self.party("a", relay.port)
            await first.take(1)
            await first.settle(back=list(first.held))
            await first.take(2)
            await first.settle(next(iter(first.held)))
            self.note("lost", "a")
            await relay.cut()
        second = await self.party("b")
        for _ in range(3):
            await second.take(1)
            await second.settle(*second.held)
        await self.publish(4)
        await second.take(1)
        if self._lease is not None:
            third = await self.party("c")
            await third.take(1)  # once the lease of the second has ended, who does nothing for it
            await third.settle(*third.held)
        else:
            await second.settle(*second.held)
        await self._kill()
        return self.events

    async def _kill(self) -> None:
        await self.publish(5, 6)
        holder = await self.party("d")
        await holder.take(1)
        self.note("killed")
        self._server.kill()
        await self.close()
        self._server.start()
        heir = await self.party("e")
        while {each.id for each in self.events} > {"", *self._acknowledged}:
            await heir.take(1, within=40.0)
            await heir.settle(*heir.held)
        await self.close()

    @property
    def _acknowledged(self) -> set[str]:
        return {each.id for each in self.events if each.what == "acknowledged"}

    @property
    def _lease(self) -> float | None:
        return self._brokers[0].capabilities.lease

    async def close(self) -> None:
        """Let go of all connections."""
        for broker in self._brokers:
            with suppress(Exception):
                async with asyncio.timeout(5):
                    await broker.close()


async def record(name: str) -> Recording:
    """Record this broker."""
    kind, options = SERVERS[name]
    server = kind()
    await asyncio.to_thread(server.start)
    try:
        recorder = Recorder(name, server, options)
        return Recording(name, LEASE if options else None, await recorder.run())
    finally:
        server.terminate()


def main(names: Sequence[str]) -> None:
    for name in names or SERVERS:
        recording = asyncio.run(record(name))
        (FOLDER / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(recording)) + b"\n")
        print(f"{name}: {len(recording.events)} events")


if __name__ == "__main__":
    main(sys.argv[1:])
