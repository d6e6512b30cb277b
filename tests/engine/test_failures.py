"""What is logged of messages that failed."""

import asyncio
import logging

import pytest

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Message, Reject, Retry, RetryPolicy
from things_kit.testing.stub import StubDriver, broker_of


def _lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    found = [record for record in caplog.records if record.name == "things_kit.consumer"]
    return [(record.getMessage(), record.exc_info is not None) for record in found]


def _fail(error: BaseException) -> Recorder:
    async def answer(_: Message) -> None:
        raise error

    return Recorder(answer)


@pytest.mark.parametrize("error", [Reject("no"), Retry(after=0), KeyError("unknown")], ids=repr)
@virtual
async def test_what_is_said_on_purpose_is_a_line_without_a_traceback(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    driver, policy = StubDriver(), RetryPolicy(attempts=2, first=0, permanent=(KeyError,))
    driver.put(Message("t", b"1", id="a"), Message("t", b"2", id="b"))
    with caplog.at_level(logging.INFO):
        async with (
            broker_of(driver) as broker,
            broker.consumer("t", group="g", handler=_fail(error), retry=policy),
        ):
            await until(lambda: len(driver.acknowledged) == 2)
    lines = _lines(caplog)
    assert not any(traceback for _, traceback in lines)
    assert sum("failed for good" in text for text, _ in lines) == 2


@virtual
async def test_an_unexpected_error_has_its_traceback_once_and_equal_ones_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(_: Message) -> None:
        raise ValueError("boom")

    driver, policy = StubDriver(), RetryPolicy(attempts=2, first=0.1, jitter=0)
    driver.put(*(Message("t", b"", id=f"m-{number}") for number in range(50)))
    with caplog.at_level(logging.INFO):
        async with (
            broker_of(driver) as broker,
            broker.consumer("t", group="g", handler=Recorder(answer), retry=policy),
        ):
            await until(lambda: len(driver.acknowledged) == 50)
            await asyncio.sleep(11)
    lines = _lines(caplog)
    assert [traceback for _, traceback in lines] == [True, False, False, False]
    texts = [text for text, _ in lines]
    assert "attempt 1 of message 'm-0' failed: ValueError('boom'); again in 0.1 s" in texts[0]
    assert "message 'm-0' failed for good after attempt 2" in texts[1]
    assert texts[2].endswith("98 more attempts failed, 49 messages for good, at last: ValueError('boom')")
    assert texts[3].endswith("no attempt failed so for 5 s: ValueError('boom')")


@virtual
async def test_what_was_counted_is_told_when_the_consumer_stops(caplog: pytest.LogCaptureFixture) -> None:
    driver, policy = StubDriver(), RetryPolicy(attempts=1)
    driver.put(Message("t", b"", id="a"), Message("t", b"", id="b"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=_fail(ValueError("boom")), retry=policy) as consumer,
    ):
        await until(lambda: len(driver.acknowledged) == 2)
        assert (consumer.handled, consumer.given_back) == (2, 0)
    assert "1 more attempts failed, 1 messages for good" in _lines(caplog)[-1][0]
