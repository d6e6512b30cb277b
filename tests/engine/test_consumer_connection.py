"""A consumer whose connection is lost: it comes back, loses nothing and keeps the order of keys."""

import asyncio
from collections.abc import Callable

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Batch, BatchError, BrokerUnavailable, Message, PublishError, Reject, Retry, RetryPolicy
from things_kit.engine.driver import Capabilities, ConnectionLost
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver, broker_of

KINDS = pytest.mark.parametrize(
    "native",
    [BARE, NATIVE_DELAY, NATIVE_LANES, Capabilities(lease=3.0)],
    ids=["bare", "delay", "lanes", "lease"],
)


def message(value: str, key: str | None = None, topic: str = "t") -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value)


@KINDS
@pytest.mark.parametrize("call", ["fetch", "settle", "extend"])
@virtual
async def test_a_connection_lost_in_any_call_loses_nothing(call: str, native: Capabilities) -> None:
    if call == "extend" and native.lease is None:
        return
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(0.5))
    driver.put(*(message(str(n), f"k{n % 3}") for n in range(30)))
    driver.fail(call, None, ConnectionLost("gone"), None, ConnectionLost("gone again"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, concurrency=4):
        await until(lambda: {m.value for m in driver.acknowledged} == {str(n).encode() for n in range(30)})
    assert driver.calls.count("subscribe") == 3
    assert not recorder.overlaps
    assert not driver.breaches


@KINDS
@virtual
async def test_a_key_is_not_handled_twice_at_once_across_a_reconnect(native: Capabilities) -> None:
    driver, recorder = StubDriver(native), Recorder(lambda _: asyncio.sleep(20))
    driver.put(message("1", "k"), message("2", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, concurrency=4):
        await until(lambda: recorder.running)
        driver.cut()
        await until(lambda: len(driver.acknowledged) == 2)
    assert recorder.values == [b"1", b"1", b"2"]
    assert not recorder.overlaps
    assert not driver.breaches


@virtual
async def test_what_waited_for_its_turn_is_not_handled_after_the_connection_was_lost() -> None:
    driver, recorder = StubDriver(), Recorder(lambda _: asyncio.sleep(10))
    driver.put(*(message(str(n)) for n in range(4)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: recorder.running)
        driver.cut()
        await until(lambda: len(driver.acknowledged) == 4)
    assert recorder.values == [b"0", b"0", b"1", b"2", b"3"]


@virtual
async def test_a_back_off_is_forgotten_with_its_connection() -> None:
    async def answer(_: Message) -> None:
        if len(recorder.seen) == 1:
            raise Retry(after=600)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"), message("2", "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: len(recorder.seen) == 1)
        driver.cut()
        await until(lambda: len(driver.acknowledged) == 2, within=10)
        await asyncio.sleep(1000)
    assert recorder.values == [b"1", b"1", b"2"]
    assert not driver.breaches


@virtual
async def test_a_failure_of_a_lost_delivery_is_left_to_its_redelivery() -> None:
    async def answer(message: Message) -> None:
        await asyncio.sleep(10)
        raise ValueError(message.value)

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"))
    policy = RetryPolicy(attempts=2, first=1.0)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=policy):
        await until(lambda: recorder.running)
        driver.cut()
        await until(lambda: driver.acknowledged)
    assert recorder.attempts == [1, 1, 2]


@virtual
async def test_it_comes_back_with_growing_waits_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        driver.fail("subscribe", *[ConnectionLost("still away")] * 10)
        driver.cut(ConnectionLost("the cable"))
        await asyncio.sleep(5)
        assert 4 < driver.calls.count("subscribe") < 10
        assert consumer.health().reason == "the broker is away: still away"
        await until(lambda: consumer.health().reason is None)
        driver.put(message("1"))
        await until(lambda: recorder.seen)
    assert [r.getMessage() for r in caplog.records if "away" in r.getMessage()] == [
        "t as g: the broker is away: the cable"
    ]
    assert "t as g: back" in [r.getMessage() for r in caplog.records]


@virtual
async def test_a_broker_that_hands_out_but_takes_nothing_back_is_not_hammered() -> None:
    driver, recorder = StubDriver(), Recorder()
    driver.put(message("1"))
    driver.fail("settle", *[ConnectionLost("refused")] * 10_000)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await asyncio.sleep(60)
        assert driver.calls.count("subscribe") < 45


@virtual
async def test_every_receiver_is_closed() -> None:
    driver, recorder = StubDriver(), Recorder()
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        for _ in range(5):
            driver.cut()
            await asyncio.sleep(10)
    assert driver.calls.count("close receiver") == driver.calls.count("subscribe") == 6


@virtual
async def test_the_redelivery_of_a_dead_letter_that_failed_meanwhile_is_handled() -> None:
    """Its lane goes on when the burial ends, though nothing else arrives that would wake a worker."""

    async def answer(_: Message) -> None:
        raise Reject("bad")

    driver, recorder = StubDriver(), Recorder(answer)
    driver.put(message("1", "k"))
    refused = [True]
    driver.refuse = lambda m: PublishError("full") if m.topic == "t-dlq" and refused[0] else None
    confirm = driver.hold("send")
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder):
        await until(lambda: driver.attempted)
        driver.cut()
        await asyncio.sleep(5)  # subscribed again; the message came again and waits behind its burial
        confirm.set()
        await until(lambda: len(recorder.seen) == 2, within=120)
        refused[0] = False


