"""Records what real servers hand out while connections break, leases end, partitions move and servers are killed: `python -m tests.testing.simulation.recording [NAME ...]`.

A recording is a file beside this one, in `recorded/`. `test_recorded.py` asks whether the broker's model may do the same.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from things_kit import Message, connect
from things_kit.engine.broker import Broker
from things_kit.engine.driver import Delivery, Fetching, Release, Subscription
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.process import ServerProcess
from things_kit.testing.servers.pubsub import PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import SQSServer

FOLDER: Final = Path(__file__).parent / "recorded"

PARTITIONS: Final = 4
"""Of a topic, where there are any."""


class Source(NamedTuple):
    """Of what is recorded, and how it is connected to.

    Attributes:
        lease: Its shortest, in seconds; for Kafka how long a session lasts.
        killed: Nobody kills a service in a cloud.
    """

    server: Callable[[], ServerProcess]
    options: str
    lease: float | None
    killed: bool = True


SERVERS: Final[Mapping[str, Source]] = {
    "redis": Source(RedisServer, "lease=1", 1.0),
    "nats": Source(NATSServer, "lease=1", 1.0),
    "postgres": Source(PostgresServer, "lease=1", 1.0),
    "rabbitmq": Source(RabbitMQServer, "", None),
    "kafka": Source(KafkaServer, "session_timeout=6&commit_interval=0.05&partitions=4", 6.0),
    "sqs": Source(SQSServer, "lease=2", 2.0, killed=False),
    "pubsub": Source(PubSubServer, "lease=2", 2.0, killed=False),
    "servicebus": Source(ServiceBusServer, "lease=5", 5.0, killed=False),
}


class Event(msgspec.Struct, omit_defaults=True):
    """One thing that happened, and when.

    Attributes:
        what: "published", "joins", "delivered", "acknowledged", "given back", "let go" (with its partition), "left",
            "lost" (a connection) or "killed" (the server).
        who: Which receiver.
    """

    at: float
    what: str
    who: str = ""
    id: str = ""
    key: str = ""
    partition: int | None = None
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
        self._quiet = False
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

    async def leave(self) -> None:
        """Give back what is in hand, and go."""
        self._quiet = True
        await self._receiver.quiesce()
        await self.settle(back=list(self.held))
        self._note("left", self.name)
        await self._receiver.close()

    async def disconnect(self) -> None:
        """Go without a word of what is in hand."""
        self._quiet = True
        self._note("lost", self.name)
        await self._broker.close()

    # --- see Inbox

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Something has come."""
        if self._quiet:
            return deliveries
        for delivery in deliveries:
            message = delivery.message
            self._note("delivered", self.name, message.id, attempt=message.attempt)
            self.held[message.id or ""] = delivery
        self._came.set()
        return ()

    async def let_go(self, which: Any) -> None:
        """Another shall have it."""
        for name, delivery in list(self.held.items()):
            if which(delivery):
                self._note("let go", self.name, name)
                del self.held[name]

    def forget(self, which: Any) -> None:
        """Others have it already; what was handed out is told by nobody."""

    def ailing(self, reason: str | None) -> None:
        """It may be."""

    def fail(self, error: Exception) -> None:
        """It is seen by what follows."""


class Recorder:
    """Writes down one course of events on a server of its own."""

    def __init__(self, name: str, server: ServerProcess, source: Source) -> None:
        self.events: list[Event] = []
        self._server = server
        self._source = source
        self._url = f"{server.url}{'&' if '?' in server.url else '?'}{source.options}"
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
                partition = number % PARTITIONS if broker.capabilities.partitions else None
                self.note("published", id=f"m{number}", key=key, partition=partition)
                message = Message(self._topic, b"", key=key.encode(), id=f"m{number}", partition=partition)
                await broker.producer().publish(message)

    async def run(self) -> list[Event]:
        """One is given back, a connection breaks, a lease ends, one who has given something back leaves, the server is killed."""
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
        if self._source.lease is not None:
            third = await self.party("c")
            await third.take(1)  # once the lease of the second has ended, who does nothing for it
            await third.settle(*third.held)
            await third.leave()
        else:
            await self._drain(second)
        await second.disconnect()
        leaving = await self.party("l")
        await self.publish(5)
        await leaving.take(1)
        await leaving.leave()
        await self._end(6, 7)
        return self.events

    async def _end(self, *numbers: int) -> None:
        """The server is killed, where that can be; whoever comes afterwards has all that is left."""
        if self._source.killed:
            await self.publish(*numbers)
            holder = await self.party("d")
            await holder.take(1)
            await asyncio.sleep(1)  # what was acknowledged has arrived
            self.note("killed")
            self._server.kill()
            await self.close()
            self._server.start()
        await self._drain(await self.party("e"))
        await self.close()

    async def _drain(self, party: Party) -> None:
        """This one takes and acknowledges all that is left."""
        while {each.id for each in self.events if each.what != "acknowledged"} - {""} > self._acknowledged:
            await party.take(1, within=40.0)
            await party.settle(*party.held)

    @property
    def _acknowledged(self) -> set[str]:
        return {each.id for each in self.events if each.what == "acknowledged"}

    async def close(self) -> None:
        """Let go of all connections."""
        for broker in self._brokers:
            with suppress(Exception):
                async with asyncio.timeout(5):
                    await broker.close()


class PartitionsRecorder(Recorder):
    """The same for Kafka, where partitions move."""

    async def run(self) -> list[Event]:
        """A second member joins, so that partitions move while the first has messages of them; the first leaves; the server is killed."""
        async with connect(self._url) as broker:
            await broker.declare(self._topic, groups=["g"])
        await self.publish(*range(8))
        first = await self.party("a")
        await first.take(4)
        await first.settle(next(iter(first.held)))
        second = await self.party("b")
        await second.take(2)
        await second.settle(*second.held)
        await first.take(1)
        await first.settle(next(iter(first.held)))
        await first.leave()
        await self._drain(second)
        await second.leave()
        await self._end(8, 9, 10)
        return self.events


async def record(name: str) -> Recording:
    """Record this broker."""
    source = SERVERS[name]
    server = source.server()
    await asyncio.to_thread(server.start)
    try:
        kind = PartitionsRecorder if name == "kafka" else Recorder
        return Recording(name, source.lease, await kind(name, server, source).run())
    finally:
        server.terminate()


def main(names: Sequence[str]) -> None:
    for name in names or SERVERS:
        recording = asyncio.run(record(name))
        (FOLDER / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(recording)) + b"\n")
        print(f"{name}: {len(recording.events)} events")


if __name__ == "__main__":
    main(sys.argv[1:])
