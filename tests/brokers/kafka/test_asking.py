"""One question of the engine at a time, and the answers of a receiving thread."""

import asyncio

import pytest

pytest.importorskip("confluent_kafka")

from things_kit.brokers.kafka.asking import Asking
from things_kit.engine.collected import Collected
from things_kit.engine.driver import ConnectionLost, Delivery
from things_kit.messaging.message import Message

SOME = (Delivery(Message("orders", b"1")), Delivery(Message("orders", b"2")))


class Thread:
    """The receiving thread of a test: it answers when it is told to."""

    def __init__(self) -> None:
        self.inbox = Collected()
        self.asking = Asking("orders", self.inbox)
        self.woken = asyncio.Event()

    def fetch(self, limit: int, wait: float = 60.0) -> "asyncio.Task[None]":
        return asyncio.create_task(self.asking.fetch(limit, wait, self.woken.set))

    async def asked(self) -> int:
        await self.woken.wait()
        self.woken.clear()
        assert self.asking.asked is not None
        return self.asking.asked.limit


async def test_what_was_asked_for_is_put_before_the_call_returns() -> None:
    thread = Thread()
    fetching = thread.fetch(7)
    assert await thread.asked() == 7
    thread.asking.answer(SOME)
    await fetching
    assert thread.inbox.waiting == list(SOME)
    assert thread.asking.asked is None


async def test_a_cancelled_call_withdraws_its_question_and_what_came_all_the_same_is_the_next_ones() -> None:
    thread = Thread()
    first = thread.fetch(7)
    await thread.asked()
    first.cancel()
    await asyncio.wait({first})
    second = thread.fetch(1)
    assert (
        await thread.asked() == 0
    )  # still the first question; nothing more is asked for until it is answered
    thread.asking.answer(SOME)
    await second
    assert thread.inbox.waiting == list(SOME)
    assert thread.asking.asked is None


async def test_a_question_that_was_withdrawn_in_time_is_followed_by_the_next() -> None:
    thread = Thread()
    first = thread.fetch(7)
    await thread.asked()
    first.cancel()
    second = thread.fetch(3)
    assert await thread.asked() == 0
    thread.asking.answer(())
    assert await thread.asked() == 3
    thread.asking.answer(SOME)
    await second


async def test_nothing_comes_after_quiesce() -> None:
    thread = Thread()
    fetching = thread.fetch(7)
    await thread.asked()
    thread.asking.quiesce()
    thread.asking.answer(SOME)
    await fetching
    assert not thread.inbox.waiting


async def test_whoever_waits_is_told_that_the_thread_has_ended() -> None:
    thread = Thread()
    fetching = thread.fetch(7)
    await thread.asked()
    thread.asking.end(ConnectionLost("it hangs"))
    with pytest.raises(ConnectionLost, match="it hangs"):
        await fetching
    with pytest.raises(ConnectionLost, match="it hangs"):
        await thread.fetch(7)
