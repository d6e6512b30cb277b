"""A relay that dies at any turn of its event loop loses nothing, and keeps the order of each key."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from tests.patterns.mortal import KILLED, child, doom, ended, started
from things_kit import Message, connect
from things_kit.patterns import far_side
from things_kit.patterns.outbox.relay import Relay
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer

nats = shared(NATSServer, "nats")
POINTS = 20
"""Turns of the event loop from the first publish at which the process dies: beyond the acknowledgement on all brokers."""

OF_A_KEY = 4
HELD = 8
"""Messages in hand: a relay leaves the others to the next, which need not wait for the leases of the dead."""


@pytest.fixture
def postgresql(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/source.db"


async def carry(source: str, target: str, topic: str, point: int | None) -> None:
    """Carry what is there; with a `point`, die so many turns after the first publish."""
    publish = far_side.FarSide.publish

    async def doomed(self: far_side.FarSide, *arguments: Sequence[object]) -> list[Exception | None]:
        doom(point)
        return await publish(self, *arguments)  # type: ignore[arg-type] # as they came

    if point is not None:
        far_side.FarSide.publish = doomed  # type: ignore[assignment, method-assign] # in a process of its own
    relay = Relay(
        f"{source}?lease=0.5", target, ["orders"], group="relay", rename={"orders": topic}, max_in_flight=HELD
    )
    async with relay:
        await relay.until_empty()


async def prepare(source: str, target: str, topic: str) -> None:
    async with connect(source) as broker, connect(target) as other:
        await broker.declare("orders", ["relay"])
        await other.declare(topic, ["g"])
        messages = [
            Message("orders", str(number).encode(), str(key).encode())
            for key in range(POINTS * HELD // OF_A_KEY)
            for number in range(OF_A_KEY)
        ]
        await broker.producer().publish_batch(messages)


async def arrived(target: str, topic: str) -> dict[bytes | None, list[int]]:
    """The numbers of each key, in the order in which they came."""
    numbers: dict[bytes | None, list[int]] = defaultdict(list)

    async def handle(message: Message) -> None:
        numbers[message.key].append(int(message.value))

    async with connect(target) as broker, broker.consumer(topic, group="g", handler=handle):
        while await broker.lag(topic, "g"):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.01)
    return numbers


def killed_at_every_turn(source: str, target: str) -> list[list[int]]:
    """What arrived of each key though a relay died at each of many turns."""
    topic = f"orders-{uuid4().hex[:8]}"
    asyncio.run(prepare(source, target, topic))
    codes = [child(carry(source, target, topic, point)) for point in range(POINTS)]
    assert codes.count(KILLED) > POINTS * 3 // 4, codes
    assert child(carry(source, target, topic, None)) == 0
    return list(asyncio.run(arrived(target, topic)).values())


def test_whenever_the_relay_dies_nothing_is_lost_or_out_of_order(sqlite: str, tmp_path: Path) -> None:
    keys = killed_at_every_turn(sqlite, f"sqlite:///{tmp_path}/target.db")
    assert len(keys) == POINTS * HELD // OF_A_KEY
    assert [list(dict.fromkeys(numbers)) for numbers in keys] == [list(range(OF_A_KEY))] * len(keys)
    assert sum(map(len, keys)) > len(keys) * OF_A_KEY, "some were confirmed and not acknowledged"


def test_whenever_the_relay_dies_a_target_that_deduplicates_has_each_message_once(
    postgresql: str, nats: NATSServer
) -> None:
    keys = killed_at_every_turn(postgresql, nats.url)
    assert keys == [list(range(OF_A_KEY))] * (POINTS * HELD // OF_A_KEY)


def test_whichever_of_two_relays_dies_and_whenever_the_others_carry_on_what_it_had(
    postgresql: str, tmp_path: Path
) -> None:
    target, topic = f"sqlite:///{tmp_path}/target.db", "orders-of-two"
    asyncio.run(prepare(postgresql, target, topic))
    pairs = [(point, POINTS - 1 - point) for point in range(0, POINTS, 4)]
    codes: list[int] = []
    for pair in pairs:
        both = [started(carry(postgresql, target, topic, point), within=60) for point in pair]
        codes += map(ended, both)
    assert codes.count(KILLED) >= len(pairs), codes
    assert child(carry(postgresql, target, topic, None)) == 0
    keys = list(asyncio.run(arrived(target, topic)).values())
    assert [list(dict.fromkeys(numbers)) for numbers in keys] == [list(range(OF_A_KEY))] * (
        POINTS * HELD // OF_A_KEY
    )
