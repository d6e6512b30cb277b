"""What several tests of Service Bus use."""

from typing import Any
from uuid import uuid4

from things_kit import Broker, Message
from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.driver import ServiceBusDriver
from things_kit.brokers.servicebus.names import entity_of
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.servicebus import ServiceBusServer


def keyed(topic: str, count: int, keys: int) -> list[Message]:
    return [Message(topic, b"x", key=b"k%d" % (n % keys), id=f"{n}-{uuid4().hex}") for n in range(count)]


def through(relay: Relay, server: ServiceBusServer, options: str = "") -> str:
    """The URL of the server on the other side of a relay."""
    return server.url.replace(f":{server.ports[0]}", f":{relay.port}") + options


def driver_of(broker: Broker) -> ServiceBusDriver:
    driver = broker.transmission.driver
    assert isinstance(driver, ServiceBusDriver)
    return driver


def client_of(broker: Broker) -> Client:
    return driver_of(broker)._client


async def publish_raw(broker: Broker, topic: str, *payloads: bytes) -> None:
    """Messages of another client: the bytes of their sections."""
    sender = await client_of(broker).sender(entity_of(topic))
    for payload in payloads:
        await sender.send(payload)


async def lag_is(broker: Any, topic: str, expected: int, group: str = "billing") -> bool:
    return bool(await broker.lag(topic, group=group) == expected)
