import asyncio
import re
from contextlib import aclosing
from typing import Any

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import BrokerUnavailable, ConfigError, Message, PublishError, Reject, RetryPolicy, Topic
from things_kit.engine.driver import Capabilities, ConnectionLost
from things_kit.engine.replay import browse, purge
from things_kit.testing.stub import BARE, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize(
    "native",
    [BARE, NATIVE_LANES, Capabilities(lag=False), Capabilities(lease=3.0)],
    ids=["bare", "lanes", "no lag", "lease"],
)


def dead(value: str, group: str = "g", **headers: str) -> Message:
    ours = {
        "original-topic": "t",
        "consumer-group": group,
        "attempts": "5",
        "error-type": "ValueError",
        "error": "no",
        "timestamp": "2024-01-01T00:00:00Z",
    }
    return Message("t-dlq", value.encode(), b"k", {**ours, **headers}, id=value)


async def filled(native: Capabilities = BARE, *messages: Message) -> StubDriver:
    driver = StubDriver(native)
    await driver.declare("t-dlq", ["dead-letters"])
    driver.put(*messages)
    return driver


@KINDS
@virtual
async def test_dead_letters_go_back_to_where_they_came_from(native: Capabilities) -> None:
    driver = await filled(native, *(dead(str(n), mine="x") for n in range(3)))
    async with broker_of(driver) as broker:
        assert await broker.replay("t-dlq") == 3
        assert await broker.replay("t-dlq") == 0
    assert [(m.value, m.key, m.id) for m in driver.topics["t"]] == [
        (str(n).encode(), b"k", str(n)) for n in range(3)
    ]
    assert [m.headers for m in driver.topics["t"]] == [{"mine": "x", "replay-group": "g"}] * 3
    assert not driver.breaches


@virtual
async def test_a_broker_that_takes_its_time_is_read_to_its_end() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(4)))
    now = asyncio.get_running_loop().time()
    for entry, wait in zip(driver.groups["t-dlq", "dead-letters"].pending, (3, 3, 6, 9), strict=True):
        entry.due = now + wait
    async with broker_of(driver) as broker:
        assert await broker.replay("t-dlq") == 4


@virtual
async def test_what_others_have_in_hand_is_not_waited_for_without_end() -> None:
    async def dwell(_: Message) -> None:
        await asyncio.Event().wait()

    driver, recorder = await filled(BARE, dead("1"), dead("2")), Recorder(dwell)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t-dlq", group="dead-letters", handler=recorder, max_in_flight=1, drain_timeout=0.1),
    ):
        await until(lambda: recorder.seen)
        async with asyncio.timeout(10):
            assert await broker.replay("t-dlq") == 1


@virtual
async def test_a_limit_is_kept() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(5)))
    async with broker_of(driver) as broker:
        assert await broker.replay("t-dlq", limit=2) == 2
        assert await broker.lag("t-dlq", group="dead-letters") == 3
        assert await broker.replay("t-dlq", limit=0) == 0
        assert await broker.replay("t-dlq") == 3
    assert [m.value for m in driver.topics["t"]] == [b"0", b"1", b"2", b"3", b"4"]


async def later(_: Message) -> bool:
    return False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"limit": -1}, "limit must be a whole number from 0, or None; it is -1"),
        ({"limit": 1.5}, "limit must be a whole number from 0, or None; it is 1.5"),
        ({"limit": "5"}, "limit must be a whole number from 0, or None; it is '5'"),
        ({"limit": True}, "limit must be a whole number from 0, or None; it is True"),
        ({"where": "error"}, "where must be a function of a message, or None; it is 'error'"),
        (
            {"where": later},
            "where must be a plain function: it answered with something that has yet to be awaited",
        ),
        ({"to": ""}, "to must be a name; it is ''"),
        ({"to": 5}, "to must be a name; it is 5"),
        (
            {"to": "t-dlq"},
            "to='t-dlq' names the dead letter that is replayed; without it each goes where it came from",
        ),
        ({"to": Topic("t-dlq", bytes)}, "to='t-dlq' names the dead letter that is replayed"),
        ({"topic": None}, "topic must be a name; it is None"),
    ],
)
@virtual
async def test_what_cannot_be_asked_for_is_refused_and_all_dead_letters_stay(
    arguments: dict[str, Any], said: str
) -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(5)))
    async with broker_of(driver) as broker:
        with pytest.raises(ConfigError, match=re.escape(said)):
            await broker.replay(**{"topic": "t-dlq", **arguments})
        assert await broker.lag("t-dlq", group="dead-letters") == 5
    assert "t" not in driver.topics


