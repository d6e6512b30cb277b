"""The bridge between every pair of brokers there is.

A new broker is a fixture of its own name, with a URL or a server that has one, and that name in `BROKERS`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest

from things_kit import Broker, ConfigError, Message, connect
from things_kit.patterns.bridge import Bridge
from things_kit.testing.conformance.fidelity import same
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.pubsub import PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import SQSServer

BROKERS = ["memory", "sqlite", "kafka", "nats", "rabbitmq", "redis", "sqs", "pubsub", "servicebus"]

PATIENCE = 60
KEYS = 5
NUMBER = 200

kafka = shared(KafkaServer, "kafka")
nats = shared(NATSServer, "nats")
rabbitmq = shared(RabbitMQServer, "rabbitmq")
redis = shared(RedisServer, "redis")
sqs = shared(SQSServer, "sqs")
pubsub = shared(PubSubServer, "pubsub")
servicebus = shared(ServiceBusServer, "servicebus")


@pytest.fixture
def memory() -> str:
    return f"memory://{uuid4().hex}"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


AWKWARD = [
    Message("", b"\xff\x00\xfe", key=b"\x00\xfd", headers={"type": "binary"}),
    Message("", b"", key=b"", headers={"": ""}, id="empty"),
    Message(
        "", b"no key", headers={"größe": 'a "quoted"\r\nline', "注文\nline": "🚀", "replay-of": "x" * 2048}
    ),
    Message("", b"dated", timestamp=datetime(1999, 12, 31, 23, 59, 59, 999000, UTC), id="ключ-🚀 with space"),
    Message("", b"later", timestamp=datetime(2099, 1, 1, 0, 0, 0, 1000, UTC), key="größe".encode()),
]


class Pair:
    """Two brokers, and a topic on each with a group that reads it."""

    def __init__(self, source: Broker, target: Broker) -> None:
        self.source, self.target = source, target
        self.old, self.new = f"old-{uuid4().hex}", f"new-{uuid4().hex}"
        self.rename = {self.old: self.new}

    async def publish(self, messages: Sequence[Message]) -> None:
        await self.source.producer().publish_batch([message.replace(topic=self.old) for message in messages])

    async def move(self, number: int) -> int:
        """Move until so many have come, and then all that is left; returns how many these were."""
        bridge = Bridge(self.source, self.target, [self.old], rename=self.rename, target_groups=["reader"])
        async with bridge, asyncio.timeout(PATIENCE):
            # a source that cannot say what is left counts as empty once it is quiet, as it also is before it begins
            await eventually(lambda: bridge.moved >= number, PATIENCE, "they are moved")
            await bridge.until_empty()
        return bridge.moved

    async def read(self, number: int) -> list[Message]:
        messages: list[Message] = []
        done = asyncio.Event()

        async def handle(message: Message) -> None:
            messages.append(message)
            if len(messages) >= number:
                done.set()

        async with self.target.consumer(self.new, group="reader", handler=handle), asyncio.timeout(PATIENCE):
            await done.wait()
        return messages


@pytest.fixture(autouse=True)
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that cannot say how much is left counts as empty sooner than for users."""
    monkeypatch.setattr("things_kit.patterns.bridge.QUIET", 1.0)


@pytest.fixture(params=product(BROKERS, repeat=2), ids=" to ".join)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    urls = [getattr(found, "url", found) for found in map(request.getfixturevalue, request.param)]
    async with connect(urls[0]) as source, connect(urls[1]) as target:
        pair = Pair(source, target)
        await source.declare(pair.old, ["bridge"])
        yield pair
        await source.remove(pair.old)
        await target.remove(pair.new)


async def test_every_field_and_the_order_of_keys_survive_and_a_second_bridge_goes_on(pair: Pair) -> None:
    given = [message.replace(id=message.id or uuid4().hex) for message in AWKWARD]
    numbered = [
        Message("", b"%d" % number, key=b"k-%d" % (number % KEYS), id=uuid4().hex) for number in range(NUMBER)
    ]
    await pair.publish([*given, *numbered])
    count = len(given) + len(numbered)
    assert await pair.move(count) == count
    await pair.publish([Message("", b"%d" % NUMBER, key=b"k-0", id="last")])
    assert await pair.move(1) == 1

    arrived = await pair.read(count + 1)
    by_id = {message.id: message for message in arrived}
    assert len(by_id) == len(arrived)
    for message in given:
        assert same(message, by_id[message.id]), f"sent {message!r}, got {by_id[message.id]!r}"
    for key in range(KEYS):
        values = [int(message.value) for message in arrived if message.key == b"k-%d" % key]
        assert values == [*range(key, NUMBER, KEYS), *([NUMBER] if key == 0 else [])]


@pytest.mark.parametrize("name", BROKERS)
async def test_a_topic_that_is_not_there_is_refused_with_a_sentence(
    name: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(name)
    async with connect(getattr(found, "url", found)) as source, connect("memory://") as target:
        with pytest.raises(ConfigError, match="'not-there-"):
            await Bridge(source, target, [f"not-there-{uuid4().hex}"]).start()
