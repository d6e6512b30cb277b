"""Values that are compressed, encrypted, and kept elsewhere where they are large; the handler sees none of it."""

import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from things_kit import Message, connect
from things_kit.middleware import claim_check, compress, encrypt


async def main(url: str = "memory://") -> None:
    seen = asyncio.Semaphore(0)

    async def handle(message: Message) -> None:
        print(f"read {len(message.value)} bytes")
        seen.release()

    async def look(message: Message) -> None:
        print(f"sent {message.headers['content-encoding']}")
        seen.release()

    with tempfile.TemporaryDirectory() as folder:
        keys = {"2026": secrets.token_bytes(32)}
        chain = [compress("gzip"), encrypt(keys), claim_check(Path(folder), above=1000)]
        async with (
            connect(url) as broker,
            broker.consumer("orders", group="billing", handler=handle, transforms=chain),
            broker.consumer("orders", group="curious", handler=look),
        ):
            producer = broker.producer(transforms=chain)
            await producer.publish(Message("orders", b"short"))
            await producer.publish(Message("orders", secrets.token_hex(100_000).encode()))
            for _ in range(4):
                await seen.acquire()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
