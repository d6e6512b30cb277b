"""What a user may not do, and what a broker does not offer, on a broker that has such bounds."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka.admin import (  # type: ignore[attr-defined] # no __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from things_kit import Broker, ConfigError, Message, MessageTooLarge, PublishError, connect
from things_kit.engine.wait_topics import DEAD_LETTER, TOPIC, declare
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.process import free_ports

SECRET = "s3cret-geheim"

PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker that lets bob in by password, and to what ACLs allow him; without the new groups and share groups."""
    ports = free_ports(3)
    properties = {
        "listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},CONTROLLER://127.0.0.1:{ports[1]},SASL://127.0.0.1:{ports[2]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[0]},SASL://127.0.0.1:{ports[2]}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": f'{PLAIN} user_bob="{SECRET}";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "group.coordinator.rebalance.protocols": "classic",
    }
    server = KafkaServer(
        tmp_path_factory.mktemp("guarded") / "kafka", ports, properties, {"share.version": 0}
    )
    try:
        try:
            server.start()
        except ServerUnavailable as reason:
            unavailable(reason)
        yield server
    finally:
        server.terminate()


def allow(server: KafkaServer, kind: Any, name: str, *operations: Any) -> None:
    """Let bob do that."""
    admin = AdminClient({"bootstrap.servers": server.brokers})
    literal, granted = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
    acls = [AclBinding(kind, name, literal, "User:bob", "*", each, granted) for each in operations]
    for done in admin.create_acls(acls).values():
        done.result(10)
    asked = AclBindingFilter(kind, name, literal, "User:bob", "*", AclOperation.ANY, granted)
    while len(admin.describe_acls(asked).result(10)) < len(acls):  # until the broker has heard of it
        continue


def bob(server: KafkaServer, options: str = "") -> Broker:
    host = f"127.0.0.1:{server.secure_port}"
    return connect(
        f"kafka://bob:{SECRET}@{host}?security_protocol=sasl_plaintext&publish_timeout=10{options}"
    )


@pytest.fixture
async def topic(guarded: KafkaServer) -> str:
    """One that bob did not make."""
    name = f"orders-{uuid4().hex[:10]}"
    async with connect(guarded.url) as broker:
        await broker.declare(name)
    return name


async def started_and_ended(consumer: Any) -> None:
    """Refusals come at start, or right after it."""
    await consumer.start()
    await consumer.wait()


async def ignore(_: Message) -> None:
    """Nothing to do."""


def assert_sentence(error: BaseException, *says: str) -> None:
    whole = f"{error} {error!r} {error.__cause__!r}"
    assert all(each in str(error) for each in says), error
    assert "\n" not in str(error)
    assert SECRET not in whole


@pytest.mark.parametrize("options", ["", "&declare=false"])
async def test_who_may_not_publish_is_told_so(guarded: KafkaServer, topic: str, options: str) -> None:
    async with bob(guarded, options) as broker:
        async with asyncio.timeout(8):
            with pytest.raises((PublishError, ConfigError)) as raised:
                await broker.producer().publish(Message(topic, b"x"))
    assert_sentence(raised.value, topic, "needs an ACL")


async def test_who_may_look_but_not_publish_is_told_so(guarded: KafkaServer, topic: str) -> None:
    allow(guarded, ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    async with bob(guarded) as broker:
        async with asyncio.timeout(8):
            with pytest.raises(PublishError) as raised:
                await broker.producer().publish(Message(topic, b"x"))
    assert_sentence(raised.value, topic, "needs an ACL")


async def test_who_may_not_declare_is_told_so(guarded: KafkaServer) -> None:
    async with bob(guarded) as broker, asyncio.timeout(8):
        with pytest.raises(ConfigError) as raised:
            await broker.declare("nobodys")
    assert_sentence(raised.value, "nobodys", "needs an ACL")


async def test_who_may_not_read_is_told_so_at_start(guarded: KafkaServer, topic: str) -> None:
    allow(guarded, ResourceType.GROUP, "billing", AclOperation.ALL)
    allow(guarded, ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
    async with bob(guarded) as broker:
        consumer = broker.consumer(topic, group="billing", handler=ignore, dead_letter=None)
        async with asyncio.timeout(15):
            with pytest.raises(ConfigError) as raised:
                await started_and_ended(consumer)
    assert_sentence(raised.value, topic, "needs an ACL")


async def test_who_may_not_be_of_a_group_is_told_so_at_start(guarded: KafkaServer, topic: str) -> None:
    allow(guarded, ResourceType.TOPIC, topic, AclOperation.ALL)
    async with bob(guarded) as broker:
        consumer = broker.consumer(topic, group="strangers", handler=ignore, dead_letter=None)
        async with asyncio.timeout(15):
            with pytest.raises(ConfigError) as raised:
                await consumer.start()
    assert_sentence(raised.value, "group", "needs an ACL")
    async with bob(guarded) as broker, asyncio.timeout(8):
        with pytest.raises(ConfigError) as raised:
            await broker.lag(topic, group="strangers")
    assert_sentence(raised.value, "needs an ACL")


async def test_who_may_publish_but_not_see_settings_still_loses_only_what_is_too_large(
    guarded: KafkaServer, topic: str
) -> None:
    """He learns that the topic takes less only when it refuses a batch."""
    allow(guarded, ResourceType.TOPIC, topic, AclOperation.WRITE, AclOperation.DESCRIBE)
    async with bob(guarded, "&max_message_bytes=3000000") as broker:
        producer = broker.producer()
        rows = [Message(topic, b"x" * size, b"k") for size in (10, 2_000_000, 10)]
        with pytest.raises(PublishError) as raised:
            await producer.publish_batch(rows)
    assert {index: type(error) for index, error in raised.value.failures.items()} == {1: MessageTooLarge}


@pytest.mark.parametrize("option", ["group_protocol=consumer", "group_type=share"])
async def test_what_the_broker_does_not_offer_is_said_so(
    guarded: KafkaServer, topic: str, option: str
) -> None:
    ordering: Any = "none" if "share" in option else "key"
    async with connect(f"{guarded.url}?{option}") as broker:
        consumer = broker.consumer(topic, group="new", handler=ignore, dead_letter=None, ordering=ordering)
        async with asyncio.timeout(20):
            with pytest.raises(ConfigError) as raised:
                await started_and_ended(consumer)
    assert_sentence(raised.value, option.partition("=")[0])


async def test_who_may_not_carry_on_consumes_all_the_same_and_it_is_said(
    guarded: KafkaServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages for later wait in a topic of ours, of which bob may know nothing."""
    caplog.set_level(logging.INFO, "things_kit.carrier")
    allow(guarded, ResourceType.TOPIC, topic, AclOperation.ALL)
    allow(guarded, ResourceType.GROUP, "billing", AclOperation.ALL)
    recorder = Recorder()
    async with connect(guarded.url) as broker:
        await declare(broker.transmission)
        async with (
            bob(guarded) as bobs,
            bobs.consumer(topic, group="billing", handler=recorder, dead_letter=None) as consumer,
        ):
            await broker.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 20.0)
            await eventually(lambda: [each for each in caplog.messages if "needs an ACL" in each], 20.0)
            assert consumer.health().reason is None
        for waits in (TOPIC, DEAD_LETTER):
            await broker.remove(waits)
    assert any(f"nothing is carried on from {TOPIC!r}" in each for each in caplog.messages)
