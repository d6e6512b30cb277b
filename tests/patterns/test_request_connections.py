"""A connection that is lost while a request is answered: on the side of who serves, or of who asks."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest

from things_kit import Message, connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.relay import Relay

nats = shared(NATSServer, "nats")
rabbitmq = shared(RabbitMQServer, "rabbitmq")
redis = shared(RedisServer, "redis")
own_postgres = shared(PostgresServer, "postgres")

PATIENCE = 60.0
SHORT_LEASE = {"nats": "?lease=1", "postgres": "?lease=1", "redis": "?lease=1", "rabbitmq": ""}
"""What a lost connection held is another's, or its own again, after its lease."""


@pytest.fixture
def postgres(own_postgres: PostgresServer) -> Iterator[str]:
    with own_postgres.database() as url:
        yield url


@pytest.mark.parametrize("lost", ["who serves", "who asks"])
@pytest.mark.parametrize("kind", SHORT_LEASE)
async def test_a_request_is_answered_though_a_connection_was_lost_meanwhile(
    kind: str, lost: str, request: pytest.FixtureRequest
) -> None:
    found, topic = request.getfixturevalue(kind), f"asked-{uuid4().hex[:10]}"
    near = f"{getattr(found, 'url', found)}{SHORT_LEASE[kind]}"
    port = (request.getfixturevalue("own_postgres") if kind == "postgres" else found).ports[0]
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(message: Message) -> bytes:
        asked.set()
        await go_on.wait()
        return message.value

    async with Relay(port) as relay:
        far = near.replace(f":{port}", f":{relay.port}")
        async with (
            connect(far if lost == "who serves" else near) as server,
            connect(far if lost == "who asks" else near) as requester,
        ):
            async with server.consumer(topic, group="servers", handler=answer):
                asking = asyncio.create_task(requester.request(Message(topic, b"1"), timeout=PATIENCE))
                await asyncio.wait_for(asked.wait(), PATIENCE)
                await relay.cut()
                go_on.set()
                assert (await asking).value == b"1"
                assert (await requester.request(Message(topic, b"2"), timeout=PATIENCE)).value == b"2"
            await requester.remove(topic)
