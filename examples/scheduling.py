"""A reminder that comes later, one that is put off, and one that is cancelled."""

import asyncio

from things_kit import Message, connect


async def main() -> None:
    """Schedule, replace and cancel; then see what comes."""
    came: asyncio.Queue[str] = asyncio.Queue()

    async def remind(message: Message) -> None:
        await came.put(message.value.decode())

    async with connect("memory://") as broker:
        producer = broker.producer()
        await producer.publish(Message("reminders", b"pay o-1"), after=3600, schedule_id="o-1")
        await producer.publish(Message("reminders", b"pay o-2"), after=0.1, schedule_id="o-2")
        await producer.publish(Message("reminders", b"pay o-2 at last"), after=0.3, schedule_id="o-2")
        await producer.publish(Message("reminders", b"welcome"), after=0.2)
        print("to come:", len(await broker.schedules("reminders")))
        print("cancelled:", await broker.cancel("reminders", "o-1"))
        async with broker.consumer("reminders", group="mail", handler=remind):
            print(await came.get())
            print(await came.get())
        print("to come:", len(await broker.schedules("reminders")))


if __name__ == "__main__":
    asyncio.run(main())
