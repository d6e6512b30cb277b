"""Each two or three transforms in each order, through a bridge that renames, a retry, a dead letter and its replay."""

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import pytest

from things_kit import Message, RetryPolicy, connect
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.messaging.transform import Transform
from things_kit.middleware import claim_check, compress, encrypt
from things_kit.patterns.bridge import Bridge
from things_kit.testing.conformance.waiting import eventually

TEXT = b"value " * 100

KINDS: dict[str, Callable[[Path], Transform]] = {
    "compress": lambda _: compress("gzip", above=10),
    "encrypt": lambda _: encrypt({"a": b"k" * 32}, topics=["orders"]),
    "claim_check": lambda folder: claim_check(folder, above=10),
}


@pytest.mark.parametrize("names", [*permutations(KINDS, 2), *permutations(KINDS, 3)], ids="-".join)
async def test_transforms_go_through_bridge_retry_dead_letter_and_replay(
    names: Sequence[str], tmp_path: Path
) -> None:
    chain = [KINDS[name](tmp_path / "claims") for name in names]
    seen: list[Message] = []

    async def handle(message: Message) -> None:
        seen.append(message)
        if len(seen) <= 2:
            raise ValueError("not yet")

    async with connect(f"sqlite:///{tmp_path}/near.db") as near, connect("memory://") as far:
        retry = RetryPolicy(attempts=2, first=0.01)
        await near.declare("orders")
        await near.producer(transforms=chain).publish(Message("orders", TEXT))
        async with (
            Bridge(near, far, ["orders"], rename={"orders": "moved"}),
            far.consumer("moved", group="g", handler=handle, retry=retry, transforms=chain),
        ):
            await eventually(lambda: len(seen) == 2, 10, "it was tried twice")

            async def is_dead() -> bool:
                return await far.lag("moved-dlq", group=DEAD_LETTER_GROUP) == 1

            await eventually(is_dead, 10, "it is a dead letter")
            assert await far.replay("moved-dlq", where=lambda dead: dead.value != TEXT) == 1
            await eventually(lambda: len(seen) == 3, 10, "it was handled")
    assert [message.value for message in seen] == [TEXT] * 3
    assert "content-encoding" not in seen[-1].headers
