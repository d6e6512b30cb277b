"""A real RabbitMQ keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest

pytest.importorskip("pika")

import pika

from things_kit.testing.conformance import ConformanceSuite, OperationsSuite, SurvivalSuite, Target
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import falling_silent, outage
from things_kit.testing.conformance.progress import FreezeSuite
from things_kit.testing.conformance.stopping import StoppingSuite
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.relay import Relay

rabbitmq = shared(RabbitMQServer, "rabbitmq")
own_rabbitmq = own(RabbitMQServer)


class BeyondTheCalendar(datetime):
    """A time that AMQP can carry and Python cannot: pika asks for its parts only."""

    def utctimetuple(self) -> Any:
        return (1970, 1, 1, 0, 0, 1_700_000_000_000)


class Foreign:
    """Another client of RabbitMQ: pika alone."""

    def __init__(self, server: RabbitMQServer) -> None:
        self._parameters = pika.URLParameters(server.url)

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        await asyncio.to_thread(self._publish, topic, (key or b"").decode(), value, dict(headers))

    def _publish(self, topic: str, key: str, value: bytes, headers: dict[str, Any]) -> None:
        with pika.BlockingConnection(self._parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(topic, key, value, pika.BasicProperties(headers=headers), mandatory=True)

    @property
    def unreadable(self) -> Sequence[Callable[[str], Awaitable[None]]]:
        return [self.publish_a_time_outside_the_calendar, self.publish_headers_that_are_no_text]

    async def publish_a_time_outside_the_calendar(self, topic: str) -> None:
        """As those do who take milliseconds for seconds."""
        await asyncio.to_thread(self._publish, topic, "", b"x", {"at": BeyondTheCalendar(2024, 1, 1)})

    async def publish_headers_that_are_no_text(self, topic: str) -> None:
        headers = {"bytes": b"\xff\xfe", "table": {"nested": [1, None, True]}, "number": 5}
        await asyncio.to_thread(self._publish, topic, "", b"x", headers)

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        return await asyncio.to_thread(self._read, topic)

    def _read(self, topic: str) -> list[tuple[bytes | None, bytes, dict[str, str]]]:
        """What the topic's only group has, which is in the list of its groups."""
        with pika.BlockingConnection(self._parameters) as connection:
            channel: Any = connection.channel()
            _, _, queue = channel.basic_get(f".things-kit.groups.{topic}")
            method, properties, body = channel.basic_get(queue.decode())
            return [(method.routing_key.encode(), body, properties.headers)]


class TestRabbitMQ(ConformanceSuite):
    @pytest.fixture
    def target(self, rabbitmq: RabbitMQServer) -> Target:
        foreign = Foreign(rabbitmq)
        return Target(
            url=rabbitmq.url,
            size_options={"max_message_bytes": "4096"},
            absent="amqp://127.0.0.1:1",
            foreign_publish=foreign.publish,
            foreign_read=foreign.read,
            unreadable=foreign.unreadable,
        )


class TestRabbitMQThatGoesAway(Suite):
    """What the suite has about outages, on a server of its own: standing still, killed, and connections that it cuts."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(
        self, request: pytest.FixtureRequest, own_rabbitmq: RabbitMQServer
    ) -> AsyncIterator[Target]:
        # A node needs up to 20 seconds to start on a busy machine
        url = f"{own_rabbitmq.url}?publish_timeout=90"
        async with outage(own_rabbitmq, request.param, url=url, patience=60.0) as target:
            yield target

    test_nothing_is_lost = SurvivalSuite.test_a_broker_that_goes_away_and_returns_loses_nothing
    test_a_consumer_stops = SurvivalSuite.test_a_consumer_stops_while_it_reconnects
    test_publish_waits = OperationsSuite.test_publish_waits_out_an_outage


class TestRabbitMQThatStandsStill(Suite):
    """What shows the same whether the node is dead or only silent: a start takes long."""

    @pytest.fixture
    async def target(self, own_rabbitmq: RabbitMQServer) -> AsyncIterator[Target]:
        async with outage(
            own_rabbitmq, "paused", url=own_rabbitmq.url, patience=60.0, outlasts=6.0
        ) as target:
            yield target

    test_members_go_on = FreezeSuite.test_every_member_goes_on_after_freezes
    test_all_ends_in_time = (
        StoppingSuite.test_a_consumer_stops_and_its_broker_closes_in_time_though_nobody_answers
    )
    test_health = OperationsSuite.test_health_turns_bad_when_the_broker_is_gone_and_good_again

    test_publish_fails_in_time = OperationsSuite.test_publish_fails_in_time_when_the_outage_lasts


class TestRabbitMQThatCutsConnections(Suite):
    @pytest.fixture
    def target(self, own_rabbitmq: RabbitMQServer) -> Target:
        return Target(url=own_rabbitmq.url, cut=lambda: asyncio.to_thread(own_rabbitmq.cut))

    test_after_a_cut = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once


class TestRabbitMQThatFallsSilent(HalfOpenSuite):
    """Connections hear nothing more, without a reset, while new ones work."""

    @pytest.fixture
    async def target(self, rabbitmq: RabbitMQServer) -> AsyncIterator[Target]:
        async with Relay(rabbitmq.ports[0]) as relay:
            yield falling_silent(relay, f"amqp://guest:guest@127.0.0.1:{relay.port}/")
