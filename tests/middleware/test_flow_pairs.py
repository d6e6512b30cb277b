"""Throttle, breaker and deduplicate, by twos and threes in each order, with all transforms: behind a bridge, through retries, dead letter and replay."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.engine.scenario import until, virtual
from tests.middleware.test_throttle import most_in
from tests.patterns.mortal import KILLED, child
from things_kit import Message, RetryPolicy, connect
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.middleware import (
    MemoryStore,
    circuit_breaker,
    claim_check,
    compress,
    deduplicate,
    encrypt,
    throttle,
)
from things_kit.patterns.bridge import Bridge
from things_kit.testing.conformance.waiting import eventually

RATE = 4
IDS = [str(number) for number in range(12)]
FAILING = IDS[:RATE]
POISON = IDS[-1]
TEXT = b"value " * 100
CALM = {"throttle": "free", "circuit_breaker": "closed", "deduplicate": "ready"}

KINDS: dict[str, Callable[[], Any]] = {
    "throttle": lambda: throttle(RATE),
    "circuit_breaker": lambda: circuit_breaker(failures=3, reset=5, on=(ConnectionError,)),
    "deduplicate": lambda: deduplicate(MemoryStore(), lease=3600),
}


class Shelf:
    """A store of claims in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes, /) -> None:
        self._kept[key] = value

    async def get(self, key: str, /) -> bytes | None:
        return self._kept.get(key)

    async def sweep(self, before: datetime, /) -> None: ...


class Partner:
    """What the handler calls: it fails at the first call for some messages, and for one until it is mended."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str, int]] = []
        self.done: list[str] = []
        self.mended = False

    async def handle(self, message: Message) -> None:
        assert message.value == TEXT
        number = message.id or ""
        known = {each for _, each, _ in self.calls}
        self.calls.append((asyncio.get_running_loop().time(), number, message.attempt))
        if number in FAILING and number not in known:
            raise ConnectionError("down")
        if number == POISON and not self.mended:
            raise ValueError("poison")
        self.done.append(number)


@pytest.mark.parametrize("names", [*permutations(KINDS, 2), *permutations(KINDS, 3)], ids="-".join)
@virtual(wall_clock=True)
async def test_flow_control_holds_behind_a_bridge_and_through_retry_dead_letter_and_replay(
    names: Sequence[str],
) -> None:
    chain = [KINDS[name]() for name in names]
    times = 1 if "deduplicate" in names else 2
    partner, retry = Partner(), RetryPolicy(attempts=3, first=0.01)
    transforms = [
        compress("gzip", above=10),
        encrypt({"a": b"k" * 32}, topics=["orders"]),
        claim_check(Shelf(), above=10),
    ]
    async with connect("memory://near") as near, connect("memory://far") as far:
        await near.declare("orders", ["bridge"])
        sent = [Message("orders", TEXT, key=each.encode(), id=each) for each in IDS]
        await near.producer(transforms=transforms).publish_batch(
            [*sent, *sent]
        )  # as a bridge sends again that was killed
        async with (
            Bridge(near, far, ["orders"], rename={"orders": "moved"}),
            far.consumer(
                "moved",
                group="g",
                handler=partner.handle,
                retry=retry,
                middleware=chain,
                transforms=transforms,
            ),
        ):

            async def lag(topic: str, group: str, expected: int) -> None:
                async with asyncio.timeout(600):
                    while await far.lag(topic, group) != expected:  # noqa: ASYNC110 - only the broker knows
                        await asyncio.sleep(0.1)

            await lag("moved-dlq", DEAD_LETTER_GROUP, 2)
            await lag("moved", "g", 0)
            assert Counter(partner.done) == dict.fromkeys(IDS[:-1], times)

            partner.mended = True
            assert await far.replay("moved-dlq") == 2
            await lag("moved", "g", 0)
            assert Counter(partner.done) == dict.fromkeys(IDS, times)
            await until(lambda: all(each.state == CALM[each.name] for each in chain))
    if "throttle" in names:
        assert most_in([time for time, _, _ in partner.calls], 1.0) == RATE
    if "circuit_breaker" in names:  # the failure that opened it was no attempt
        first = Counter(number for _, number, attempt in partner.calls if attempt == 1 and number in FAILING)
        assert max(first.values()) > times


# --- a bridge that is killed


async def move_and_die(near: str, far: str) -> None:
    """Dies when the target has confirmed the first messages, and the source does not know it."""

    async def told(message: Message, error: Exception | None) -> None:
        if message.id == IDS[-1]:
            os._exit(KILLED)

    async with (
        connect(near) as source,
        connect(far) as target,
        Bridge(source, target, ["orders"], told=told) as bridge,
    ):
        await bridge.until_empty()


async def move_on_and_read(near: str, far: str, database: Path) -> tuple[int, Partner]:
    """How many messages had come to the target, and what its consumer made of them."""
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    partner, engine = Partner(), create_async_engine(f"sqlite+aiosqlite:///{database}")
    partner.mended = True
    once = deduplicate(engine)
    await once.create()
    chain: list[Any] = [
        once,
        circuit_breaker(failures=3, reset=0.1, on=(ConnectionError,)),
        throttle(RATE, per=0.1),
    ]
    async with connect(near) as source, connect(far) as target:
        async with Bridge(source, target, ["orders"]) as bridge:
            await bridge.until_empty()
        came = await target.lag("orders", "g")
        assert came is not None
        retry = RetryPolicy(attempts=3, first=0.01)
        async with target.consumer(
            "orders", group="g", handler=partner.handle, retry=retry, middleware=chain
        ):

            async def all_done() -> bool:
                return await target.lag("orders", "g") == 0

            await eventually(all_done, 30, "all is acknowledged")
    await engine.dispose()
    return came, partner


async def publish(url: str) -> None:
    async with connect(url) as broker:
        await broker.declare("orders", ["bridge"])
        await broker.producer().publish_batch([Message("orders", TEXT, id=each) for each in IDS])


def test_what_a_killed_bridge_sends_again_is_handled_once(tmp_path: Path) -> None:
    near, far = (f"sqlite:///{tmp_path}/{side}.db?lease=1" for side in ("near", "far"))
    asyncio.run(publish(near))
    assert child(move_and_die(near, far)) == KILLED
    came, partner = asyncio.run(move_on_and_read(near, far, tmp_path / "marks.db"))
    assert came > len(IDS)
    assert sorted(partner.done) == sorted(IDS)
