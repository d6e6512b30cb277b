"""What cannot be handled becomes a dead letter with its reason, and is replayed once the fault is mended."""

import asyncio
import sys

from things_kit import Message, Reject, connect


async def main(url: str = "memory://") -> None:
    mended, refused, paid = False, asyncio.Event(), asyncio.Event()

    async def pay(message: Message) -> None:
        if not mended:
            raise Reject("the card was refused")
        print(f"paid {message.value.decode()}")
        paid.set()

    async def investigate(message: Message) -> None:
        print(f"dead letter of {message.headers['original-topic']}: {message.headers['error']}")
        refused.set()

    async with (
        connect(url) as broker,
        broker.consumer("payments", group="paying", handler=pay),
        broker.consumer("payments-dlq", group="investigation", handler=investigate),
    ):
        await broker.producer().publish(Message("payments", b"p-1"))
        await refused.wait()
        mended = True
        print("replayed:", await broker.replay("payments-dlq"))
        await paid.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
