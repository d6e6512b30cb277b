"""A partner that takes few calls a moment, goes down, and must not charge twice: no order is lost to it."""

import asyncio
import sys
from collections import Counter

from things_kit import Message, RetryPolicy, connect
from things_kit.middleware import MemoryStore, circuit_breaker, deduplicate, throttle

ORDERS = [Message("payments", b"o-%d" % number, id=f"o-{number}") for number in range(20)]


class Partner:
    """Charges for orders. With the fourth call it is down, until somebody has seen to it."""

    def __init__(self) -> None:
        self.charged: Counter[bytes] = Counter()
        self.calls = 0
        self.down = False
        self.missed = asyncio.Event()
        self.all_charged = asyncio.Event()

    async def charge(self, message: Message) -> None:
        self.calls += 1
        self.down = self.down or self.calls == 4
        if self.calls == 5:
            self.missed.set()
        if self.down:
            raise ConnectionError("the partner does not answer")
        self.charged[message.value] += 1
        if len(self.charged) == len(ORDERS):
            self.all_charged.set()


async def main(url: str = "memory://") -> None:
    partner = Partner()
    async with connect(url) as broker:
        consumer = broker.consumer(
            "payments",
            group="partner",
            handler=partner.charge,
            concurrency=4,
            retry=RetryPolicy(attempts=3, first=0.1),  # without the breaker orders would be dead letters soon
            # Outermost first: what was charged before tells the breaker nothing, and takes nobody's place
            middleware=[
                deduplicate(MemoryStore()),
                circuit_breaker(failures=2, reset=0.1),
                throttle(3, per=0.1),
            ],
        )

        def status() -> str:
            return ", ".join(f"{each.name} {each.state}" for each in consumer.health().middleware)

        async with consumer:
            print(f"at first: {status()}")
            await broker.producer().publish_batch([*ORDERS, *ORDERS[:5]])  # five of them come twice
            await partner.missed.wait()
            print(f"down: {status()}")
            partner.down = False  # somebody has seen to it
            await partner.all_charged.wait()
        print(f"{partner.charged.total()} charges for {len(partner.charged)} orders")
        print(f"dead letters: {await broker.lag('payments-dlq', group='dead-letters')}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
