"""Messages that may be what kills the processes that handle them."""

import asyncio
from datetime import UTC, datetime

import pytest

from tests.engine.scenario import Recorder, turns, until, virtual
from things_kit import DISCARD, Batch, Message, RetryPolicy
from things_kit.engine.driver import Capabilities, ConnectionLost, Later
from things_kit.testing.stub import StubDriver, broker_of

COUNTING = Capabilities(delay=True, attempts=True, suspects=True)
LANES = Capabilities(delay=True, attempts=True, suspects=True, lanes=True, targeted=True, retained=True)
THREE = RetryPolicy(attempts=3, first=0.1, jitter=0.0)


def came(value: str, attempt: int, key: str | None = None, suspect: int = 0) -> tuple[Message, int]:
    message = Message("t", value.encode(), None if key is None else key.encode(), id=value, attempt=attempt)
    return message, suspect


def handed_out(driver: StubDriver, *rows: tuple[Message, int]) -> None:
    """As if processes had died with these before."""
    for message, suspect in rows:
        driver.count(message, message.attempt, suspect)
        driver.put(message)


@pytest.mark.parametrize("native", [COUNTING, LANES], ids=["counting", "lanes"])
@virtual
async def test_a_suspect_is_marked_and_handled_while_nothing_else_is(native: Capabilities) -> None:
    beside: list[int] = []

    async def answer(message: Message) -> None:
        beside.append(recorder.running)
        await asyncio.sleep(5)

    driver, recorder = StubDriver(native), Recorder(answer)
    rows = [came(str(n), 1) for n in range(6)]
    rows[3] = came("3", 4)
    handed_out(driver, *rows)
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=4, retry=THREE),
    ):
        await until(lambda: len(driver.acknowledged) == 6)
    at = recorder.values.index(b"3")
    assert beside[at] == 1
    assert max(beside) > 1
    assert driver.marks == [("3", 4)]
    began = recorder.times[at]
    assert not [t for t, m in recorder.seen if began < t < began + 5], "nobody began beside it"


@virtual
async def test_a_marked_message_that_came_again_goes_to_the_dead_letter_and_kills_nobody() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder()
    handed_out(driver, came("bad", 5, suspect=4), came("good", 1))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=THREE):
        await until(lambda: len(driver.acknowledged) == 2)
    assert recorder.values == [b"good"]
    [dead] = driver.topics["t-dlq"]
    assert dead.headers["error-type"] == "ProcessDied"
    assert dead.headers["attempts"] == "5"


@virtual
async def test_an_innocent_suspect_is_handled_and_no_more_than_that() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder()
    handed_out(driver, came("1", 9))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=THREE):
        await until(lambda: driver.acknowledged)
    assert recorder.attempts == [9]
    assert driver.topics["t-dlq"] == []


@virtual
async def test_a_stop_takes_the_mark_back() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder(lambda _: asyncio.sleep(100))
    handed_out(driver, came("1", 4))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=THREE, drain_timeout=1),
    ):
        await until(lambda: recorder.running)
    assert driver.marks == [("1", 4), ("1", 0)]
    assert [release.attempt for release in driver.released] == [4]


@virtual
async def test_ten_stops_and_starts_convict_nobody() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder(lambda _: asyncio.sleep(100))
    handed_out(driver, came("1", 4))
    async with broker_of(driver) as broker:
        for _ in range(10):
            began = len(recorder.seen)
            async with broker.consumer("t", group="g", handler=recorder, retry=THREE, drain_timeout=0):
                await until(lambda: len(recorder.seen) > began)  # noqa: B023 - it waits here
        patient = Recorder()
        async with broker.consumer("t", group="g", handler=patient, retry=THREE):
            await until(lambda: driver.acknowledged)
    assert driver.topics["t-dlq"] == []