# --- batches


class Batches:
    """A batch handler that takes 10 s and notes what it got, and which key it got while it had it already."""

    def __init__(self, answer: Callable[[list[Message]], None] = lambda _: None) -> None:
        self.seen: list[list[bytes]] = []
        self.overlaps: list[bytes] = []
        self._running: list[bytes] = []
        self._answer = answer

    @property
    def values(self) -> list[bytes]:
        return [value for batch in self.seen for value in batch]

    async def handle(self, messages: list[Message]) -> None:
        self.seen.append([m.value for m in messages])
        keys = {m.key for m in messages if m.key is not None}
        self.overlaps += [key for key in keys if key in self._running]
        self._running += keys
        try:
            await asyncio.sleep(10)
            self._answer(messages)
        finally:
            for key in keys:
                self._running.remove(key)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
@virtual
async def test_a_batch_that_ends_after_its_connection_frees_its_keys_once(size: int) -> None:
    driver, batches = StubDriver(), Batches()
    driver.put(message("1", "k"), message("2", "k"), message("3", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=batches.handle, batch=Batch(size=size, wait=0.01), concurrency=3
        ),
    ):
        await until(lambda: batches.seen)
        driver.cut()
        for n in range(4, 9):
            await asyncio.sleep(7)
            driver.put(message(str(n), "k"))
        await until(lambda: len({m.value for m in driver.acknowledged}) == 8)
    assert not batches.overlaps
    assert not driver.breaches


@pytest.mark.parametrize("size", [1, 2, 3, 10])
@virtual
async def test_a_batch_that_fails_after_its_connection_is_left_to_its_redelivery(size: int) -> None:
    failed: list[bool] = []

    def answer(messages: list[Message]) -> None:
        if not failed:
            failed.append(True)
            raise BatchError(dict.fromkeys(range(len(messages)), ValueError("no")))

    driver, batches = StubDriver(), Batches(answer)
    driver.put(message("1", "k"), message("2", "k"), message("3", "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=batches.handle, batch=Batch(size=size, wait=0.01)),
    ):
        await until(lambda: batches.seen)
        driver.cut()
        await until(lambda: {m.value for m in driver.acknowledged} == {b"1", b"2", b"3"})
    assert batches.values[min(size, 3) :] == [b"1", b"2", b"3"]
    assert not driver.breaches


@virtual
async def test_a_batch_that_gathers_drops_what_was_lost() -> None:
    driver, batches = StubDriver(), Batches()
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=batches.handle, batch=Batch(size=10, wait=30)),
    ):
        driver.put(message("1", "k"), message("2", "k"))
        await asyncio.sleep(1)
        driver.cut()
        await until(lambda: len(driver.acknowledged) == 2)
    assert batches.seen == [[b"1", b"2"]]
    assert not driver.breaches


@virtual
async def test_a_batch_that_gathers_takes_nothing_behind_a_head_that_was_lost() -> None:
    """Two batches fill side by side; what came again of the lost key belongs to the one that has its head."""
    driver, batches = StubDriver(), Batches()
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=batches.handle, batch=Batch(size=2, wait=60), concurrency=2),
    ):
        driver.put(message("1", "k"))
        await asyncio.sleep(1)
        driver.put(
            message("a", "a"), message("b", "b")
        )  # one of them joins 1, the other fills the next batch
        await asyncio.sleep(1)
        driver.cut()
        await asyncio.sleep(5)
        driver.put(message("2", "k"))
        await until(lambda: {m.value for m in driver.acknowledged} >= {b"1", b"2", b"a", b"b"})
    assert not batches.overlaps
    assert not driver.breaches


@virtual
async def test_a_broker_that_is_there_may_take_its_time_to_let_a_consumer_in() -> None:
    """As a Kafka group does whose last member has died: it waits until that one's session is over."""
    driver = StubDriver()
    let_in = driver.hold("subscribe")
    async with broker_of(driver, "?publish_timeout=5") as broker:
        consumer = broker.consumer("t", group="g", handler=Recorder())
        starting = asyncio.create_task(consumer.start())
        await asyncio.sleep(45)
        assert not starting.done()
        let_in.set()
        await starting
        await consumer.stop()


@virtual
async def test_a_broker_that_lets_nobody_in_and_does_not_answer_is_away() -> None:
    driver = StubDriver()
    driver.hold("subscribe")
    async with broker_of(driver, "?publish_timeout=5") as broker:
        driver.fail("ping", *[ConnectionLost("gone")] * 9)
        with pytest.raises(BrokerUnavailable, match="gone"):
            await broker.consumer("t", group="g", handler=Recorder()).start()
        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)


@virtual
async def test_what_a_lost_receiver_fails_with_as_it_closes_is_logged_and_stops_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that was lost in the middle of something may say anything; the next one is a new one."""
    driver, recorder = StubDriver(), Recorder()

    async def close() -> None:
        raise RuntimeError("another operation is in progress")

    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder) as consumer:
        monkeypatch.setattr(driver.receiver("t", "g"), "close", close)
        driver.cut()
        await asyncio.sleep(10)
        driver.put(message("1"))
        await until(lambda: recorder.seen)
        assert consumer.health().reason is None
    assert "the receiver did not close well: another operation is in progress" in caplog.text
