"""A message at the broker's limit of size: what a user may send, and what becomes of it when it fails."""

import asyncio
from pathlib import Path

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import ConfigError, Message, MessageTooLarge, RetryPolicy, connect
from things_kit.engine.dead_letter import message_bytes
from things_kit.engine.driver import RESERVE, Capabilities
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.testing.stub import BARE, StubDriver, broker_of

LIMIT = 100_000
ONCE = RetryPolicy(attempts=1)


class Limited(StubDriver):
    """It takes so many bytes and not one more, whoever sends them."""

    def __init__(self, takes: int = LIMIT + RESERVE) -> None:
        super().__init__(Capabilities(partitions=True, retained=True, max_message_bytes=LIMIT))
        self.refuse = lambda m: MessageTooLarge("too large") if message_bytes(m) > takes else None


async def fail(_: Message) -> None:
    raise ValueError("no" * 1000)


@virtual
async def test_a_user_may_send_up_to_the_limit_and_no_more() -> None:
    driver = Limited()
    async with broker_of(driver) as broker:
        assert broker.capabilities.max_message_bytes == LIMIT
        await broker.producer().publish(Message("t", b"x" * LIMIT))
        with pytest.raises(MessageTooLarge, match=f"this broker takes {LIMIT}"):
            await broker.producer().publish(Message("t", b"x" * (LIMIT + 1)))


@virtual
async def test_what_a_user_may_send_can_become_a_dead_letter_with_all_its_headers() -> None:
    driver = Limited()
    async with broker_of(driver) as broker:
        recorder = Recorder(fail)
        async with broker.consumer("t", group="g", handler=recorder, retry=ONCE):
            await broker.producer().publish(Message("t", b"x" * LIMIT))
            await until(lambda: driver.acknowledged)
    (dead,) = driver.topics["t-dlq"]
    assert dead.headers["error"] == "no" * 512
    assert recorder.attempts == [1]


@pytest.mark.parametrize("beyond", [0, 1000, RESERVE - 20, RESERVE - 1, RESERVE])
def test_a_foreign_message_at_the_very_limit_becomes_a_dead_letter_with_what_fits(beyond: int) -> None:
    @virtual
    async def scenario() -> None:
        driver = Limited()
        async with (
            broker_of(driver) as broker,
            broker.consumer("t", group="g", handler=Recorder(fail), retry=ONCE),
        ):
            driver.put(Message("t", b"x" * (LIMIT + beyond), id="foreign"))
            await until(lambda: driver.acknowledged)
        (dead,) = driver.topics["t-dlq"]
        assert dead.value == b"x" * (LIMIT + beyond)

    scenario()


@virtual
async def test_what_is_larger_than_we_think_possible_goes_bare_and_the_broker_decides() -> None:
    driver = Limited(LIMIT * 2)
    async with broker_of(driver) as broker:
        async with broker.consumer("t", group="g", handler=Recorder(fail), retry=ONCE):
            driver.put(Message("t", b"x" * LIMIT * 2, id="foreign"))
            await until(lambda: driver.acknowledged)
        (dead,) = driver.topics["t-dlq"]
        assert dead.headers == {}
        with pytest.raises(ConfigError, match="say with `to`"):
            await broker.replay("t-dlq")
        assert await broker.replay("t-dlq", to="t") == 1


@virtual
async def test_a_mark_of_our_own_is_refused_from_a_user() -> None:
    driver = StubDriver(BARE)
    async with broker_of(driver) as broker:
        with pytest.raises(Exception, match="belongs to the drivers"):
            await broker.producer().publish(Message("t", b"", headers={"tk-dead-letter": ""}))


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_the_option_is_what_a_user_may_send(scheme: str, tmp_path: Path) -> None:
    place = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/events.db"
    handled = asyncio.Event()

    async def handle(message: Message) -> None:
        handled.set()
        raise ValueError

    async with connect(f"{place}?max_message_bytes=100") as broker:
        async with broker.consumer("t", group="g", handler=handle, retry=ONCE):
            with pytest.raises(MessageTooLarge):
                await broker.producer().publish(Message("t", b"x" * 101))
            await broker.producer().publish(Message("t", b"x" * 100))
            await handled.wait()
            async with asyncio.timeout(10):
                while await broker.lag("t", "g"):  # noqa: ASYNC110 - another connection's state has no event
                    await asyncio.sleep(0.01)
        assert await broker.lag("t-dlq", DEAD_LETTER_GROUP) == 1
