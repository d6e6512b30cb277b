"""Handlers that are plain functions: they run in threads, which can be waited for but not killed."""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.scenario import until, virtual
from things_kit import Message, Reject, RetryPolicy
from things_kit.engine.threads import HandlerThreads, call_in_thread, threads
from things_kit.testing.stub import StubDriver, broker_of

GRACE = 0.2


async def really(condition: Callable[[], object]) -> None:
    """Wait in real time, as threads do."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a thread sets no event of ours
            await asyncio.sleep(0.001)


def message(value: str, key: str | None = None) -> Message:
    return Message("t", value.encode(), None if key is None else key.encode(), id=value)


ONCE = RetryPolicy(attempts=1)


@virtual(grace=GRACE)
async def test_a_plain_function_runs_in_a_thread_of_its_own_name() -> None:
    names: list[str] = []

    def handle(_: Message) -> None:
        names.append(threading.current_thread().name)

    driver = StubDriver()
    driver.put(message("1"))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle):
        await until(lambda: driver.acknowledged)
    assert names == ["t as g handler"]


@virtual(grace=GRACE)
async def test_what_a_plain_function_raises_is_its_answer() -> None:
    def handle(message: Message) -> None:
        errors = [
            Reject("bad"),
            StopIteration(),
            asyncio.CancelledError(),
            KeyboardInterrupt(),
            GeneratorExit(),
        ]
        raise errors[int(message.value) - 1]

    driver = StubDriver()
    driver.put(*(message(str(n)) for n in range(1, 6)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, retry=ONCE):
        await until(lambda: len(driver.acknowledged) == 5)
    types = {m.value: m.headers["error-type"] for m in driver.topics["t-dlq"]}
    assert types == {
        b"1": "things_kit.messaging.outcomes.Reject",
        b"2": "RuntimeError",
        b"3": "asyncio.exceptions.CancelledError",
        b"4": "RuntimeError",
        b"5": "RuntimeError",
    }


@virtual(grace=GRACE)
async def test_sys_exit_in_a_thread_is_a_failure_and_ends_nothing() -> None:
    attempts: list[int] = []

    def handle(message: Message) -> None:
        attempts.append(message.attempt)
        sys.exit(3)

    driver = StubDriver()
    driver.put(message("1"))
    policy = RetryPolicy(attempts=3, first=0.001)
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, retry=policy):
        await until(lambda: driver.acknowledged)
    (dead,) = driver.topics["t-dlq"]
    assert dead.headers["error"] == "the handler raised SystemExit(3)"
    assert attempts == [1, 2, 3]


async def test_as_many_threads_work_as_the_concurrency_says() -> None:
    barrier = threading.Barrier(4)

    def handle(_: Message) -> None:
        barrier.wait(10)

    driver = StubDriver()
    driver.put(*(message(str(n)) for n in range(8)))
    async with broker_of(driver) as broker, broker.consumer("t", group="g", handler=handle, concurrency=4):
        await really(lambda: len(driver.acknowledged) == 8)


async def test_a_worker_that_hangs_in_a_thread_is_not_reused_until_it_returns() -> None:
    release, counting = threading.Event(), threading.Lock()
    running, most, seen = 0, 0, []

    def handle(message: Message) -> None:
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
        seen.append(message.value)
        if message.value == b"hang":
            release.wait(20)
        with counting:
            running -= 1

    driver = StubDriver()
    driver.put(message("hang"))
    async with (
        broker_of(driver) as broker,
        broker.consumer(
            "t", group="g", handler=handle, concurrency=2, timeout=0.05, retry=ONCE, drain_timeout=5
        ) as consumer,
    ):
        try:
            await really(lambda: seen)  # a thread may begin later than its time is over
            driver.put(*(message(str(n)) for n in range(20)))
            await really(lambda: len(driver.acknowledged) == 21)  # the others go on, in the other worker
            assert driver.topics["t-dlq"][0].headers["error-type"] == "TimeoutError"
            await really(lambda: "1 of 2 workers hang" in str(consumer.health().reason))
            assert most == 2
        finally:
            release.set()
        await really(lambda: consumer.health().reason is None)


async def test_with_one_worker_nothing_is_handled_beside_a_hanging_thread() -> None:
    release = threading.Event()
    seen: list[bytes] = []

    def handle(message: Message) -> None:
        seen.append(message.value)
        if message.value == b"hang":
            release.wait(20)

    driver = StubDriver()
    driver.put(message("hang"), message("next"))
    async with (
        broker_of(driver) as broker,
        broker.consumer("t", group="g", handler=handle, timeout=0.02, retry=ONCE) as consumer,
    ):
        try:
            await really(lambda: consumer.health().reason is not None)
            await really(lambda: seen)  # a thread may begin later than its time is over
            for _ in range(100):
                await asyncio.sleep(0)
            assert seen == [b"hang"]
        finally:
            release.set()
        await really(lambda: len(driver.acknowledged) == 2)
    assert seen == [b"hang", b"next"]


@virtual(grace=GRACE)
async def test_stop_leaves_a_hanging_thread_but_no_task_behind() -> None:
    release, hangs = threading.Event(), threading.Event()

    def handle(_: Message) -> None:
        hangs.set()
        release.wait(20)

    driver, loop = StubDriver(), asyncio.get_running_loop()
    driver.put(message("1"))
    before = asyncio.all_tasks()
    try:
        async with (
            broker_of(driver) as broker,
            broker.consumer("t", group="g", handler=handle, drain_timeout=0.01),
        ):
            await asyncio.to_thread(hangs.wait, 10)
            began = loop.time()
        assert asyncio.all_tasks() - before == set()
        assert loop.time() - began < 3  # nothing is gained by waiting for what cannot be cancelled
        assert len(driver.groups["t", "g"].pending) == 1
    finally:
        release.set()


async def test_no_idle_thread_is_left_after_stop() -> None:
    driver = StubDriver()
    driver.put(*(message(str(n)) for n in range(4)))
    async with broker_of(driver) as broker:
        consumer = broker.consumer("t", group="only-here", handler=lambda _: None, concurrency=4)
        driver.put(*(message(str(n)) for n in range(4)))
        async with consumer:
            await really(lambda: len(driver.acknowledged) == 8)
    assert not [t for t in threading.enumerate() if "only-here" in t.name]


NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


async def test_a_thread_sees_the_context_of_its_caller() -> None:
    own = HandlerThreads("here")
    NAME.set("me")
    assert await own.run("me", NAME.get) == "me"
    own.close()


async def test_what_a_thread_sets_stays_in_its_call() -> None:
    own = HandlerThreads("here")
    await own.run("me", NAME.set, "changed")
    assert NAME.get() == "nobody"
    assert await own.run("me", NAME.get) == "nobody"
    own.close()


async def test_a_thread_is_used_again() -> None:
    own = HandlerThreads("here")
    first = await own.run("me", threading.get_ident)
    assert await own.run("me", threading.get_ident) == first
    own.close()


async def test_a_thread_can_be_asked_whether_it_still_hangs() -> None:
    own, release = HandlerThreads("here"), threading.Event()
    task = asyncio.create_task(own.run("me", release.wait, 10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended = own.hanging("me")
    assert ended is not None
    assert not ended.done()
    release.set()
    await asyncio.wait_for(ended, 10)
    assert own.hanging("me") is None
    own.close()


async def test_a_thread_that_returns_in_the_moment_in_which_it_is_given_up_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, began, release, answered = HandlerThreads("here"), *(threading.Event() for _ in range(3))
    loop = asyncio.get_running_loop()
    schedule = loop.call_soon_threadsafe

    def answer(*call: Any) -> None:
        schedule(*call)
        answered.set()

    monkeypatch.setattr(loop, "call_soon_threadsafe", answer)

    def handle() -> None:
        began.set()
        release.wait(10)

    task = asyncio.create_task(own.run("me", handle))
    await really(began.is_set)
    release.set()
    answered.wait(10)  # the loop stands still: the answer is there, and nobody has looked at it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert own.hanging("me") is None
    own.close()


async def test_outside_of_a_consumer_a_plain_function_runs_in_a_thread_of_the_loop() -> None:
    assert threads.get() is None
    assert await call_in_thread(threading.get_ident) != threading.get_ident()
