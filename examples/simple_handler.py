"""A handler that gets its payload decoded. Run it with a broker's URL, or without for one in memory."""

import asyncio
import sys
from dataclasses import dataclass

from things_kit import Message, connect


@dataclass
class Email:
    to: str
    text: str


class EmailHandler:
    """Sends what comes; `sent` is how many."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()

    async def handle(self, message: Message) -> None:
        print(f"sending {message.value.decode()}")
        self.sent.set()


async def main(url: str = "memory://") -> None:
    handler = EmailHandler()
    typed = asyncio.Event()

    async def send(email: Email) -> None:  # a function may ask for the payload itself
        print(f"to {email.to}: {email.text}")
        typed.set()

    async with (
        connect(url) as broker,
        broker.consumer("emails", group="objects", handler=handler),
        broker.consumer("emails", group="functions", handler=send),
    ):
        await broker.producer().publish(Message("emails", b'{"to": "ada@example.com", "text": "hello"}'))
        await handler.sent.wait()
        await typed.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
