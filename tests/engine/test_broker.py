"""Opening and closing a broker, whatever happens meanwhile; and names and event loops that are not its own."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.scenario import Recorder, turns, until, virtual
from things_kit import Broker, BrokerUnavailable, ClosedError, ConfigError, Message, connect
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.naming import looks_like_pattern
from things_kit.testing import MockHandler
from things_kit.testing.stub import BARE, StubDriver, broker_of


def message(value: str, topic: str = "t") -> Message:
    return Message(topic, value.encode(), id=value)


def now() -> float:
    return asyncio.get_running_loop().time()


# --- opening


@virtual
async def test_opening_at_once_from_several_sides_connects_once() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    go_on = driver.hold("open")
    opening = [asyncio.create_task(broker.open()) for _ in range(3)]
    await turns()
    go_on.set()
    await asyncio.gather(*opening)
    assert driver.calls.count("open") == 1
    await broker.close()


@virtual
async def test_if_one_of_those_who_open_is_cancelled_the_others_connect_all_the_same() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    go_on = driver.hold("open")
    first, second = asyncio.create_task(broker.open()), asyncio.create_task(broker.open())
    await turns()
    first.cancel()
    await turns()
    go_on.set()
    await second
    assert first.cancelled()
    assert driver.calls.count("open") == 1
    await broker.close()


@virtual
async def test_if_all_who_open_are_cancelled_who_comes_then_connects_anew() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    go_on = driver.hold("open")
    first, second = asyncio.create_task(broker.open()), asyncio.create_task(broker.open())
    await turns()
    first.cancel()
    second.cancel()
    third = asyncio.create_task(broker.open())
    await turns()
    go_on.set()
    await third
    assert first.cancelled()
    assert second.cancelled()
    assert driver.calls.count("open") == 2
    await broker.close()


@virtual
async def test_who_opens_what_is_away_waits_no_longer_for_being_one_of_many() -> None:
    driver = StubDriver()
    broker = broker_of(driver, "?publish_timeout=5")
    driver.hold("open")
    began = asyncio.get_running_loop().time()
    results = await asyncio.gather(*(broker.open() for _ in range(10)), return_exceptions=True)
    assert {type(result) for result in results} == {BrokerUnavailable}
    assert asyncio.get_running_loop().time() - began < 6
    await broker.close()


@virtual
async def test_closing_while_it_opens_ends_both_at_once() -> None:
    driver = StubDriver()
    driver.hold("open")
    broker = broker_of(driver)
    opening, waiting = asyncio.create_task(broker.open()), asyncio.create_task(broker.open())
    await turns()
    await broker.close()
    for call in (opening, waiting):
        with pytest.raises(ClosedError, match="closed"):
            await call
    assert now() < 1
    assert driver.calls[-1] == "close"


@virtual
async def test_closing_while_it_is_entered_disconnects_once() -> None:
    driver = StubDriver()
    driver.hold("open")
    broker = broker_of(driver)
    entering = asyncio.create_task(broker.__aenter__())
    await turns()
    await broker.close()
    with pytest.raises(ClosedError):
        await entering
    assert driver.calls.count("close") == 1


@virtual
async def test_a_broker_that_could_not_be_opened_may_be_opened_later() -> None:
    driver = StubDriver()
    driver.fail("open", ConfigError("no such vhost"))
    broker = broker_of(driver)
    with pytest.raises(ConfigError, match="no such vhost"):
        await broker.open()
    await broker.open()
    await broker.close()


# --- closing


@virtual
async def test_a_consumer_that_does_not_stop_cleanly_does_not_disconnect_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(10))
    driver.put(message("1", "a"))
    broker = broker_of(driver)
    await broker.open()
    good = broker.consumer("a", group="g", handler=recorder)
    bad = [broker.consumer(topic, group="g", handler=recorder) for topic in ("b", "c")]
    for consumer in (good, *bad):
        await consumer.start()
    await until(lambda: recorder.running)
    stops = [consumer.stop for consumer in bad]

    async def refuse() -> None:
        raise RuntimeError("it does not stop")

    for consumer in bad:
        monkeypatch.setattr(consumer, "stop", refuse)
    with pytest.raises(RuntimeError, match="it does not stop"):
        await broker.close()
    assert len(driver.acknowledged) == 1
    assert driver.calls[-1] == "close"
    assert [record.message.count("as well: it does not stop") for record in caplog.records] == [1]
    for stop in stops:
        await stop()


@virtual
async def test_a_handler_that_closes_the_broker_goes_on_at_once_and_its_message_is_settled() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    took: list[float] = []

    async def handle(_: Message) -> None:
        before = now()
        await broker.close()
        took.append(now() - before)

    await broker.open()
    consumer = broker.consumer("t", group="g", handler=handle)
    await consumer.start()
    driver.put(message("1"), message("2"))
    await consumer.wait()
    await until(lambda: driver.calls[-1] == "close")
    assert took == [0]
    assert now() < 1
    assert len(driver.acknowledged) == 1
    assert len(driver.groups["t", "g"].pending) == 1


@virtual
async def test_what_goes_wrong_after_a_handler_closed_the_broker_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StubDriver()
    broker = broker_of(driver)

    async def refuse() -> None:
        driver.calls.append("close")
        raise RuntimeError("the socket is stuck")

    async def close(_: Message) -> None:
        await broker.close()

    monkeypatch.setattr(driver, "close", refuse)
    await broker.open()
    consumer = broker.consumer("t", group="g", handler=close)
    await consumer.start()
    driver.put(message("1"))
    await consumer.wait()
    await until(lambda: driver.calls[-1] == "close")
    await turns()
    assert "did not close cleanly: the socket is stuck" in caplog.text


@virtual
async def test_closing_flushes_for_a_few_seconds_and_then_says_what_was_not_confirmed() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    await broker.open()
    confirm = driver.hold("send")
    publishing = [asyncio.create_task(broker.producer().publish(message(str(n)))) for n in range(2)]
    await turns()
    await broker.close()
    assert 2 < now() <= 4
    for call in publishing:
        with pytest.raises(BrokerUnavailable, match="whether the message arrived is not known"):
            await call
    confirm.set()


@virtual
async def test_what_is_confirmed_within_these_seconds_is_published() -> None:
    driver = StubDriver()
    broker = broker_of(driver)
    await broker.open()
    confirm = driver.hold("send")
    publishing = asyncio.create_task(broker.producer().publish(message("1")))
    await turns()
    closing = asyncio.create_task(broker.close())
    await asyncio.sleep(2)
    confirm.set()
    await asyncio.gather(closing, publishing)
    assert now() < 2.5


@virtual
async def test_a_broker_that_is_away_does_not_hold_up_its_closing() -> None:
    driver = StubDriver()
    driver.fail("send", *[ConnectionLost("away")] * 1000)
    broker = broker_of(driver)
    await broker.open()
    publishing = asyncio.create_task(broker.producer().publish(message("1")))
    await turns()
    await broker.close()
    assert now() <= 4
    with pytest.raises(BrokerUnavailable):
        await publishing


@virtual
async def test_a_driver_that_does_not_disconnect_is_left_to_itself(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StubDriver()
    monkeypatch.setattr(driver, "close", asyncio.Event().wait)
    broker = broker_of(driver)
    await broker.open()
    await broker.close()
    assert now() == pytest.approx(4, abs=0.1)
    assert "did not disconnect within 4 s" in caplog.text


# --- another event loop


async def handle(_: Message) -> None: ...


USES: list[Callable[[Broker], Awaitable[Any]]] = [
    lambda broker: broker.open(),
    lambda broker: broker.close(),
    lambda broker: broker.declare("t"),
    lambda broker: broker.remove("t"),
    lambda broker: broker.lag("t", "g"),
    lambda broker: broker.replay("t-dlq"),
    lambda broker: broker.health(),
    lambda broker: broker.producer().publish(message("1")),
    lambda broker: broker.producer().publish_batch([message("1")]),
    lambda broker: broker.producer().close(),
    lambda broker: broker.consumer("t", group="g", handler=handle).start(),
    lambda broker: broker.consumer("t", group="g", handler=handle).stop(),
    lambda broker: broker.consumer("t", group="g", handler=handle).wait(),
]


@pytest.mark.parametrize("use", USES, ids=range(len(USES)))
def test_a_broker_used_in_another_event_loop_says_so(use: Callable[[Broker], Awaitable[Any]]) -> None:
    async def here() -> Any:
        return await use(broker)

    broker = broker_of(StubDriver())
    with asyncio.Runner() as own, asyncio.Runner() as other:
        own.run(broker.open())
        with pytest.raises(
            ConfigError, match="stub://stub was opened in another event loop: open a broker in"
        ):
            other.run(here())
        own.run(broker.close())


def test_a_broker_that_could_not_be_opened_in_one_loop_may_be_opened_in_another() -> None:
    driver = StubDriver()
    driver.fail("open", ConfigError("no"))
    broker = broker_of(driver)
    with pytest.raises(ConfigError, match="no"):
        asyncio.run(broker.open())

    async def again() -> None:
        async with broker:
            await broker.declare("t")

    asyncio.run(again())


# --- names that look like patterns


@pytest.mark.parametrize("name", ["*", "a*", "a.*.b", "#", "a.#", "#.a", "a/#", ">", "a.>", "a.b.>"])
def test_a_name_that_stands_for_others_elsewhere_looks_like_a_pattern(name: str) -> None:
    assert looks_like_pattern(name)


@pytest.mark.parametrize("name", ["a", "a#", "c#.net", "a>b", "->", "a.b-c_d", "+", "a.+.b", "?", "%", "[a]"])
def test_other_names_do_not(name: str) -> None:
    assert not looks_like_pattern(name)


@virtual
async def test_a_name_that_looks_like_a_pattern_is_refused_by_publish_and_consumer() -> None:
    driver = StubDriver(BARE)
    async with broker_of(driver) as broker:
        with pytest.raises(ConfigError, match=r"'orders\.\*' looks like a pattern, which nothing here is"):
            await broker.producer().publish(message("1", "orders.*"))
        with pytest.raises(ConfigError, match=r"'orders\.#' looks like a pattern"):
            await broker.consumer(["t", "orders.#"], group="g", handler=handle).start()
    assert "orders.*" not in driver.topics
    assert "orders.#" not in driver.topics


@virtual
async def test_unless_the_broker_has_a_topic_of_that_very_name() -> None:
    driver, recorder = StubDriver(BARE), Recorder()
    driver.put(message("1", "orders.*"))
    async with broker_of(driver) as broker:
        await broker.declare("orders.#")
        for topic in ("orders.*", "orders.#"):
            await broker.producer().publish(message("2", topic))
        async with broker.consumer(["orders.*", "orders.#"], group="g", handler=recorder):
            await until(lambda: len(driver.acknowledged) == 3)


@virtual
async def test_asking_for_such_a_topic_waits_out_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    driver = StubDriver(BARE)
    driver.put(message("1", "orders.*"))
    driver.fail("subscribe", ConnectionLost("away"))
    with caplog.at_level(logging.WARNING):
        async with broker_of(driver) as broker:
            await broker.producer().publish(message("2", "orders.*"))
    assert len(driver.topics["orders.*"]) == 2


# --- removing


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_removing_a_group_leaves_the_topic_and_the_others(scheme: str, tmp_path: Path) -> None:
    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/events.db"
    async with connect(url) as broker:
        await broker.declare("t", ["gone", "other"])
        await broker.producer().publish(message("1"))
        first, other = MockHandler(), MockHandler()
        async with broker.consumer("t", group="gone", handler=first):
            await first.handled(1)
            await broker.remove("t", group="gone")
            again = await first.handled(2)  # it subscribes anew, and its group begins at the earliest
        await broker.remove("t", group="gone")
        await broker.remove("t", group="never there")
        await broker.remove("no topic", group="gone")
        assert await broker.lag("t", "gone") == 1
        assert await broker.lag("t", "other") == 1
        async with broker.consumer("t", group="other", handler=other):
            await other.handled(1)
    assert [m.value for m in again] == [b"1", b"1"]


@virtual
async def test_a_removed_group_is_not_declared_again_with_its_topic() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        await broker.declare("t", ["gone", "kept"])
        await broker.remove("t", group="gone")
        del driver.topics["t"]
        driver.groups.clear()
        await broker.producer().publish(message("1"))
    assert set(driver.groups) == {("t", "kept")}


@virtual
async def test_what_a_removed_group_had_put_aside_goes_with_it() -> None:
    driver = StubDriver(BARE)
    driver.put(message("1", "t-gone-retry-10s"), message("2", "t-other-retry-10s"))
    async with broker_of(driver) as broker:
        await broker.remove("t", group="gone")
    assert set(driver.topics) == {"t-other-retry-10s"}


@virtual
async def test_groups_to_declare_may_come_one_by_one() -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        await broker.declare("t", groups=(name for name in ("a", "b")))  # type: ignore[arg-type] # works all the same
    assert set(driver.groups) == {("t", "a"), ("t", "b")}


@pytest.mark.parametrize("groups", ["billing", b"billing", None, 5])
@virtual
async def test_what_is_no_list_of_groups_is_refused(groups: Any) -> None:
    driver = StubDriver()
    async with broker_of(driver) as broker:
        with pytest.raises(ConfigError, match="groups must be a list of names; it is"):
            await broker.declare("t", groups=groups)
    assert not driver.groups
