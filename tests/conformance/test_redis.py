"""A real Redis keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("redis")

from redis.asyncio import Redis

from things_kit.testing.conformance import ConformanceSuite, SurvivalSuite, Target
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import OutageSuite, falling_silent, outage
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.relay import Relay

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

    @property
    def unreadable(self) -> Sequence[Callable[[str], Awaitable[None]]]:
        return [self.publish_names_that_are_no_text, self.publish_without_a_value]

    async def publish_names_that_are_no_text(self, topic: str) -> None:
        await self._add(topic, {b"value": b"x", b"\xff\xfe": b"\xff"})

    async def publish_without_a_value(self, topic: str) -> None:
        await self._add(topic, {b"amount": b"5"})

    async def _add(self, topic: str, fields: dict[Any, Any]) -> None:
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
            unreadable=foreign.unreadable,
        )


class TestRedisThatGoesAway(OutageSuite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(self, request: pytest.FixtureRequest, own_redis: RedisServer) -> AsyncIterator[Target]:
        async with outage(own_redis, request.param, url=own_redis.url + "?timeout=1&lease=2") as target:
            yield target


class TestRedisWithCutConnections(Suite):
    """Every connection is closed by the server, which goes on."""

    @pytest.fixture
    def target(self, own_redis: RedisServer) -> Target:
        return Target(url=own_redis.url, cut=lambda: cut(own_redis))

    test_each_message_is_handled_once = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once


class TestRedisThatFallsSilent(HalfOpenSuite):
    """Connections hear nothing more, without a reset, while new ones work."""

    @pytest.fixture
    async def target(self, redis: RedisServer) -> AsyncIterator[Target]:
        async with Relay(redis.port) as relay:
            yield falling_silent(relay, f"redis://127.0.0.1:{relay.port}/0?lease=1")
