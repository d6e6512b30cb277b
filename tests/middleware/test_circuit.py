"""The circuit breaker."""

import asyncio
import logging
from typing import Any

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Batch, BatchError, ConfigError, Message, RetryPolicy
from things_kit.engine.driver import Capabilities
from things_kit.middleware import Later, circuit_breaker
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])
QUICK = RetryPolicy(attempts=3, first=0.1, limit=0.1, jitter=0.0)


def message(value: str, key: str | None = None) -> Message:
    return Message("t", value.encode(), None if key is None else key.encode(), id=value)


class Dependency:
    """Something that is down until a moment of the loop's time."""

    def __init__(self, up_at: float) -> None:
        self.up_at = up_at

    async def __call__(self, each: Message) -> None:
        if asyncio.get_running_loop().time() < self.up_at:
            raise ConnectionError("down")


@KINDS
@virtual
async def test_while_a_dependency_is_down_nothing_is_begun_and_nothing_is_lost(
    native: Capabilities, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "things_kit.circuit_breaker")
    breaker = circuit_breaker(failures=5, reset=30)
    driver, recorder = StubDriver(native), Recorder(Dependency(100))
    driver.put(*(message(str(n), f"k{n % 4}") for n in range(20)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=QUICK, concurrency=2, middleware=[breaker]),
    ):
        await until(lambda: breaker.state == "open")
        opened_at, begun = asyncio.get_running_loop().time(), len(recorder.seen)
        await asyncio.sleep(29)
        assert len(recorder.seen) == begun <= 6
        await until(lambda: len(driver.acknowledged) == 20)
    assert not driver.topics["t-dlq"]
    assert breaker.state == "closed"
    probes = [time - opened_at for time in recorder.times[begun:] if time < 100]
    assert 2 <= len(probes) <= 4
    for key in range(4):
        mine = [int(each.value) for each in recorder.ended if int(each.value) % 4 == key]
        assert mine == sorted(mine)
    ours = [record.getMessage() for record in caplog.records if record.name == "things_kit.circuit_breaker"]
    assert ours[0].startswith(
        "the circuit breaker opens after 5 failures in a row, the last ConnectionError('down')"
    )
    tries = "the circuit breaker is half-open: one message is tried"
    stays = "the circuit breaker stays open: ConnectionError('down'); tried again in 30 s"
    assert ours[1:-1] == [tries, stays] * len(probes) + [tries]
    assert ours[-1] == "the circuit breaker closes: a message was handled"


@virtual
async def test_the_failure_that_opens_it_is_no_attempt_and_those_before_are() -> None:
    breaker = circuit_breaker(failures=2, reset=10)
    driver, recorder = StubDriver(), Recorder(Dependency(5))
    driver.put(message("1"), message("2"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=QUICK, middleware=[breaker]),
    ):
        await until(lambda: len(driver.acknowledged) == 2)
    attempts = {each.id: each.attempt for each in recorder.ended}
    assert attempts == {"1": 2, "2": 1}


@virtual
async def test_one_message_alone_opens_nothing() -> None:
    breaker = circuit_breaker(failures=2, reset=10)
    driver, recorder = StubDriver(), Recorder(Dependency(1e9))
    driver.put(message("1"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=QUICK, middleware=[breaker]),
    ):
        await until(lambda: len(driver.topics["t-dlq"]) == 1)
    assert breaker.state == "closed"
    assert recorder.attempts == [1, 2, 3]


@virtual
async def test_another_answer_ends_the_row() -> None:
    breaker = circuit_breaker(failures=2, reset=10)

    async def answer(each: Message) -> None:
        if each.value != b"2":
            raise ConnectionError("down")
        raise ValueError("not of the dependency")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1"), message("2"), message("3"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=recorder, retry=RetryPolicy(attempts=1), middleware=[breaker]
        ),
    ):
        await until(lambda: len(driver.topics["t-dlq"]) == 3)
    assert breaker.state == "closed"


@virtual
async def test_each_try_takes_another_key() -> None:
    breaker = circuit_breaker(failures=2, reset=10)

    async def answer(each: Message) -> None:
        if each.key == b"bad":
            raise ConnectionError("always")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("x1", "bad"), message("x2", "bad"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=recorder, retry=RetryPolicy(attempts=1), middleware=[breaker]
        ),
    ):
        await until(lambda: len(driver.topics["t-dlq"]) >= 1)
        driver.put(message("g1", "good"))
        await until(lambda: b"g1" in [each.value for each in recorder.ended])


@virtual
async def test_of_a_list_what_failed_by_it_goes_back_and_the_rest_is_done() -> None:
    breaker = circuit_breaker(failures=1, reset=10)
    calls: list[list[bytes]] = []

    async def handle(messages: list[Message]) -> None:
        calls.append([each.value for each in messages])
        if len(calls) == 1:
            raise BatchError({0: ConnectionError("down"), 2: ConnectionError("down")})

    driver = StubDriver()
    driver.put(message("1"), message("2"), message("3"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=handle, batch=Batch(size=3, wait=1), retry=RetryPolicy(attempts=1),
            middleware=[breaker],
        ),
    ):  # fmt: skip
        await until(lambda: len(driver.acknowledged) == 3)
    assert calls[0] == [b"1", b"2", b"3"]
    assert sorted(value for call in calls[1:] for value in call) == [b"1", b"3"]
    assert not driver.topics["t-dlq"]


@virtual
async def test_what_was_put_off_before_anything_was_called_says_nothing_of_the_dependency() -> None:
    breaker, calls = circuit_breaker(failures=2, reset=10), 0

    async def answer(each: Message) -> None:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise ConnectionError("down")
        if calls <= 4:
            raise Later(5)
        assert breaker.state == "half-open"

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1"), message("2"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=QUICK, middleware=[breaker]),
    ):
        await until(lambda: breaker.state == "closed" and calls > 2)
    assert calls >= 5


@pytest.mark.parametrize(
    "said",
    [
        {"reset": 0},
        {"failures": 0},
        {"failures": True},
        {"reset": -1},
        {"on": ()},
        {"on": (5,)},
        {"on": BaseException},
    ],
    ids=str,
)
def test_what_it_cannot_be_is_said(said: Any) -> None:
    with pytest.raises(ConfigError, match="circuit_breaker"):
        circuit_breaker(**said)
