"""What `things-kit doctor` finds in a real NATS, and how settings are judged that one server cannot have."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("nats")

from nats.js import JetStreamContext

from things_kit import Broker, Message, connect
from things_kit.brokers.nats.facts import NEEDS, add_stream, group_facts, limits_of
from things_kit.engine.conclusions import conclude
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import Facts, Finding, Question, Server
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.nats import NATSServer

nats_server = shared(NATSServer, "nats")

GROUP = {
    "config": {"ack_policy": "explicit", "filter_subject": "orders"},
    "num_pending": 0,
    "num_ack_pending": 0,
    "num_waiting": 1,
}


@pytest.fixture
async def broker(nats_server: NATSServer) -> AsyncIterator[Broker]:
    async with connect(nats_server.url) as broker:
        yield broker


def ill(findings: list[Finding]) -> list[tuple[str, str]]:
    """What is not well, with the level; each has a remedy."""
    assert all(finding.remedy for finding in findings if finding.level != "ok")
    return [(finding.level, finding.what) for finding in findings if finding.level != "ok"]


@pytest.mark.usefixtures("nats_server")  # skips where there is none
async def test_what_the_look_itself_may_not_create_its_consumers_may() -> None:
    question, told = Question("orders", "billing"), "a message that kills its process comes for ever"
    with NATSServer() as server:
        async with connect(server.url) as consuming:
            await consuming.declare("orders", groups=["billing"])
        async with connect(f"{server.url}?declare=false") as looking:
            assert told not in str(await diagnose(looking, question, declares=True))
            assert told in str(await diagnose(looking, question))


async def test_a_topic_with_a_group_at_work_is_well(broker: Broker, topic: str) -> None:
    async with broker.consumer(topic, group="g", handler=Recorder()):
        findings = await diagnose(broker, Question(topic=topic, group="g", concurrency=8, retry_span=60))
    assert ill(findings) == []
    assert any("It is NATS" in finding.what for finding in findings)


async def test_what_is_missing_is_said(nats_server: NATSServer, broker: Broker, topic: str) -> None:
    assert ill(await diagnose(broker, Question(topic=topic)))[0][0] == "warning"
    async with connect(f"{nats_server.url}?declare=false") as strict:
        [(level, what)] = ill(await diagnose(strict, Question(topic=topic)))
        assert (level, "declare=false" in what) == ("error", True)
        await broker.declare(topic)
        findings = ill(await diagnose(strict, Question(topic=topic, group="g")))
        assert [level for level, _ in findings] == ["warning", "error"]  # the dead letter, and the group


async def test_a_name_that_cannot_be_is_said(broker: Broker) -> None:
    [(level, what)] = ill(await diagnose(broker, Question(topic="a.*")))
    assert (level, "cannot have a topic" in what) == ("error", True)


async def test_a_group_for_which_nobody_asks_is_stuck(broker: Broker, topic: str) -> None:
    await broker.declare(topic, ["g"])
    await broker.declare(f"{topic}-dlq", ["dead-letters"])
    await broker.producer().publish(Message(topic, b"x"))
    assert ("error", f"It is stuck: 1 message of {topic} wait, and nobody receives.") in ill(
        await diagnose(broker, Question(topic=topic, group="g"))
    )
    gate = Recorder(Gate())
    async with broker.consumer(topic, group="g", handler=gate, drain_timeout=0.05):
        await gate.until_began(1, 10)
        assert ill(await diagnose(broker, Question(topic=topic, group="g"))) == []


async def test_a_stream_that_deletes_early_is_said(
    broker: Broker, stream: JetStreamContext, topic: str
) -> None:
    await stream.add_stream(name=topic, subjects=[topic], max_age=100, max_bytes=10_000)
    await broker.declare(f"{topic}-dlq")
    [(age, said), (size, _)] = ill(await diagnose(broker, Question(topic=topic, retry_span=3600)))
    assert (age, size) == ("error", "warning")
    assert "keeps messages for 1.67 min, but they may be retried for 1 h" in said


def said(facts: Facts) -> list[tuple[str, str]]:
    question = Question("orders", "g")
    return ill(list(conclude(facts, question, Capabilities(retained=True), declares=True)))


def judged(**config: Any) -> list[tuple[str, str]]:
    facts = Facts()
    state = {"bytes": 950, "messages": 5}
    add_stream(facts, "orders", {"config": {"name": "t", **config}, "state": state}, asked=True)
    return said(facts)


@pytest.mark.parametrize(
    ("config", "level", "text"),
    [
        ({"no_ack": True}, "error", "confirms nothing"),
        ({"sealed": True}, "error", "sealed"),
        ({"discard": "new", "max_bytes": 900}, "error", "refuses new messages"),
        ({"discard": "new", "max_bytes": 1000}, "warning", "refuses new messages"),
        ({"max_msgs": 10}, "warning", "deletes the oldest"),
        ({"retention": "workqueue"}, "warning", "work queue"),
        ({"retention": "interest"}, "warning", "groups that exist"),
        ({"storage": "memory"}, "warning", "in memory"),
    ],
)
def test_settings_of_a_stream_are_judged(config: dict[str, Any], level: str, text: str) -> None:
    [(found, what)] = judged(**config)
    assert (found, text in what) == (level, True)


@pytest.mark.parametrize(
    ("config", "state", "text"),
    [
        ({"max_deliver": 5}, {}, "gives a message up after 5 deliveries"),
        ({"max_ack_pending": 10}, {"num_ack_pending": 10}, "no more are handed out"),
        ({"ack_policy": "all"}, {}, "ack_policy 'all'"),
        ({"filter_subject": "other"}, {}, "receives other, not orders"),
        ({}, {"paused": True}, "paused"),
    ],
)
def test_settings_of_a_group_are_judged(config: dict[str, Any], state: dict[str, Any], text: str) -> None:
    info: dict[str, Any] = {**GROUP, **state, "config": {**GROUP["config"], **config}}  # type: ignore[dict-item]
    [(level, what), *_] = said(Facts(groups=[group_facts("g", "orders", info)]))
    assert (level, text in what) == ("error", True)


def test_a_dead_letter_that_is_kept_for_less_long_is_said() -> None:
    facts = Facts()
    add_stream(facts, "orders", {"config": {"name": "o", "max_age": 0}}, asked=True)
    add_stream(facts, "orders-dlq", {"config": {"name": "d", "max_age": 5_000_000_000}}, asked=False)
    [(level, what)] = said(facts)
    assert (level, "for 5 s, shorter than orders" in what) == ("warning", True)


def test_old_servers_and_full_accounts_are_said() -> None:
    account = {"storage": 95, "streams": 3, "limits": {"max_storage": 100, "max_streams": 3}}
    old = Facts(
        servers=[Server("nats://x", "NATS", "2.8.4", NEEDS)], limits=[*limits_of("nats://x", account)]
    )
    assert [level for level, _ in said(old)] == ["warning", "warning", "error"]
    assert said(Facts(servers=[Server("nats://x", "NATS", "2.10.1", NEEDS)])) == []
