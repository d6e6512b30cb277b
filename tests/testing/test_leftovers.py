"""What the conformance suite takes for left behind."""

import asyncio
import threading

from things_kit.testing.conformance.operations import Footprint


async def test_more_threads_in_the_executor_of_the_loop_are_nothing_that_a_broker_left() -> None:
    both = threading.Barrier(2)
    before = Footprint.now()
    await asyncio.gather(asyncio.to_thread(both.wait, 5), asyncio.to_thread(both.wait, 5))
    assert Footprint.now().beyond(before) == []


async def test_a_thread_of_somebody_and_a_task_are_left_behind() -> None:
    before, ending = Footprint.now(), threading.Event()
    thread = threading.Thread(target=ending.wait, name="somebody's")
    thread.start()
    task = asyncio.create_task(asyncio.Event().wait(), name="somebody's too")
    try:
        left = Footprint.now().beyond(before)
    finally:
        ending.set()
        thread.join()
        task.cancel()
    assert ["somebody's" in each for each in left] == [True, True]
