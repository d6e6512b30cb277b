"""A process that is killed while it waits for replies: its inbox goes, and who serves goes on."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from things_kit import Broker, Message, connect
from things_kit.engine import requests, results
from things_kit.engine.clock import steady
from things_kit.engine.driver import Listing
from things_kit.engine.naming import inbox_expired
from things_kit.messaging.names import DEAD_LETTER_GROUP, REPLY_TO
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.pubsub import PubSubServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import SQSServer

kafka = shared(KafkaServer, "kafka")
nats = shared(NATSServer, "nats")
rabbitmq = shared(RabbitMQServer, "rabbitmq")
redis = shared(RedisServer, "redis")
sqs = shared(SQSServer, "sqs")
pubsub = shared(PubSubServer, "pubsub")
servicebus = shared(ServiceBusServer, "servicebus")
own_postgres = shared(PostgresServer, "postgres")

PATIENCE = 60.0
LASTS = 3000
"""Milliseconds for which RabbitMQ keeps the inbox of the killed; a minute for users."""

SOON, LATE = b"while its inbox is there", b"when it is gone"


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


@pytest.fixture
def postgres(own_postgres: PostgresServer) -> Iterator[str]:
    with own_postgres.database() as url:
        yield url


@asynccontextmanager
async def asking(url: str, topic: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process, which waits for the replies to its two requests."""
    asked = (value.decode() for value in (SOON, LATE))
    command = (sys.executable, "-m", "tests.patterns.asking", url, topic, str(LASTS), *asked)
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Server:
    """Answers requests, each when it may."""

    def __init__(self) -> None:
        self.may = {SOON: asyncio.Event(), LATE: asyncio.Event()}
        self.began: list[bytes] = []
        self.inboxes: set[str] = set()

    async def answer(self, message: Message) -> bytes:
        self.began.append(message.value)
        if message.value in self.may:
            self.inboxes.add(message.headers[REPLY_TO])
            await self.may[message.value].wait()
        return message.value


def a_day_later(patch: pytest.MonkeyPatch, inbox: str) -> None:
    """For this inbox alone: those of other tests are on the same server."""

    def expired(topic: str, now: float) -> bool:
        return inbox_expired(topic, now + requests.LIFE * (topic == inbox))

    assert not inbox_expired(inbox, steady())
    patch.setattr(requests, "inbox_expired", expired)


async def kept(broker: Broker, inbox: str) -> Sequence[str]:
    """What the server has of an inbox."""
    driver = broker.transmission.driver
    if broker.capabilities.passing_inbox or not isinstance(driver, Listing):
        return [inbox] if await broker.transmission.has_topic(inbox) else []
    return [topic for topic in await driver.topics() if inbox in topic]


@pytest.mark.parametrize(
    "kind", ["sqlite", "postgres", "redis", "nats", "rabbitmq", "kafka", "sqs", "pubsub", "servicebus"]
)
async def test_the_inbox_of_a_killed_process_goes_and_its_server_goes_on(
    kind: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "things_kit")
    monkeypatch.setattr(results, "LINGER", 0.2)
    found = request.getfixturevalue(kind)
    url, topic, server = getattr(found, "url", found), f"asked-{uuid4().hex[:10]}", Server()
    async with connect(url) as broker:
        async with broker.consumer(topic, group="servers", handler=server.answer, concurrency=4) as consumer:
            async with asking(url, topic) as killed:
                await eventually(lambda: len(server.began) == 2, PATIENCE, "both requests have arrived")
                killed.kill()
            [inbox] = server.inboxes

            server.may[SOON].set()
            await eventually(lambda: consumer.handled == 1, PATIENCE, "its reply waits for nobody")
            a_day_later(monkeypatch, inbox)
            await broker.request(Message(topic, b"another's", key=SOON), timeout=PATIENCE)

            async def gone() -> bool:
                return not await kept(broker, inbox)

            await eventually(gone, PATIENCE, "the inbox is gone")
            server.may[LATE].set()
            await eventually(lambda: "is not there any more" in caplog.text, PATIENCE, "nobody tries on")
            reply = await broker.request(Message(topic, b"last", key=LATE), timeout=PATIENCE)
            assert reply.value == b"last"
            await eventually(lambda: consumer.handled == 4, PATIENCE, "all are acknowledged")
            assert consumer.health().reason is None
        assert sorted(server.began) == sorted([SOON, LATE, b"another's", b"last"])
        assert not await kept(broker, inbox)
        assert await broker.lag(f"{topic}-dlq", DEAD_LETTER_GROUP) in {0, None}
        await broker.remove(topic)
    warned = [record.message for record in caplog.records if record.levelno > logging.INFO]
    # A new inbox of our own may come back once, where Kafka is busy and its leader is not there yet
    assert [each for each in warned if topic in each or inbox in each] == []
