import asyncio

import pytest

from tests.engine.scenario import virtual
from things_kit import BrokerUnavailable, ConfigError, Message, PublishError
from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.transmission import Transmission
from things_kit.engine.url import BrokerURL
from things_kit.testing.stub import StubDriver


def transmission_of(driver: StubDriver, query: str = "?publish_timeout=10") -> Transmission:
    return Transmission(driver, BrokerURL.parse(f"stub://me:pw@host{query}"))


def message(value: str, topic: str = "t") -> Message:
    return Message(topic, value.encode(), id=value)


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_a_topic_is_declared_before_its_first_message_only() -> None:
    driver = StubDriver()
    transmission = transmission_of(driver)
    for _ in range(3):
        assert await transmission.send([message("1"), message("2", "u")], now() + 10) == [None, None]
    assert driver.calls.count("declare") == 2
    transmission.forget("t")
    await transmission.send([message("1")], now() + 10)
    assert driver.calls.count("declare") == 3


@virtual
async def test_a_send_waits_out_an_outage() -> None:
    driver = StubDriver()
    transmission = transmission_of(driver)
    driver.fail("declare", ConnectionLost("away"))
    driver.fail("send", *[ConnectionLost("away")] * 4)
    assert await transmission.send([message("1")], now() + 10) == [None]
    assert transmission.away is None
    assert len(driver.topics["t"]) == 1


@virtual
async def test_waits_grow_while_the_broker_stays_away() -> None:
    driver = StubDriver()
    driver.fail("send", *[ConnectionLost("away")] * 1000)
    await transmission_of(driver).send([message("1")], now() + 60)
    assert 25 < driver.calls.count("send") < 45


@virtual
async def test_an_outage_longer_than_the_deadline_is_broker_unavailable_with_its_cause() -> None:
    driver, cause = StubDriver(), OSError("refused")
    lost = ConnectionLost("nobody there")
    lost.__cause__ = cause
    driver.fail("send", *[lost] * 1000)
    results = await transmission_of(driver).send([message("1"), message("2")], now() + 10)
    assert now() == pytest.approx(10, abs=0.01)
    assert [type(result) for result in results] == [BrokerUnavailable] * 2
    assert str(results[0]) == "stub://host did not answer within 10 s: nobody there"
    assert results[0] is not None
    assert results[0].__cause__ is cause


@virtual
async def test_a_broker_that_never_answers_is_unavailable_at_the_deadline() -> None:
    driver = StubDriver()
    driver.hold("send")
    (result,) = await transmission_of(driver).send([message("1")], now() + 10)
    assert now() == pytest.approx(10, abs=0.01)
    assert str(result) == "stub://host did not answer within 10 s"


@virtual
async def test_a_timeout_of_the_drivers_own_is_not_taken_for_ours() -> None:
    driver = StubDriver()
    driver.fail("lag", TimeoutError("the driver's"))
    with pytest.raises(TimeoutError, match="the driver's"):
        await transmission_of(driver).patiently(lambda: driver.lag("t", "g"))


@virtual
async def test_a_topic_removed_behind_our_back_is_declared_and_sent_to_again() -> None:
    driver = StubDriver()
    transmission = transmission_of(driver)
    await transmission.send([message("1")], now() + 10)
    await driver.remove("t")
    results = await transmission.send([message("2"), message("3", "u"), message("4")], now() + 10)
    assert results == [None, None, None]
    assert [m.value for m in driver.topics["t"]] == [b"2", b"4"]
    assert [m.value for m in driver.topics["u"]] == [b"3"]


@virtual
async def test_nothing_is_declared_when_told_so() -> None:
    driver = StubDriver()
    driver.put(message("0", "known"))
    transmission = transmission_of(driver, "?declare=false")
    unknown, known = await transmission.send([message("1"), message("2", "known")], now() + 10)
    assert known is None
    assert isinstance(unknown, PublishError)
    assert str(unknown) == "stub://host has no topic 't': declare it first"
    assert "declare" not in driver.calls


@virtual
async def test_a_topic_that_stays_unknown_fails_in_place_of_being_sent_for_ever() -> None:
    driver = StubDriver()
    driver.refuse = lambda _: UnknownTopic("t")
    (result,) = await transmission_of(driver).send([message("1")], now() + 10)
    assert isinstance(result, PublishError)


@virtual
async def test_a_hostile_topic_fails_only_its_own_messages() -> None:
    driver = StubDriver()
    driver.refuse_topic = lambda topic: ConfigError(f"{topic} is no name") if topic == "bad/" else None
    sent = [message("1"), message("2", "bad/"), message("3"), message("4", "bad/"), message("5", "u")]
    results = await transmission_of(driver).send(sent, now() + 10)
    assert [str(result) if result else None for result in results] == [
        None, "bad/ is no name", None, "bad/ is no name", None,
    ]  # fmt: skip
    assert [m.value for m in driver.topics["t"]] == [b"1", b"3"]


@virtual
async def test_why_a_topic_cannot_be_declared_is_not_lost_after_it_vanished() -> None:
    driver = StubDriver()
    transmission = transmission_of(driver)
    await transmission.send([message("1")], now() + 10)
    await driver.remove("t")
    driver.refuse_topic = lambda _: ConfigError("no more topics for you")
    (result,) = await transmission.send([message("2")], now() + 10)
    assert "no more topics for you" in f"{result} {result.__cause__ if result else ''}"


@virtual
async def test_results_are_in_the_order_of_the_messages() -> None:
    driver, refusals = StubDriver(), {b"2": PublishError("two"), b"5": PublishError("five")}
    driver.refuse = lambda m: refusals.get(m.value)
    sent = [message(str(n)) for n in range(7)]
    results = await transmission_of(driver).send(sent, now() + 10)
    assert [refusals.get(m.value) for m in sent] == results


@virtual
async def test_a_broker_that_refuses_the_whole_send_refuses_each() -> None:
    driver = StubDriver()
    driver.fail("send", PublishError("quota"))
    results = await transmission_of(driver).send([message("1"), message("2")], now() + 10)
    assert [str(result) for result in results] == ["quota", "quota"]
