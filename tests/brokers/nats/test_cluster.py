"""A cluster of three real servers, each with a copy of every message, and one of them killed."""

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("nats")

import nats
from things_kit import Message, connect
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.process import free_ports

SIZE = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[NATSServer]]:
    ports = free_ports(2 * SIZE)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[SIZE:])
    servers = [
        NATSServer(
            ports=[ports[number]],
            settings=f"server_name: s{number}\n"
            f'cluster {{ name: shop, listen: "127.0.0.1:{ports[SIZE + number]}", routes: [{routes}] }}',
        )
        for number in range(SIZE)
    ]
    try:
        for server in servers:
            server.start()
        yield servers
    except ServerUnavailable as reason:
        unavailable(reason)
    finally:
        for server in servers:
            server.terminate()


async def leader_of(topic: str, servers: list[NATSServer]) -> NATSServer:
    """The server that leads the stream of a topic."""
    client = await nats.connect([server.url for server in servers])
    info = await client.jetstream().stream_info(topic)
    await client.close()
    assert info.cluster is not None
    assert info.cluster.leader is not None
    return servers[int(info.cluster.leader.removeprefix("s"))]


async def test_a_leader_of_a_cluster_that_is_killed_loses_nothing(cluster: list[NATSServer]) -> None:
    """Publishing and consuming go on with the others, while it is away and after it came back."""
    topic, group = "orders", "billing"
    hosts = ",".join(server.address for server in cluster)
    messages = [Message(topic, b"%d" % n, key=b"%d" % (n % 10), id=f"m-{n}") for n in range(1500)]
    async with connect(f"nats://{hosts}?replicas=3&lease=2&publish_timeout=60") as broker:
        await broker.declare(topic, [group])
        dying = await leader_of(topic, cluster)
        seen = Recorder()
        async with broker.consumer(topic, group=group, handler=seen, concurrency=8, dead_letter=None):

            async def publish() -> None:
                producer = broker.producer()
                for start in range(0, len(messages), 50):
                    await producer.publish_batch(messages[start : start + 50])

            publishing = asyncio.create_task(publish())
            await seen.until_done(200, 30)
            assert not publishing.done()
            await asyncio.to_thread(dying.kill)
            try:
                await asyncio.wait_for(publishing, 60)
                await eventually(lambda: len(seen.ids) == len(messages), 60)
            finally:
                await asyncio.to_thread(dying.start)

            async def settled() -> bool:
                return await broker.lag(topic, group) == 0

            await eventually(settled, 30)
            assert seen.ids == {message.id for message in messages}
