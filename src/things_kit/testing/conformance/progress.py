"""Consumers that receive nothing although they should: line 60."""

import asyncio
from typing import Final

import pytest

from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

NOTICED: Final = 60.0
"""Seconds within which such a consumer is opened anew."""


class FreezeSuite(Suite):
    """A broker that stands still for longer than sessions and leases last. Needs `Target.pause`, on its own server."""

    @pytest.mark.timeout(240)
    async def test_every_member_goes_on_after_freezes(self, stage: Stage) -> None:
        """Line 60: three members in processes of their own; after each of two freezes all messages are handled in time."""
        if stage.target.pause is None:
            pytest.skip("this target does not stand still")
        topic, group = stage.topic(), stage.group()
        workers = [await stage.worker(topic, group, concurrency=4) for _ in range(3)]
        expected: set[str | None] = set()

        async def publish(count: int) -> None:
            for number in range(count):
                sent = await stage.publish(topic, b"x", key=b"%d" % number)
                expected.update(message.id for message in sent)

        def missing() -> int:
            done = {id_ for worker in workers for id_ in worker.history.ids("done")}
            return len(expected - done)

        await publish(60)
        await eventually(lambda: not missing(), stage.patience, "the group works")
        for _ in range(2):
            await publish(20)
            async with stage.outage():
                await asyncio.sleep(stage.target.outlasts)
            await publish(60)
            await eventually(lambda: not missing(), NOTICED, "every message is handled after the freeze")
        for worker in workers:
            await worker.stop()