@virtual
async def test_a_suspect_waits_for_what_is_before_it_in_its_key() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder(lambda _: asyncio.sleep(1))
    handed_out(driver, came("1", 1, "k"), came("2", 4, "k"), came("3", 1, "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=3, retry=THREE),
    ):
        await until(lambda: len(driver.acknowledged) == 3)
    assert recorder.values == [b"1", b"2", b"3"]
    assert recorder.overlaps == []
    assert driver.marks == [("2", 4)], "its turn is its own, also where it had to wait for it"


@virtual
async def test_what_is_behind_a_suspect_goes_on_when_somebody_else_has_the_suspect() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder(lambda _: asyncio.sleep(20))
    handed_out(driver, came("0", 1))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=3, retry=THREE),
    ):
        await until(lambda: recorder.running)
        handed_out(driver, came("1", 4, "k"), came("2", 1, "k"))
        await until(lambda: len(driver.receiver("t", "g").out) == 3)
        await asyncio.sleep(1)  # it waits to be alone
        driver.receiver("t", "g").take_back(lambda delivery: delivery.message.id == "1")
        await until(lambda: len(driver.acknowledged) == 2, within=60)
    assert recorder.values == [b"0", b"2"]


@virtual
async def test_without_a_dead_letter_there_are_no_suspects() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder()
    handed_out(driver, came("1", 9))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=THREE, dead_letter=None),
    ):
        await until(lambda: driver.acknowledged)
    assert driver.marks == []


@virtual
async def test_under_discard_the_guilty_one_is_dropped() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder()
    handed_out(driver, came("bad", 5, suspect=4))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=THREE, dead_letter=DISCARD) as consumer,
    ):
        await until(lambda: driver.acknowledged)
        assert consumer.discarded == 1
    assert recorder.seen == []


@virtual
async def test_a_mark_that_cannot_be_stored_keeps_nobody_from_handling_it_alone() -> None:
    driver, recorder = StubDriver(COUNTING), Recorder()
    handed_out(driver, came("1", 4))
    driver.fail("mark", ConnectionLost("gone for a moment"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=THREE):
        await until(lambda: driver.acknowledged)
    assert recorder.values[-1:] == [b"1"]


class CopyingDriver(StubDriver):
    """Keeps nothing beside a message, as SQS: what is put off, or marked, is a copy."""

    def __init__(self) -> None:
        super().__init__(Capabilities(attempts=True, suspects=True), marking=False)
        self.copies: list[Later] = []

    async def send_later(self, copies: list[Later]) -> list[Exception | None]:
        await self.enter("send_later")
        self.copies += copies
        for copy in copies:
            loop = asyncio.get_running_loop()
            wait = max(0.0, (copy.due - datetime.now(UTC)).total_seconds())
            loop.call_later(wait, self.put_copy, copy)
        return [None] * len(copies)

    def put_copy(self, copy: Later) -> None:
        self.count(copy.message, copy.attempt, copy.suspect)
        self.put(copy.message)


@virtual
async def test_where_nothing_can_be_stored_beside_a_message_the_mark_travels_on_a_copy() -> None:
    driver, recorder = CopyingDriver(), Recorder()
    handed_out(driver, came("1", 4, "k"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=THREE):
        await until(lambda: len(driver.acknowledged) == 2)
    assert [(copy.suspect, copy.attempt, copy.group) for copy in driver.copies] == [(4, 4, "g")]
    assert recorder.attempts == [4], "the original was acknowledged, not handled"


@virtual
async def test_the_first_loss_of_a_copy_with_its_mark_convicts_nobody_and_the_second_does() -> None:
    """Its holder may have died, or lost its connection, while it waited for its turn (a soak on RabbitMQ found them)."""
    driver, recorder = CopyingDriver(), Recorder()
    handed_out(driver, came("lost once", 5, suspect=4), came("lost twice", 6, suspect=4))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=THREE):
        await until(lambda: len(driver.acknowledged) == 2)
    assert recorder.values == [b"lost once"]
    [dead] = driver.topics["t-dlq"]
    assert (dead.value, dead.headers["error-type"]) == (b"lost twice", "ProcessDied")


@virtual
async def test_a_stop_that_cannot_take_the_mark_back_gives_the_message_back_as_it_is() -> None:
    driver, recorder = CopyingDriver(), Recorder(lambda _: asyncio.sleep(100))
    handed_out(driver, came("1", 4, suspect=4))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, retry=THREE, drain_timeout=1),
    ):
        await until(lambda: recorder.running)
        driver.fail("send_later", *[ConnectionLost("gone")] * 10)
    assert driver.copies == []
    assert [(release.delivery.message.value, release.attempt) for release in driver.released] == [(b"1", 4)]


