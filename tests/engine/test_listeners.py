"""A topic that no group has, on brokers that would drop the message."""

import asyncio
import logging
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import (
    BrokerUnavailable,
    ConfigError,
    Message,
    NobodyListens,
    PublishError,
    RetryPolicy,
    Topic,
)
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.listeners import nobody_listens
from things_kit.engine.url import BrokerURL
from things_kit.testing.stub import NATIVE_DELAY, StubDriver, broker_of


class Answering(StubDriver):
    """A broker that says of each message whether it reached a group, as RabbitMQ does."""

    def __init__(self) -> None:
        super().__init__(NATIVE_DELAY)
        self.refuse = lambda m: None if self._listens(m.topic) else nobody_listens(m.topic)

    def _listens(self, topic: str) -> bool:
        return any(of == topic for of, _ in self.groups)


class Silent(StubDriver):
    """A broker that drops in silence, but can be asked, as SNS, Pub/Sub and Service Bus."""

    def __init__(self, *answers: bool | None) -> None:
        super().__init__(NATIVE_DELAY)
        self.asked: list[str] = []
        self._answers = list(answers)

    async def has_listeners(self, topic: str) -> bool | None:
        await self.enter("has_listeners")
        self.asked.append(topic)
        if self._answers:
            return self._answers.pop(0)
        return any(of == topic for of, _ in self.groups)


def message(value: str = "1", topic: str = "t") -> Message:
    return Message(topic, value.encode(), id=value)


def published(driver: StubDriver, topic: str = "t") -> list[bytes]:
    return [m.value for m in driver.topics.get(topic, ())]


@pytest.mark.parametrize("kind", [Answering, Silent])
def test_a_publish_that_nobody_would_get_is_refused_at_once_and_says_what_to_declare(
    kind: type[StubDriver],
) -> None:
    @virtual
    async def scenario() -> None:
        driver = kind()
        async with broker_of(driver) as broker:
            producer = broker.producer()
            with pytest.raises(NobodyListens, match=r"broker\.declare\('t', groups=\[\.\.\.\]\)"):
                await producer.publish(message())
            assert asyncio.get_running_loop().time() == 0
            await broker.declare("t", ["g"])
            await producer.publish(message("2"))
        assert published(driver) == [b"2"]

    scenario()


@pytest.mark.parametrize("kind", [Answering, Silent])
def test_others_of_the_batch_are_confirmed(kind: type[StubDriver]) -> None:
    @virtual
    async def scenario() -> None:
        driver = kind()
        async with broker_of(driver) as broker:
            await broker.declare("u", ["g"])
            with pytest.raises(PublishError) as raised:
                await broker.producer().publish_batch([message("1"), message("2", "u"), message("3")])
        assert set(raised.value.failures) == {0, 2}
        assert {type(error) for error in raised.value.failures.values()} == {NobodyListens}
        assert published(driver, "u") == [b"2"]

    scenario()


@pytest.mark.parametrize("kind", [Answering, Silent])
def test_it_is_dropped_where_the_url_says_so(kind: type[StubDriver]) -> None:
    @virtual
    async def scenario() -> None:
        driver = kind()
        async with broker_of(driver, "?unrouted=drop") as broker:
            await broker.producer().publish(message())
        assert len(driver.batches) == 1

    scenario()


def test_what_to_do_with_it_is_one_of_two_words() -> None:
    with pytest.raises(ConfigError, match="unrouted"):
        BrokerURL.parse("stub://host?unrouted=keep")


@virtual
async def test_a_broker_is_asked_once_a_minute_while_somebody_listens() -> None:
    driver = Silent()
    async with broker_of(driver) as broker:
        await broker.declare("t", ["g"])
        producer = broker.producer()
        for _ in range(110):
            await producer.publish(message())
            await asyncio.sleep(1)
    assert driver.asked == ["t", "t"]


@virtual
async def test_that_nobody_listens_is_never_remembered() -> None:
    driver = Silent(False, False, True)
    async with broker_of(driver) as broker:
        producer = broker.producer()
        for _ in range(2):
            with pytest.raises(NobodyListens):
                await producer.publish(message())
        await producer.publish(message())
    assert published(driver) == [b"1"]


@virtual
async def test_a_topic_that_was_removed_behind_our_back_is_asked_again_once_it_is_there() -> None:
    """Its groups went with it, and who was there before says nothing."""
    driver = Silent()
    async with broker_of(driver) as broker:
        await driver.declare("t", ["somebody-elses"])
        producer = broker.producer()
        await producer.publish(message())
        await driver.remove("t")
        driver.groups.clear()
        driver.refuse = lambda m: None if m.topic in driver.topics else UnknownTopic()
        with pytest.raises(NobodyListens):
            await producer.publish(message("2"))
        await driver.declare("t", ["somebody-elses"])
        await producer.publish(message("3"))
    assert published(driver) == [b"3"]


@virtual
async def test_without_the_right_to_ask_there_is_one_warning_and_it_is_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = Silent(*[None] * 10)
    async with broker_of(driver) as broker:
        producer = broker.producer()
        with caplog.at_level(logging.WARNING, "things_kit.broker"):
            for _ in range(5):
                await producer.publish(message())
                await producer.publish(message("1", "u"))
                await asyncio.sleep(30)
    assert [record.message.count("not allowed to ask") for record in caplog.records] == [1]
    assert len(published(driver)) == 5


