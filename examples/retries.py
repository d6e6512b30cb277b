"""A handler that fails twice: it says nothing of retries, the policy does, and the key's order is kept."""

import asyncio
import sys

from things_kit import Message, Retry, RetryPolicy, connect

POLICY = RetryPolicy(attempts=5, first=0.05, factor=2.0, limit=1.0)


async def main(url: str = "memory://") -> None:
    done = asyncio.Event()

    async def handle(message: Message) -> None:
        print(f"{message.value.decode()}, attempt {message.attempt}")
        if message.value == b"first" and message.attempt == 1:
            raise ConnectionError("the service is away")  # again after the policy's back-off
        if message.value == b"first" and message.attempt == 2:
            raise Retry(after=0.1)  # again when the handler says
        if message.value == b"second":
            done.set()

    async with (
        connect(url) as broker,
        broker.consumer("orders", group="retries", handler=handle, retry=POLICY),
    ):
        await broker.producer().publish(Message("orders", b"first", key=b"o-1"))
        await broker.producer().publish(Message("orders", b"second", key=b"o-1"))
        await done.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
