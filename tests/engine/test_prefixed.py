"""`?topic_prefix=` on a stub: what the driver is asked, and what the engine sees of it."""

import inspect
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import pytest

from tests.engine.scenario import virtual
from things_kit import Broker, ConfigError, Message, NobodyListens, connect
from things_kit.engine import driver as contract
from things_kit.engine.collected import Collected
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import Capabilities, Delivery, Later, Release, Scheduled, Subscription
from things_kit.engine.facts import Facts, Factual, GroupFacts, Question, TopicFacts
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.looking import GroupRow, overview
from things_kit.engine.prefixed import Prefix, PrefixedDriver, PrefixedReceiver, _Inbox
from things_kit.engine.url import BrokerURL
from things_kit.messaging.names import REPLAY_GROUP
from things_kit.testing.stub import NATIVE_DELAY, StubDriver

DUE = datetime(2026, 1, 31, tzinfo=UTC)


class Able:
    """A driver with all that a driver may have, which writes down the names that it is asked with."""

    capabilities = Capabilities(delay=True, schedule_ids=True, schedules=True)

    def __init__(self) -> None:
        self.copies: list[Later] = []
        self.entries: list[Scheduled] = []
        self.asked: list[Any] = []

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        return cls()

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def ping(self) -> None: ...
    async def declare(self, topic: str, groups: Sequence[str]) -> None: ...
    async def remove(self, topic: str, group: str | None = None) -> None: ...

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        return [None] * len(messages)

    async def subscribe(self, subscription: Subscription) -> Any:
        return AbleReceiver()

    async def lag(self, topic: str, group: str) -> int | None:
        return 0 if (topic, group) == ("test-orders", "test-billing") else None

    async def has_listeners(self, topic: str) -> bool | None:
        self.asked.append(topic)
        return topic != "test-nobody"

    async def topics(self) -> Sequence[str]:
        return ["test-orders", "orders", "test-"]

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return {topic: ["test-billing", "foreign"] for topic in topics}

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        self.copies += copies
        return [None] * len(copies)

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        self.entries += entries
        return [nobody_listens(entry.message.topic) for entry in entries]

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        self.asked.append((topic, schedule_id))
        return True

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        return [each for each in self.entries if each.message.topic == topic][:limit]

    async def facts(self, question: Question) -> Facts:
        self.asked.append(question.wanted)
        facts = Facts()
        facts.topics.append(TopicFacts(name="test-orders", groups=["test-billing"]))
        facts.groups.append(GroupFacts(name="test-billing", topic="test-orders", place="queue test-billing"))
        facts.find("warning", "group test-billing", "It is slow.")
        return facts


class AbleReceiver:
    """A receiver with all that a receiver may have."""

    async def quiesce(self) -> None: ...
    async def extend(self, deliveries: Any) -> None: ...
    async def overdue(self) -> int | None: ...
    async def close(self) -> None: ...
    async def settle(self, acknowledged: Any, released: Any) -> None:
        self.released = [release.delivery.message for release in released]

    async def fetch(self, limit: int, wait: float) -> None: ...
    def credit(self, window: int) -> None: ...
    async def mark(self, delivery: Any, suspect: int) -> None: ...


def _protocols() -> list[type]:
    """All that a driver, or a receiver, may have beside what each has."""
    known = [each for _, each in inspect.getmembers(contract, inspect.isclass)]
    return [
        *(each for each in known if getattr(each, "_is_runtime_protocol", False)),
        Factual,
    ]


def test_every_protocol_of_drivers_and_receivers_is_one_of_the_prefixed_ones_too() -> None:
    receiver = PrefixedReceiver(AbleReceiver(), _Inbox(_subscription(Collected()), Prefix("test-")))
    for protocol in _protocols():
        of_receivers = protocol in {contract.Fetching, contract.Pushed, contract.Marking}
        prefixed = receiver if of_receivers else PrefixedDriver(Able(), "test-")
        assert isinstance(prefixed, protocol), protocol.__name__


