"""What the doctor finds at a RabbitMQ, and what it advises."""

import pytest

pytest.importorskip("pika")

from things_kit import Broker, Message, connect
from things_kit.brokers.rabbitmq.facts import add_server
from things_kit.engine.conclusions import conclude
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import Facts, Question
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.servers.rabbitmq import RabbitMQServer


async def test_a_group_that_is_consumed_is_well(broker: Broker, topic: str) -> None:
    async with broker.consumer(topic, group="g", handler=Recorder()):
        findings = await diagnose(broker, Question(topic=topic, group="g"))
    assert {finding.level for finding in findings} == {"ok"}
    assert any("1 consumer of" in finding.what for finding in findings)


async def ill(broker: Broker, topic: str) -> set[str]:
    findings = await diagnose(broker, Question(topic=topic, group="g"))
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    return {finding.subject for finding in findings if finding.level != "ok"}


async def test_a_topic_a_group_and_then_dead_letters_that_are_missing_are_told(
    broker: Broker, topic: str
) -> None:
    assert await ill(broker, topic) == {f"topic {topic}", "group g"}
    await broker.declare(topic, groups=["g"])
    assert await ill(broker, topic) == {f"dead letter {topic}-dlq"}


async def test_messages_for_which_nobody_comes_are_an_error(broker: Broker, topic: str) -> None:
    await broker.declare(topic, groups=["g"])
    await broker.producer().publish(Message(topic, b"x"))
    findings = await diagnose(broker, Question(topic=topic, group="g"))
    [stuck] = [finding for finding in findings if finding.level == "error"]
    assert stuck.what == f"It is stuck: 1 message of {topic} wait, and nobody receives."


async def test_several_consumers_are_told_how_order_is_kept(rabbitmq: RabbitMQServer, topic: str) -> None:
    async with (
        connect(rabbitmq.url) as one,
        connect(rabbitmq.url) as two,
        one.consumer(topic, group="g", handler=Recorder()),
        two.consumer(topic, group="g", handler=Recorder()),
    ):
        findings = await diagnose(one, Question(topic=topic, group="g"))
    assert any("exclusive=true" in (finding.remedy or "") for finding in findings)


@pytest.mark.parametrize(
    ("properties", "level", "what"),
    [
        ({"product": "RabbitMQ", "version": "3.8.9"}, "error", "delayed retries can be lost"),
        ({"product": "RabbitMQ", "version": "3.10.8"}, "ok", "RabbitMQ 3.10.8"),
        ({"product": "LavinMQ", "version": "2.0"}, "warning", "only RabbitMQ has been tried"),
    ],
)
def test_the_version_is_judged(properties: dict[str, str], level: str, what: str) -> None:
    facts = Facts()
    add_server(facts, "amqp://localhost/", properties)
    [finding] = conclude(facts, Question(), Capabilities(), declares=True)
    assert finding.level == level
    assert what in finding.what