@virtual
async def test_asking_waits_out_an_outage() -> None:
    driver = Silent()
    driver.fail("has_listeners", *[ConnectionLost("away")] * 5)
    async with broker_of(driver) as broker:
        await broker.declare("t", ["g"])
        await broker.producer().publish(message())
    assert published(driver) == [b"1"]


@virtual
async def test_removing_a_topic_forgets_that_somebody_listened() -> None:
    driver = Silent(True, False)
    async with broker_of(driver) as broker:
        producer = broker.producer()
        await producer.publish(message())
        await broker.remove("t")
        with pytest.raises(NobodyListens):
            await producer.publish(message())


# --- what must not get lost


@pytest.mark.parametrize("kind", [Answering, Silent])
@pytest.mark.parametrize("query", ["", "?unrouted=drop"])
def test_what_must_arrive_waits_for_somebody_who_listens(kind: type[StubDriver], query: str) -> None:
    @virtual
    async def scenario() -> None:
        driver = kind()
        async with broker_of(driver, query) as broker:
            publishing = asyncio.create_task(
                broker.producer(insist=True).publish_batch([message("1"), message("2")])
            )
            await asyncio.sleep(10)
            assert not publishing.done()
            await driver.declare("t", ["g"])
            await publishing
        assert published(driver) == [b"1", b"2"]

    scenario()


@pytest.mark.parametrize("kind", [Answering, Silent])
def test_what_a_handler_returns_for_a_topic_that_no_group_has_is_told_soon_and_every_ten_seconds(
    kind: type[StubDriver],
) -> None:
    orders, bills = Topic("orders", str), Topic("bills", str)
    times: list[float] = []

    async def bill(order: str) -> str:
        return f"bill of {order}"

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no group has the topic 'bills'" in record.getMessage():
                times.append(asyncio.get_running_loop().time())

    @virtual
    async def scenario() -> None:
        driver = kind()
        async with (
            broker_of(driver) as broker,
            broker.consumer(orders, group="billing", handler=bill, publish=bills),
        ):
            await broker.producer().publish(orders, "o-1")
            await asyncio.sleep(60)
            assert not published(driver, "bills")
            await driver.declare("bills", ["shipping"])
            await asyncio.sleep(30)
            assert published(driver, "bills") == [b"bill of o-1"]

    log, clock = logging.getLogger("things_kit.broker"), Clock()
    log.addHandler(clock)
    try:
        scenario()
    finally:
        log.removeHandler(clock)
    assert 1.5 <= times[0] <= 4
    assert 4 <= len(times) <= 6
    assert all(9 <= later - earlier <= 16 for earlier, later in pairwise(times))


@pytest.mark.parametrize("kind", [Answering, Silent])
def test_in_the_end_the_broker_is_unavailable_for_it(kind: type[StubDriver]) -> None:
    @virtual
    async def scenario() -> None:
        driver = kind()
        async with broker_of(driver, "?publish_timeout=10") as broker:
            with pytest.raises(BrokerUnavailable, match="within 10 s: no group has the topic") as raised:
                await broker.producer(insist=True).publish(message())
        assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.1)
        assert isinstance(raised.value.__cause__, NobodyListens)

    scenario()


@virtual
async def test_a_group_that_comes_in_between_gets_the_messages_in_order() -> None:
    driver = Answering()
    refusals = {b"1": 1, b"2": 1}

    def refuse(m: Message) -> Exception | None:
        refusals[m.value] = refusals.get(m.value, 0) - 1
        return nobody_listens("t") if refusals[m.value] >= 0 else None

    driver.refuse = refuse
    async with broker_of(driver) as broker:
        await broker.producer(insist=True).publish_batch([message(str(n)) for n in range(4)])
    assert published(driver)[-3:] == [b"1", b"2", b"3"]


def gone(driver: StubDriver, names: Sequence[tuple[str, str]]) -> None:
    for name in names:
        del driver.groups[name]


@pytest.mark.parametrize("kind", [Answering, Silent])
@pytest.mark.parametrize("topic_too", [False, True])
def test_a_dead_letter_whose_group_was_deleted_gets_it_back(kind: type[StubDriver], topic_too: bool) -> None:
    @virtual
    async def scenario() -> None:
        async def fail(_: Message) -> None:
            raise ValueError

        driver = kind()
        async with broker_of(driver) as broker:
            consumer = broker.consumer("t", group="g", handler=Recorder(fail), retry=RetryPolicy(attempts=1))
            async with consumer:
                gone(driver, [("t-dlq", "dead-letters")])
                if topic_too:
                    del driver.topics["t-dlq"]
                await asyncio.sleep(100)  # what was known of the group is forgotten by then
                await broker.producer().publish(message())
                await until(lambda: driver.acknowledged)
        assert published(driver, "t-dlq") == [b"1"]
        assert len(driver.groups["t-dlq", "dead-letters"].pending) == 1

    scenario()


@virtual
async def test_a_dead_letter_that_nobody_would_keep_is_kept_by_its_own_topic() -> None:
    async def fail(_: Message) -> None:
        raise ValueError

    driver = Answering()
    async with broker_of(driver, "?declare=false") as broker:
        await driver.declare("t", ["g"])
        await driver.declare("t-dlq", [])
        driver.put(message())
        recorder = Recorder(fail)
        async with broker.consumer("t", group="g", handler=recorder, retry=RetryPolicy(attempts=1)):
            await asyncio.sleep(120)
            assert not driver.acknowledged
            assert len(recorder.seen) > 1
            await driver.declare("t-dlq", ["dead-letters"])
            await until(lambda: driver.acknowledged)
    assert published(driver, "t-dlq") == [b"1"]
