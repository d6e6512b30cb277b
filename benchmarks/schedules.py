"""How late scheduled messages are handled: `python -m benchmarks.schedules URL [COUNT] [PER_SECOND]`.

Each has a time of its own, from two seconds after all were published on; who handles them is in the same process.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from benchmarks.rounds import name
from things_kit import Message, connect

LEAD = 2.0
"""Seconds from the last publish to the first time."""


async def lateness(url: str, count: int, rate: float) -> list[float]:
    """Seconds by which each was late, sorted."""
    late: list[float] = []
    done = asyncio.Event()

    async def handle(message: Message) -> None:
        late.append((datetime.now(UTC) - datetime.fromisoformat(message.headers["due"])).total_seconds())
        if len(late) == count:
            done.set()

    async with connect(url) as broker:
        topic, producer = name("late"), broker.producer()
        await broker.declare(topic, groups=["bench"])
        # As many as there are when the first is due are to be published by then: 300 a second and more
        first = datetime.now(UTC) + timedelta(seconds=LEAD + count / 300)
        try:
            async with broker.consumer(topic, group="bench", handler=handle, concurrency=8):
                for start in range(0, count, 100):
                    times = [
                        first + timedelta(seconds=n / rate) for n in range(start, min(start + 100, count))
                    ]
                    await asyncio.gather(
                        *(
                            producer.publish(
                                Message(topic, b"x" * 200, headers={"due": at.isoformat()}), at=at
                            )
                            for at in times
                        )
                    )
                print(
                    f"published {(first - datetime.now(UTC)).total_seconds():.1f} s before the first is due"
                )
                await done.wait()
        finally:
            await broker.remove(topic)
    return sorted(late)


def main(url: str, count: str = "3000", rate: str = "200") -> None:
    """Prints the figures of one run."""
    late = asyncio.run(lateness(url, int(count), float(rate)))
    half, most = late[len(late) // 2], late[len(late) * 99 // 100]
    print(
        f"{count} messages, {rate} a second: late by {half:.3f} s (half), {most:.3f} s (99 of 100), {late[-1]:.3f} s (the last); "
        f"earliest {late[0]:.3f} s"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