def test_what_a_driver_cannot_do_the_prefixed_one_cannot_either() -> None:
    plain = StubDriver(NATIVE_DELAY)
    for protocol in _protocols():
        assert isinstance(PrefixedDriver(plain, "test-"), protocol) == isinstance(plain, protocol), (
            protocol.__name__
        )


@virtual
async def test_copies_and_scheduled_messages_have_the_names_of_the_broker() -> None:
    able = Able()
    driver: Any = PrefixedDriver(able, "test-")
    message = Message("orders", b"1", headers={REPLAY_GROUP: "billing"})
    await driver.send_later([Later(message, "billing", DUE)])
    assert [(c.message.topic, c.group, c.message.headers[REPLAY_GROUP]) for c in able.copies] == [
        ("test-orders", "test-billing", "test-billing")
    ]
    [refused] = await driver.schedule([Scheduled(message, DUE, "reminder")])
    assert "'orders'" in str(refused)
    assert [each.message for each in await driver.upcoming("orders", 10)] == [message]
    assert await driver.cancel("orders", "reminder")
    assert able.asked == [("test-orders", "reminder")]


@virtual
async def test_that_nobody_listens_is_said_by_the_name_without_the_prefix() -> None:
    able = Able()
    async with Broker(able, BrokerURL.parse("able://here?topic_prefix=test-")) as broker:
        with pytest.raises(NobodyListens, match=r"declare\('nobody'"):
            await broker.producer().publish(Message("nobody", b"1"))
    assert able.asked == ["test-nobody"]


@virtual
async def test_who_looks_is_shown_what_has_the_prefix_without_it() -> None:
    able = Able()
    async with Broker(able, BrokerURL.parse("able://here?topic_prefix=test-")) as broker:
        assert await overview(broker) == [GroupRow("orders", "billing", 0)]
        findings = await diagnose(broker, Question("orders", "billing"))
    assert ("group billing", "It is slow.") in [(each.subject, each.what) for each in findings]
    assert able.asked == [[("test-orders", "test-billing"), ("test-orders-dlq", "test-dead-letters")]]


@virtual
async def test_what_goes_back_has_the_names_of_the_broker_while_the_driver_has_it() -> None:
    """A driver may publish what is released, with a delay or a higher attempt, or what an inbox refuses."""
    inbox, names = Collected(), Prefix("test-")
    between = _Inbox(_subscription(inbox), names)
    receiver = AbleReceiver()
    delivery = Delivery(Message("test-orders", b"1", headers={REPLAY_GROUP: "test-billing"}))
    assert between.put([delivery]) == ()
    assert delivery.message == Message("orders", b"1", headers={REPLAY_GROUP: "billing"})
    await PrefixedReceiver(receiver, between).settle([], [Release(delivery, delay=1.0, attempt=2)])
    assert receiver.released == [Message("test-orders", b"1", headers={REPLAY_GROUP: "test-billing"})]
    assert delivery.message.topic == "orders"
    inbox.put = lambda deliveries: deliveries  # type: ignore[method-assign] # it is told to quiesce
    again = Delivery(Message("test-orders", b"2"))
    assert between.put([again]) == [again]
    assert again.message.topic == "test-orders"


def test_a_prefix_that_looks_like_a_pattern_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"topic_prefix must not look like a pattern; topic_prefix is '\*-'"
    ):
        connect("memory://?topic_prefix=*-")


def test_code_that_is_not_async_publishes_with_the_prefix() -> None:
    with connect("memory://prefixed?topic_prefix=test-").blocking() as producer:
        producer.publish(Message("orders", b"1"))

    @virtual
    async def look() -> None:
        async with connect("memory://prefixed") as broker:
            assert await broker.lag("test-orders", "g") == 1

    look()


def _subscription(inbox: Collected) -> Subscription:
    return Subscription(topic="orders", group="billing", inbox=inbox)
