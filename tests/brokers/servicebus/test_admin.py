"""What is declared, removed and counted through the management API."""

import asyncio
from collections.abc import Coroutine

import pytest

from things_kit import Broker, ConfigError, Message, PublishError, connect
from things_kit.brokers.servicebus import admin
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.servicebus import KEY, ServiceBusServer

from .common import driver_of


async def test_a_wrong_key_is_a_sentence_without_the_key(servicebus: ServiceBusServer, topic: str) -> None:
    wrong = servicebus.url.replace("key=", "key=Z2VoZWlt", 1)
    async with connect(f"{wrong}&publish_timeout=5") as broker:
        with pytest.raises(ConfigError, match="refuses this key") as refused:
            await broker.declare(topic)
    assert "Z2VoZWlt" not in str(refused.value)
    assert KEY not in str(refused.value)


async def test_without_a_management_api_what_is_there_can_be_used(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
    bare = servicebus.url.partition("&admin_port")[0]
    async with connect(f"{bare}&declare=false") as plain:
        await broker.declare(topic, groups=["billing"])
        assert not plain.capabilities.lag
        assert await plain.lag(topic, group="billing") is None
        with pytest.raises(ConfigError, match="admin_port"):
            await plain.declare(topic)
        recorder = Recorder()
        async with plain.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await plain.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)
        with pytest.raises(PublishError, match="declare it first"):
            await plain.producer().publish(Message(f"{topic}-missing", b"x"))
        with pytest.raises(ConfigError, match="declare it first"):
            await plain.consumer(topic, group="nobody", handler=recorder, dead_letter=None).start()


async def test_names_that_differ_in_case_alone_are_not_taken_for_one_another(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    with pytest.raises(ConfigError, match="upper and lower case"):
        await broker.declare(topic.upper())
    with pytest.raises(ConfigError, match="upper and lower case"):
        await broker.declare(topic, groups=["Billing"])


async def test_a_queue_has_one_group_until_that_is_removed(servicebus: ServiceBusServer, topic: str) -> None:
    url = f"{servicebus.url}&mode=queue"
    async with connect(url) as broker, connect(url) as other:
        await broker.declare(topic, groups=["billing"])
        with pytest.raises(ConfigError, match="belongs to the group 'billing'"):
            await other.declare(topic, groups=["shipping"])
        await driver_of(broker).remove(topic, "billing")
        async with connect(url) as third:
            await third.declare(topic, groups=["shipping"])
        await broker.remove(topic)


async def test_sessions_of_an_entity_and_of_the_url_must_agree(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
    async with connect(f"{servicebus.url}&sessions=true") as other:
        await broker.declare(topic, groups=["billing"])
        with pytest.raises(ConfigError, match="sessions=false"):
            await other.declare(topic, groups=["billing"])


async def test_a_group_is_removed_alone(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing", "shipping"])
    await broker.producer().publish(Message(topic, b"x"))
    driver = driver_of(broker)
    await driver.remove(topic, "billing")
    await driver.remove(topic, "billing")  # which is not there any more
    assert await broker.lag(topic, group="shipping") == 1
    names = [each.name async for each in driver._admin.client.list_subscriptions(topic)]
    assert names == ["shipping"]


async def test_it_is_known_whether_anybody_listens(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
    driver = driver_of(broker)
    assert await driver.has_listeners(topic) is False, "it is missing"
    await broker.declare(topic)
    assert await driver.has_listeners(topic) is False
    await broker.declare(topic, groups=["billing"])
    assert await driver.has_listeners(topic) is True
    async with connect(servicebus.url.partition("&admin_port")[0]) as plain:
        assert await driver_of(plain).has_listeners(topic) is None


async def test_a_group_of_one_consumer_goes_with_it(broker: Broker, topic: str) -> None:
    await broker.declare(topic)
    recorder = Recorder()
    async with broker.consumer(topic, group=None, handler=recorder):
        await broker.producer().publish(Message(topic, b"x"))
        await recorder.until_done(1, 15)

    async def gone() -> bool:
        return not [each async for each in driver_of(broker)._admin.client.list_subscriptions(topic)]

    await eventually(gone, 10, "its subscription is gone")


async def test_removing_such_a_group_is_not_waited_for_long(
    servicebus: ServiceBusServer, broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "GOODBYE", 0.05)
    await broker.declare(topic)
    consumer = broker.consumer(topic, group=None, handler=Recorder())
    await consumer.start()

    async def stands_still(call: Coroutine[object, object, object], doing: str) -> None:
        call.close()
        await asyncio.Event().wait()

    monkeypatch.setattr(driver_of(broker)._admin, "ask", stands_still)
    await asyncio.wait_for(consumer.stop(), 5)
    monkeypatch.undo()
