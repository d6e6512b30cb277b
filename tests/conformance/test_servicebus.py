"""Service Bus keeps every promise, as far as a stand-in for the service shows it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest

pytest.importorskip("azure.servicebus")

from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.amqp import AmqpAnnotatedMessage

from things_kit import UnsupportedError, connect
from things_kit.brokers.servicebus.amqp.codec import Described, Encoded, encode
from things_kit.brokers.servicebus.wire import DATA, FIELDS
from things_kit.engine.driver import Capabilities
from things_kit.testing.conformance import (
    ConformanceSuite,
    ConnectionSuite,
    DeliverySuite,
    LoadSuite,
    OperationsSuite,
    OrderSuite,
    OutcomeSuite,
    SurvivalSuite,
    Target,
)
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import OutageSuite, falling_silent, outage
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.servicebus import KEY, ServiceBusServer

servicebus = shared(ServiceBusServer, "servicebus")
own_servicebus = own(ServiceBusServer)

SHORT = "lease=5"


class Foreign:
    """Another client of Service Bus: Azure's, alone."""

    def __init__(self, server: ServiceBusServer) -> None:
        self._server = server

    def _client(self) -> ServiceBusClient:
        return ServiceBusClient.from_connection_string(self._server.connection_string)

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        message = ServiceBusMessage(
            value,
            application_properties={str(name): text for name, text in headers.items()},
            partition_key=None if key is None else key.decode(),
        )
        async with self._client() as client, client.get_topic_sender(topic) as sender:
            await sender.send_messages(message)

    @property
    def unreadable(self) -> Sequence[Callable[[str], Awaitable[None]]]:
        return [
            self.publish_properties_of_every_kind,
            self.publish_types_that_python_has_not,
            self.publish_a_value,
            self.publish_a_sequence,
        ]

    async def publish_properties_of_every_kind(self, topic: str) -> None:
        kinds: Any = {
            "number": 5,
            "real": 1.5,
            "uuid": uuid4(),
            "time": datetime.now(UTC),
        }
        await self._send(topic, ServiceBusMessage(b"x", application_properties=kinds))

    async def publish_types_that_python_has_not(self, topic: str) -> None:
        """A char and a decimal, which Azure's own client cannot even send."""
        odd = {"char": Encoded(b"\x73\x00\x00\x00\x41"), "decimal": Encoded(b"\x74\x22\x50\x00\x01")}
        async with connect(self._server.url) as broker:
            sender = await broker.transmission.driver._client.sender(topic)  # type: ignore[attr-defined]
            await sender.send(encode(Described(FIELDS, odd)) + encode(Described(DATA, b"x")))

    async def publish_a_value(self, topic: str) -> None:
        await self._send(topic, AmqpAnnotatedMessage(value_body={"amount": 5}))

    async def publish_a_sequence(self, topic: str) -> None:
        await self._send(topic, AmqpAnnotatedMessage(sequence_body=[[1, "two"]]))

    async def _send(self, topic: str, message: Any) -> None:
        async with self._client() as client, client.get_topic_sender(topic) as sender:
            await sender.send_messages(message)

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        """All that is in the one subscription of the topic, which has the topic's name with another word in front."""
        name = f"billing-{topic.rpartition('-')[2]}"
        async with self._client() as client, client.get_subscription_receiver(topic, name) as receiver:
            messages = await receiver.receive_messages(10, max_wait_time=5)
            return [_read(message) for message in messages]


def _read(message: Any) -> tuple[bytes | None, bytes, dict[str, str]]:
    found = {name.decode(): value.decode() for name, value in message.application_properties.items()}
    key = found.get("tk-key")
    headers = {name: value for name, value in found.items() if not name.startswith("tk-")}
    return None if key is None else key.encode(), b"".join(message.body), headers


class TestServiceBus(ConformanceSuite):
    @pytest.fixture
    def target(self, servicebus: ServiceBusServer) -> Target:
        foreign = Foreign(servicebus)
        return Target(
            url=f"{servicebus.url}&{SHORT}",
            size_options={"max_message_bytes": "4096"},
            secret=KEY,
            absent="servicebus://127.0.0.1:1?key_name=a&key=b&emulator=true&admin_port=1",
            patience=30.0,
            foreign_publish=foreign.publish,
            foreign_read=foreign.read,
            unreadable=foreign.unreadable,
        )


class TestServiceBusQueues(
    DeliverySuite, SurvivalSuite, ConnectionSuite, OutcomeSuite, OrderSuite, LoadSuite
):
    """Where a topic is a plain queue: all that does not take a second group, which a queue cannot have."""

    @pytest.fixture
    def target(self, servicebus: ServiceBusServer) -> Target:
        return Target(url=f"{servicebus.url}&mode=queue&{SHORT}", patience=30.0)

    test_each_group_gets_all_messages = None  # type: ignore[assignment]
    test_a_new_group_starts_at_the_earliest_message = None  # type: ignore[assignment]
    test_a_new_group_starts_at_the_latest_message = None  # type: ignore[assignment]
    test_a_consumer_without_a_group_gets_what_comes_from_now_on = None  # type: ignore[assignment]
    test_where_nothing_may_be_created_what_is_missing_is_said_and_what_is_there_serves = None  # type: ignore[assignment]
    test_removed = OperationsSuite.test_a_removed_topic_is_gone


class SessionStage(Stage):
    """A group's consumers share the keys, and the order of each holds: what other brokers do by partitions."""

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, partitions=True)


class TestServiceBusSessions(ConformanceSuite):
    """Where keys are sessions, their order holds across consumers."""

    @pytest.fixture
    def target(self, servicebus: ServiceBusServer) -> Target:
        return Target(
            url=f"{servicebus.url}&sessions=true&{SHORT}",
            size_options={"max_message_bytes": "4096"},
            secret=KEY,
            patience=30.0,
        )

    @pytest.fixture
    async def stage(self, target: Target) -> AsyncIterator[Stage]:
        async with SessionStage(target) as stage:
            yield stage

    async def test_a_partition_is_handled_in_strict_order_through_retries(self, stage: Stage) -> None:
        """Line 26 cannot be had with sessions, each of which has an order of its own: it is refused at start."""
        topic = stage.topic()
        await stage.broker.declare(topic)
        consumer = stage.broker.consumer(topic, group=stage.group(), handler=Recorder(), ordering="partition")
        with pytest.raises(UnsupportedError, match="sessions"):
            await consumer.start()


class TestServiceBusThatGoesAway(OutageSuite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(
        self, request: pytest.FixtureRequest, own_servicebus: ServiceBusServer
    ) -> AsyncIterator[Target]:
        async with outage(
            own_servicebus, request.param, url=f"{own_servicebus.url}&{SHORT}", outlasts=8.0
        ) as target:
            yield target


class TestServiceBusThatIsCut(Suite):
    """All connections are broken, while the server stays."""

    @pytest.fixture
    def target(self, own_servicebus: ServiceBusServer) -> Target:
        async def cut() -> None:
            own_servicebus.cut()

        return Target(url=f"{own_servicebus.url}&{SHORT}", cut=cut, patience=30.0)

    test_each_once = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once


class TestServiceBusThatFallsSilent(HalfOpenSuite):
    """Connections hear nothing more, without a reset, while new ones work."""

    @pytest.fixture
    async def target(self, servicebus: ServiceBusServer) -> AsyncIterator[Target]:
        async with Relay(servicebus.ports[0]) as relay:
            url = servicebus.url.replace(f":{servicebus.ports[0]}", f":{relay.port}", 1)
            yield falling_silent(relay, f"{url}&{SHORT}", patience=30.0)
