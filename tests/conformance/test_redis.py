"""A real Redis keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("redis")

from redis.asyncio import Redis

from things_kit.testing.conformance import ConformanceSuite, OperationsSuite, SurvivalSuite, Target
from things_kit.testing.conformance.base import Suite
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.redis import RedisServer

redis = shared(RedisServer, "redis")
own_redis = own(RedisServer)


class Foreign:
    """Another client of Redis: redis-py alone."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        fields: dict[Any, Any] = {"value": value, **headers}
        if key is not None:
            fields["key"] = key
        async with Redis(port=self._server.port) as client:
            await client.xadd(topic, fields)

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        async with Redis(port=self._server.port) as client:
            entries: Any = await client.xrange(topic)
        return [
            (
                fields.get(b"key"),
                fields[b"value"],
                {
                    name.decode(): raw.decode()
                    for name, raw in fields.items()
                    if name not in {b"key", b"value"}
                },
            )
            for _, fields in entries
        ]


async def cut(server: RedisServer) -> None:
    """Close every connection but the one that asks, by Redis's own means."""
    await asyncio.to_thread(server.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class TestRedis(ConformanceSuite):
    @pytest.fixture
    def target(self, redis: RedisServer) -> Target:
        foreign = Foreign(redis)
        return Target(
            url=redis.url,
            lease_options={"lease": "0.5"},
            size_options={"max_message_bytes": "4096"},
            absent="redis://127.0.0.1:1",
            foreign_publish=foreign.publish,
            foreign_read=foreign.read,
        )


class TestRedisThatGoesAway(Suite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(self, request: pytest.FixtureRequest, own_redis: RedisServer) -> AsyncIterator[Target]:
        async def call(action: Any) -> None:
            await asyncio.to_thread(action)

        hooks: dict[str, Any]
        if request.param == "paused":
            hooks = {"pause": lambda: call(own_redis.pause), "resume": lambda: call(own_redis.resume)}
        else:
            hooks = {"kill": lambda: call(own_redis.kill), "restart": lambda: call(own_redis.start)}
        yield Target(url=own_redis.url + "?timeout=1", patience=30.0, **hooks)
        own_redis.resume()
        await call(own_redis.start)

    test_nothing_is_lost = SurvivalSuite.test_a_broker_that_goes_away_and_returns_loses_nothing
    test_a_consumer_stops = SurvivalSuite.test_a_consumer_stops_while_it_reconnects
    test_publish_waits = OperationsSuite.test_publish_waits_out_an_outage
    test_health = OperationsSuite.test_health_turns_bad_when_the_broker_is_gone_and_good_again
    _ill = OperationsSuite._ill

    test_publish_fails_in_time = OperationsSuite.test_publish_fails_in_time_when_the_outage_lasts


class TestRedisWithCutConnections(Suite):
    """Every connection is closed by the server, which goes on."""

    @pytest.fixture
    def target(self, own_redis: RedisServer) -> Target:
        return Target(url=own_redis.url, cut=lambda: cut(own_redis))

    test_each_message_is_handled_once = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once