@virtual
async def test_a_retry_without_a_key_waits_as_a_copy_where_the_broker_has_no_delay() -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise ValueError("later")

    driver, recorder = CopyingDriver(), Recorder(answer)
    driver.put(Message("t", b"1", id="1"))
    policy = RetryPolicy(first=60.0, limit=60.0, jitter=0.0)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=policy):
        await until(lambda: len(recorder.seen) == 2)
        await turns()
    assert recorder.attempts == [1, 2]
    assert [copy.attempt for copy in driver.copies] == [2]


@virtual
async def test_a_copy_that_fails_leaves_the_message_in_memory() -> None:
    async def answer(message: Message) -> None:
        if message.attempt == 1:
            raise ValueError("later")

    driver, recorder = CopyingDriver(), Recorder(answer)
    driver.put(Message("t", b"1", id="1"))
    driver.fail("send_later", ConnectionLost("gone"))
    policy = RetryPolicy(first=60.0, limit=60.0, jitter=0.0)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=recorder, retry=policy):
        await until(lambda: len(driver.acknowledged) == 1)
    assert recorder.attempts == [1, 2]
    assert recorder.times[1] - recorder.times[0] == pytest.approx(60, abs=0.5)
    assert driver.copies == []


@virtual
async def test_a_suspect_is_handled_only_once_the_broker_knows_of_all_that_was_finished() -> None:
    """Else its death would bring back, and make older, what has long been handled."""
    driver, recorder = StubDriver(COUNTING), Recorder()
    told = driver.hold("settle")
    handed_out(driver, came("1", 1))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=2, retry=THREE),
    ):
        await until(lambda: recorder.ended)
        handed_out(driver, came("2", 4))
        await asyncio.sleep(20)
        assert recorder.values == [b"1"]
        told.set()
        await until(lambda: len(driver.acknowledged) == 2)
    assert recorder.values == [b"1", b"2"]


@virtual
async def test_of_several_suspects_one_copy_at_a_time_has_a_mark() -> None:
    """Who dies of one would convict all that are marked beside it."""

    async def answer(_: Message) -> None:
        marked.append(driver.marked - len(recorder.ended))
        await asyncio.sleep(1)

    class Watched(CopyingDriver):
        marked = 0

        async def send_later(self, copies: list[Later]) -> list[Exception | None]:
            self.marked += sum(1 if copy.suspect else -1 for copy in copies)
            return await super().send_later(copies)

    marked: list[int] = []
    driver, recorder = Watched(), Recorder(answer)
    handed_out(driver, *(came(str(n), 4) for n in range(5)))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=recorder, concurrency=5, retry=THREE),
    ):
        await until(lambda: len(recorder.ended) == 5)
    assert marked == [1] * 5


@pytest.mark.parametrize("native", [COUNTING, LANES], ids=["counting", "lanes"])
@virtual
async def test_what_a_list_had_gathered_when_a_suspect_came_is_handled_after_it_in_order(
    native: Capabilities,
) -> None:
    lists: list[list[bytes]] = []

    async def handle(messages: list[Message]) -> None:
        lists.append([message.value for message in messages])

    driver = StubDriver(native)
    handed_out(driver, came("1", 1), came("2", 1, "k"), came("3", 1, "k"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, batch=Batch(size=9, wait=30), retry=THREE),
    ):
        await asyncio.sleep(10)
        handed_out(driver, came("suspect", 4))
        await until(lambda: len(driver.acknowledged) == 4, within=60)
    first, *rest = lists
    assert first == [b"suspect"]
    assert [value for values in rest for value in values] == [b"1", b"2", b"3"]