@virtual
async def test_purge_refuses_a_function_that_has_yet_to_be_awaited() -> None:
    driver = await filled(BARE, dead("0"))
    async with broker_of(driver) as broker:
        with pytest.raises(ConfigError, match="where must be a plain function"):
            await purge(broker, "t-dlq", where=later)  # type: ignore[arg-type] # the mistake
        assert await broker.lag("t-dlq", group="dead-letters") == 1


@virtual
async def test_where_sees_the_dead_letter_and_what_it_leaves_out_stays() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(6)))
    seen: list[Message] = []

    def odd(message: Message) -> bool:
        seen.append(message)
        return int(message.value) % 2 == 1

    async with broker_of(driver) as broker:
        assert await broker.replay("t-dlq", where=odd, limit=2) == 2
        assert [m.value for m in driver.topics["t"]] == [b"1", b"3"]
        assert seen[0].headers["error-type"] == "ValueError"
        assert await broker.lag("t-dlq", group="dead-letters") == 4
        assert await broker.replay("t-dlq") == 4
    assert not driver.breaches


@virtual
async def test_a_replay_elsewhere_is_for_all_groups() -> None:
    driver = await filled(BARE, dead("1"))
    async with broker_of(driver) as broker:
        assert await broker.replay("t-dlq", to="quarantine") == 1
    (message,) = driver.topics["quarantine"]
    assert "replay-group" not in message.headers


@virtual
async def test_only_the_group_that_failed_handles_a_replay() -> None:
    async def answer(message: Message) -> None:
        if "replay-group" not in message.headers:
            raise Reject("at first")

    driver, failing, other = StubDriver(), Recorder(answer), Recorder()
    driver.put(Message("t", b"1", b"k", id="1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="failing", handler=failing),
        broker.consumer("t", group="other", handler=other),
    ):
        await until(lambda: driver.topics["t-dlq"] and other.seen)
        assert await broker.replay("t-dlq") == 1
        await until(lambda: len(failing.seen) == 2)
        await asyncio.sleep(60)
    assert other.values == [b"1"]
    assert failing.seen[1][1].id == "1"


@virtual
async def test_a_publish_that_fails_in_part_keeps_those_that_failed() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(5)))
    driver.refuse = lambda m: PublishError("no") if m.topic == "t" and m.value in {b"1", b"3"} else None
    async with broker_of(driver) as broker:
        with pytest.raises(PublishError, match="2 of 5"):
            await broker.replay("t-dlq")
        assert await broker.lag("t-dlq", group="dead-letters") == 2
        driver.refuse = lambda _: None
        assert await broker.replay("t-dlq") == 2
    assert sorted(m.value for m in driver.topics["t"]) == [b"0", b"1", b"2", b"3", b"4"]


@virtual
async def test_a_dead_letter_is_acknowledged_only_after_its_publish_is_confirmed() -> None:
    driver = await filled(BARE, dead("1"))
    confirm = driver.hold("send")
    async with broker_of(driver) as broker:
        replaying = asyncio.create_task(broker.replay("t-dlq"))
        await asyncio.sleep(5)
        assert not driver.acknowledged
        confirm.set()
        assert await replaying == 1
    assert len(driver.acknowledged) == 1


@virtual
async def test_what_is_no_dead_letter_stays_and_says_so() -> None:
    driver = await filled(BARE, Message("t-dlq", b"?", id="strange"))
    async with broker_of(driver) as broker:
        with pytest.raises(ConfigError, match="'strange' in 't-dlq' is no dead letter"):
            await broker.replay("t-dlq")
        assert await broker.lag("t-dlq", group="dead-letters") == 1


@KINDS
@virtual
async def test_no_handler_sees_the_mark_of_a_bare_dead_letter_and_replay_does(native: Capabilities) -> None:
    driver, watcher = await filled(native), Recorder()
    await driver.declare("t-dlq", ["watchers"])
    driver.put(Message("t-dlq", b"v", None, {"type": "x", "tk-dead-letter": ""}, id="i"))
    async with broker_of(driver) as broker:
        async with broker.consumer("t-dlq", group="watchers", handler=watcher):
            await until(lambda: watcher.ended)
        with pytest.raises(ConfigError, match="does not say where it came from"):
            await broker.replay("t-dlq")
        assert await broker.replay("t-dlq", to="t") == 1
    assert [message.headers for message in watcher.ended] == [{"type": "x"}]
    assert [message.headers for message in driver.topics["t"]] == [{"type": "x"}]


@pytest.mark.parametrize("native", [BARE, Capabilities(lag=False)], ids=["lag", "no lag"])
@virtual
async def test_messages_that_fail_again_meanwhile_are_left_for_the_next_time(native: Capabilities) -> None:
    async def answer(_: Message) -> None:
        raise Reject("always")

    driver, recorder = StubDriver(native), Recorder(answer)
    driver.put(*(Message("t", str(n).encode(), id=str(n)) for n in range(3)))
    policy = RetryPolicy(attempts=1)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=policy):
        await until(lambda: len(driver.topics["t-dlq"]) == 3)
        assert await broker.replay("t-dlq") == 3
        await until(lambda: len(driver.topics["t-dlq"]) == 6)
    assert len(recorder.seen) == 6


