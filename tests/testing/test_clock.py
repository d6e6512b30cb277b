import asyncio
import threading
import time

import pytest

from things_kit.testing import NothingCanHappen, VirtualTimeLoop, run_virtual, virtual_time


def test_an_hour_passes_in_no_time() -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3600)
        return loop.time()

    began = time.monotonic()
    assert run_virtual(scenario()) == pytest.approx(3600)
    assert time.monotonic() - began < 60


def test_timers_run_in_their_order_and_at_their_time() -> None:
    seen: list[tuple[str, float]] = []

    async def step(name: str, after: float) -> None:
        await asyncio.sleep(after)
        seen.append((name, asyncio.get_running_loop().time()))

    async def scenario() -> None:
        await asyncio.gather(step("late", 50), step("early", 0.5), step("between", 7))

    run_virtual(scenario())
    assert [name for name, _ in seen] == ["early", "between", "late"]
    assert [at for _, at in seen] == pytest.approx([0.5, 7, 50])


def test_the_clock_stands_still_while_anything_is_ready() -> None:
    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        timer = asyncio.create_task(asyncio.sleep(1))
        for _ in range(1000):
            await asyncio.sleep(0)
        now = loop.time()
        timer.cancel()
        return now

    assert run_virtual(scenario()) == 0


def test_a_timeout_fires_in_no_time() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(600):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run_virtual(scenario())


def test_time_does_not_jump_while_a_thread_works() -> None:
    release = threading.Event()

    async def scenario() -> str:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: threading.Timer(0.05, release.set).start())
        async with asyncio.timeout(30):
            await asyncio.to_thread(release.wait, 10)
        return "the thread won" if loop.time() < 5 else "time ran away"

    assert run_virtual(scenario()) == "the thread won"


def test_a_timer_that_is_due_while_a_thread_works_fires() -> None:
    release = threading.Event()

    async def scenario() -> None:
        work = asyncio.create_task(asyncio.to_thread(release.wait, 10))
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(work), 0.05)
        finally:
            release.set()
        await work

    run_virtual(scenario())


def test_a_thread_of_somebody_else_is_heard_within_the_grace() -> None:
    async def scenario() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        threading.Timer(0.02, loop.call_soon_threadsafe, (future.set_result, "heard")).start()
        return await asyncio.wait_for(future, 3600)

    assert run_virtual(scenario(), grace=5) == "heard"


def test_waiting_for_what_cannot_come_is_an_error() -> None:
    async def scenario() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingCanHappen, match="never set"):
        run_virtual(scenario(), patience=0.01)


def test_sockets_are_waited_for_in_real_time() -> None:
    async def scenario() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(4))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            async with asyncio.timeout(3600):
                writer.write(b"ping")
                answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return answer

    assert run_virtual(scenario()) == b"ping"


def test_the_loop_serves_as_a_factory() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.sleep(3600))
    with asyncio.Runner(loop_factory=virtual_time(grace=0.001)) as runner:
        runner.run(asyncio.sleep(1))


def test_an_error_of_the_scenario_comes_out() -> None:
    async def scenario() -> None:
        await asyncio.sleep(10)
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_virtual(scenario())
