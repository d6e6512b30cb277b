"""The inbox and the relay keep their word in every history that is drawn."""

from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

from tests.testing.simulation.test_worlds import QUICK, Engine, each_of
from things_kit import Batch, Message
from things_kit.engine.broker import Broker
from things_kit.patterns import Inbox, Outbox
from things_kit.patterns.inbox.marks import Marks
from things_kit.patterns.outbox.relay import Relay
from things_kit.testing import Faults, SimulationFailed, World, reached, simulate
from things_kit.testing.simulation.models import MODELS


class Charged(Engine):
    """An effect in a database that is not idempotent: each message has it once, whoever dies and whatever comes again."""

    count = 8

    async def setup(self) -> None:
        self.engine = create_engine("sqlite://", poolclass=StaticPool)
        outbox = Outbox()
        outbox.create(self.engine)
        self.inbox = Inbox(self.engine, outbox=outbox)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE charge (id TEXT)"))

    def consumers(self, broker: Broker) -> list[Any]:
        return [
            broker.consumer(
                "orders",
                group="g",
                handler=self.charge,
                concurrency=4,
                retry=QUICK,
                middleware=[self.inbox],
                **self.options,
            )
        ]

    def charge(self, message: Message) -> None:
        self.inbox.session().execute(text("INSERT INTO charge VALUES (:id)"), {"id": message.id})
        if int(message.value) % 5 == 0 and message.attempt == 1:
            raise ConnectionError("after the effect, which is undone")

    def eventually(self) -> None:
        super().eventually()
        with self.engine.connect() as connection:
            charges = [row[0] for row in connection.execute(text("SELECT id FROM charge"))]
        self.history.effect_once(charges)
        if len(self.history.handled()) > len(charges):
            reached("again")


class ChargedTogether(Charged):
    """The same in lists."""

    options = {"batch": Batch(size=4, wait=0.5)}  # noqa: RUF012 - as that of the world it is made from

    def charge(self, messages: list[Message]) -> None:  # type: ignore[override]
        for message in messages:
            super().charge(message)


class Relayed(World):
    """Two relays share an outbox: everything is carried on, under its own id, and each key in its order."""

    async def consumers(self, broker: Broker) -> list[Any]:  # type: ignore[override]
        async def take(message: Message) -> None:
            """Nothing."""

        await broker.declare("outbox", groups=["relay"])
        return [
            broker.consumer("orders", group="shop", handler=take, retry=QUICK),
            Relay(broker, broker, ["outbox"], group="relay", rename={"outbox": "orders"}),
        ]

    async def workload(self, producer: Any) -> None:
        for part in range(4):
            await producer.publish_batch(
                [Message("outbox", b"%d" % n, key=b"k%d" % (n % 3)) for n in range(part * 5, part * 5 + 5)]
            )

    def eventually(self) -> None:
        self.history.nothing_lost()
        stored, carried = self.history.published("outbox"), self.history.published("orders")
        assert carried == stored
        for key in range(3):
            values = [int(m.value) for m in carried if m.key == b"k%d" % key]
            assert values == sorted(values), "a key has lost its order"


INBOXES = ("kafka", "rabbitmq", "sqs", "postgres")
"""One broker of each kind that an inbox stands behind."""

OUTSIDE = [name for name in MODELS if name not in {"postgres", "sqlite"}]
"""Brokers that are no database."""


class Bridged(Relayed):
    """The same out of brokers that are no database, whose relay may carry a message on twice."""

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert self.history.published("orders") == self.history.published("outbox")


@pytest.mark.parametrize("world", [Charged, ChargedTogether])
@pytest.mark.parametrize("broker", INBOXES)
def test_an_inbox_has_each_effect_once(broker: str, world: type[World]) -> None:
    simulate(world, seeds=each_of(len(INBOXES)), broker=broker, sometimes=["again"])


def test_an_inbox_without_marks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Marks.__init__

    def forgetful(self: Marks, *arguments: Any) -> None:
        made(self, *arguments)
        self.mark = self.mark.replace("WHERE i.expires <= :now", "WHERE i.expires > :now - :now")

    monkeypatch.setattr(Marks, "__init__", forgetful)
    with pytest.raises(SimulationFailed, match="took effect 2 times"):
        simulate(Charged, seeds=50, broker="redis", faults=Faults.only("lost_acknowledgement"))


@pytest.mark.parametrize("broker", ["postgres", "sqlite"])
def test_relays_lose_nothing_and_keep_the_order_of_keys(broker: str) -> None:
    simulate(Relayed, seeds=each_of(2), broker=broker)


@pytest.mark.parametrize("broker", OUTSIDE)
def test_a_bridge_out_of_any_broker_loses_nothing(broker: str) -> None:
    simulate(Bridged, seeds=each_of(len(OUTSIDE)), broker=broker)