@virtual
async def test_leases_last_while_a_replay_waits_for_its_publish() -> None:
    driver = await filled(Capabilities(lease=3.0), dead("1"), dead("2"))
    confirm = driver.hold("send")
    async with broker_of(driver, "?publish_timeout=100") as broker:
        replaying = asyncio.create_task(broker.replay("t-dlq"))
        await asyncio.sleep(30)
        confirm.set()
        assert await replaying == 2
    assert not driver.expired


@virtual
async def test_a_connection_lost_while_reading_is_broker_unavailable() -> None:
    driver = await filled(BARE, dead("1"))
    async with broker_of(driver) as broker:
        driver.fail("fetch", ConnectionLost("gone"))
        with pytest.raises(BrokerUnavailable, match="stub://stub was lost while reading: gone"):
            await broker.replay("t-dlq")
        assert await broker.replay("t-dlq") == 1


@pytest.mark.parametrize("call", ["fetch", "settle"])
@virtual
async def test_the_receiver_is_closed_whatever_happens(call: str) -> None:
    driver = await filled(BARE, dead("1"), dead("2"))
    async with broker_of(driver) as broker:
        driver.fail(call, *[ConnectionLost("gone")] * 9)
        with pytest.raises(BrokerUnavailable):
            await broker.replay("t-dlq")
    assert driver.calls.count("close receiver") == driver.calls.count("subscribe") == 1


@virtual
async def test_where_that_raises_gives_everything_back() -> None:
    def where(_: Message) -> bool:
        raise LookupError("a slip")

    driver = await filled(BARE, dead("1"), dead("2"))
    async with broker_of(driver) as broker:
        with pytest.raises(LookupError):
            await broker.replay("t-dlq", where=where)
        assert await broker.replay("t-dlq") == 2


# --- browse and purge


@KINDS
@virtual
async def test_browsing_shows_all_and_takes_nothing(native: Capabilities) -> None:
    driver = await filled(native, *(dead(str(n)) for n in range(5)))
    async with broker_of(driver) as broker:
        for _ in range(2):
            assert [m.value async for m in browse(broker, "t-dlq")] == [str(n).encode() for n in range(5)]
        assert len(driver.groups["t-dlq", "dead-letters"].pending) == 5
    assert not driver.acknowledged
    assert not driver.breaches


@virtual
async def test_browsing_that_ends_early_gives_back_as_well() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(5)))
    async with broker_of(driver) as broker:
        async with aclosing(browse(broker, "t-dlq")) as messages:
            async for _ in messages:
                break
        assert len([m async for m in browse(broker, "t-dlq", limit=3)]) == 3
        assert len([m async for m in browse(broker, "t-dlq")]) == 5


@virtual
async def test_browsing_holds_no_more_than_it_told_the_broker() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(1200)))
    async with broker_of(driver) as broker:
        assert len([m async for m in browse(broker, "t-dlq")]) == 1200
    assert driver.breaches == []


@virtual
async def test_browsing_keeps_the_attempts_of_what_it_shows() -> None:
    driver = await filled(NATIVE_LANES, dead("1"))
    driver.groups["t-dlq", "dead-letters"].pending[0].attempt = 3
    async with broker_of(driver) as broker:
        for _ in range(2):
            assert [m.attempt async for m in browse(broker, "t-dlq")] == [3]


@virtual
async def test_purging_acknowledges_what_where_says() -> None:
    driver = await filled(BARE, *(dead(str(n)) for n in range(5)))

    def small(message: Message) -> bool:
        return int(message.value) < 2

    async with broker_of(driver) as broker:
        assert await purge(broker, "t-dlq", where=small) == 2
        assert await broker.lag("t-dlq", group="dead-letters") == 3
        assert await purge(broker, "t-dlq") == 3
        assert await purge(broker, "t-dlq") == 0


@virtual
async def test_a_topic_that_is_not_there_has_nothing_to_replay() -> None:
    async with broker_of(StubDriver()) as broker:
        assert await broker.replay("nothing-dlq") == 0


@virtual
async def test_a_replay_keeps_what_the_user_had_under_our_names() -> None:
    letter: dict[str, Any] = {"original-header-error": "mine", "original-timestamp": "2020-01-01T00:00:00Z"}
    driver = await filled(BARE, dead("1", **letter))
    async with broker_of(driver) as broker:
        await broker.replay("t-dlq")
    (message,) = driver.topics["t"]
    assert message.headers == {"error": "mine", "replay-group": "g"}
    assert message.timestamp is not None
    assert message.timestamp.year == 2020
