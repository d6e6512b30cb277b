"""What the doctor says of Service Bus."""

from datetime import timedelta

from azure.servicebus.aio.management import ServiceBusAdministrationClient

from things_kit import Broker, connect
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.facts import Finding, Question
from things_kit.testing.servers.servicebus import ServiceBusServer

from .common import driver_of


def admin(broker: Broker) -> ServiceBusAdministrationClient:
    return driver_of(broker)._admin.client


async def findings(broker: Broker, topic: str, group: str | None = None) -> list[Finding]:
    return [f for f in await diagnose(broker, Question(topic, group, retry_span=3600)) if f.level != "ok"]


async def test_what_we_declared_is_well(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    await broker.declare(f"{topic}-dlq", groups=["dead-letters"])
    assert await findings(broker, topic, "billing") == []


async def test_a_topic_that_is_missing_or_has_no_group_is_told(broker: Broker, topic: str) -> None:
    assert "There is no such topic" in (await findings(broker, topic))[0].what
    await broker.declare(topic)
    assert "drops what is published" in (await findings(broker, topic))[0].what


async def test_a_group_that_is_missing_is_an_error(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["billing"])
    assert ("error", "group shipping") in {
        (each.level, each.subject) for each in await findings(broker, topic, "shipping")
    }


async def test_a_subscription_of_somebody_else_is_looked_at_closely(broker: Broker, topic: str) -> None:
    await broker.declare(topic)
    await admin(broker).create_subscription(
        topic,
        "billing",
        max_delivery_count=3,
        default_message_time_to_live=timedelta(seconds=60),
        auto_delete_on_idle=timedelta(hours=1),
    )
    found = [each for each in await findings(broker, topic, "billing") if each.subject == "group billing"]
    said = {(each.level, " ".join(each.what.split(" ")[:3])) for each in found}
    assert said == {
        ("error", "It keeps messages"),
        ("warning", "After 3 deliveries"),
        ("warning", "It is deleted,"),
        ("warning", "Its subscription has"),
    }
    assert all(each.remedy for each in found)


async def test_without_a_management_api_it_says_so(servicebus: ServiceBusServer) -> None:
    bare = servicebus.url.partition("&admin_port")[0]
    async with connect(bare) as broker:
        assert "management API is not known" in (await findings(broker, "orders"))[-1].what


async def test_sessions_and_locks_that_do_not_fit_the_url_are_errors(broker: Broker, topic: str) -> None:
    await broker.declare(topic)
    await admin(broker).create_subscription(
        topic,
        "billing",
        requires_session=True,
        lock_duration=timedelta(seconds=5),
        max_delivery_count=2000,
    )
    found = {each.remedy: each.level for each in await findings(broker, topic, "billing")}
    assert found["Connect with ?sessions=true."] == "error"
    assert found["Connect with ?lease=5."] == "error"
