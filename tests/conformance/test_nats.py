"""A real NATS JetStream keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("nats")

from nats.errors import TimeoutError as NothingLeft

import nats
from things_kit.testing.conformance import ConformanceSuite, OperationsSuite, SurvivalSuite, Target
from things_kit.testing.conformance.base import Suite
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.relay import Relay

SHORT_LEASE = "?lease=1"
"""What a server handed out just before it stood still or died is with nobody until its lease ends."""

nats_server = shared(NATSServer, "nats")
own_nats = own(NATSServer)


class Foreign:
    """Another client of NATS: nats-py alone. NATS has no keys, so it uses the header that we use."""

    def __init__(self, server: NATSServer) -> None:
        self._server = server

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        client = await nats.connect(self._server.url)
        keyed = {**headers, **({} if key is None else {"tk-key": key.decode()})}
        await client.jetstream().publish(topic, value, headers=keyed)
        await client.close()

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        client = await nats.connect(self._server.url)
        reader = await client.jetstream().pull_subscribe(topic)
        read = []
        try:
            for msg in await reader.fetch(100, timeout=1):
                headers = msg.headers or {}
                read.append((headers["tk-key"].encode(), msg.data, headers))
                await msg.ack()
        except NothingLeft:
            pass
        finally:
            await client.close()
        return read


class TestNATS(ConformanceSuite):
    @pytest.fixture
    async def target(self, nats_server: NATSServer) -> AsyncIterator[Target]:
        foreign = Foreign(nats_server)
        async with Relay(nats_server.ports[0]) as relay:
            yield Target(
                url=f"nats://127.0.0.1:{relay.port}",
                lease_options={"lease": "0.5"},
                size_options={"max_message_bytes": "4096"},
                absent="nats://127.0.0.1:1",
                cut=relay.cut,
                foreign_publish=foreign.publish,
                foreign_read=foreign.read,
            )


class TestNATSThatGoesAway(Suite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(self, request: pytest.FixtureRequest, own_nats: NATSServer) -> AsyncIterator[Target]:
        async def call(action: Any) -> None:
            await asyncio.to_thread(action)

        hooks: dict[str, Any]
        if request.param == "paused":
            hooks = {"pause": lambda: call(own_nats.pause), "resume": lambda: call(own_nats.resume)}
        else:
            hooks = {"kill": lambda: call(own_nats.kill), "restart": lambda: call(own_nats.start)}
        yield Target(url=own_nats.url + SHORT_LEASE, patience=30.0, **hooks)
        own_nats.resume()
        await call(own_nats.start)

    test_nothing_is_lost = SurvivalSuite.test_a_broker_that_goes_away_and_returns_loses_nothing
    test_a_consumer_stops = SurvivalSuite.test_a_consumer_stops_while_it_reconnects
    test_publish_waits = OperationsSuite.test_publish_waits_out_an_outage
    test_health = OperationsSuite.test_health_turns_bad_when_the_broker_is_gone_and_good_again
    _ill = OperationsSuite._ill

    test_publish_fails_in_time = OperationsSuite.test_publish_fails_in_time_when_the_outage_lasts
