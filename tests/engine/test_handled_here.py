"""Code can ask which message it runs for, wherever in a handler it is."""

import asyncio

from things_kit import Batch, Message, connect
from things_kit.engine.workers import handled_here


def values() -> list[bytes]:
    return [delivery.message.value for delivery in handled_here()]


async def test_a_handler_its_tasks_and_its_threads_know_their_message() -> None:
    seen: list[tuple[bytes, list[bytes], list[bytes], list[bytes]]] = []
    done = asyncio.Event()

    async def within() -> list[bytes]:
        return values()

    async def handle(message: Message) -> None:
        seen.append(
            (message.value, values(), await asyncio.create_task(within()), await asyncio.to_thread(values))
        )
        if len(seen) == 20:
            done.set()

    async with connect("memory://") as broker, broker.consumer("t", group="g", handler=handle, concurrency=4):
        await broker.producer().publish_batch([Message("t", b"%d" % number) for number in range(20)])
        await done.wait()
    assert len(seen) == 20
    for value, *others in seen:
        assert others == [[value]] * 3
    assert not handled_here()


async def test_a_plain_handler_in_its_thread_knows_its_message() -> None:
    seen: list[tuple[bytes, list[bytes]]] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(message: Message) -> None:
        seen.append((message.value, values()))
        loop.call_soon_threadsafe(done.set)

    async with connect("memory://") as broker, broker.consumer("t", group="g", handler=handle):
        await broker.producer().publish(Message("t", b"1"))
        await done.wait()
    assert seen == [(b"1", [b"1"])]


async def test_a_batch_handler_knows_all_of_its_messages() -> None:
    seen: list[list[bytes]] = []
    done = asyncio.Event()

    async def handle(messages: list[Message]) -> None:
        seen.append(values())
        done.set()

    async with connect("memory://") as broker:
        await broker.producer().publish_batch([Message("t", b"1"), Message("t", b"2")])
        async with broker.consumer("t", group="g", handler=handle, batch=Batch(size=2, wait=5)):
            await done.wait()
    assert seen == [[b"1", b"2"]]


async def test_a_task_that_a_handler_leaves_behind_keeps_what_it_knew() -> None:
    left: list[asyncio.Task[None]] = []
    go_on, both = asyncio.Event(), asyncio.Event()
    seen: list[list[bytes]] = []

    async def behind() -> None:
        seen.append(values())
        await go_on.wait()
        seen.append(values())

    async def handle(message: Message) -> None:
        if message.value == b"1":
            left.append(asyncio.create_task(behind()))
            await asyncio.sleep(0)
        else:
            go_on.set()
            await left[0]
            both.set()

    async with connect("memory://") as broker, broker.consumer("t", group="g", handler=handle):
        await broker.producer().publish_batch([Message("t", b"1"), Message("t", b"2")])
        await both.wait()
    assert seen == [[b"1"], [b"1"]]
