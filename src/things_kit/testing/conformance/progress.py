"""Consumers that receive nothing although they should: line 60."""

import asyncio
import logging
from typing import Final

import pytest

from things_kit.engine import watch
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.connection import faulty
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

NOTICED: Final = 60.0
"""Seconds within which such a consumer is opened anew."""


class ProgressSuite(Suite):
    """No client library is trusted to come back by itself."""

    async def test_a_consumer_that_has_gone_deaf_is_opened_anew(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Line 60: the client has lost its own state; health and one warning say so until it is opened anew.

        The watch looks sooner here than it does otherwise, for half a minute is long in a test.
        """
        monkeypatch.setattr(watch, "IDLE", 0.5)
        monkeypatch.setattr(watch, "LOOK", 0.2)
        topic, group = stage.topic(), stage.group()
        broker, driver = await faulty(stage)
        recorder = await stage.record(topic, group, broker=broker)
        await stage.publish(topic, b"before")
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)

        async def ill() -> bool:
            health = await broker.health()
            return not health.ok and topic in (health.reason or "")

        with caplog.at_level(logging.WARNING, "things_kit"):
            opening = driver.hold_subscriptions()
            await driver.go_deaf()
            await stage.publish(topic, b"unheard at first")
            await eventually(ill, stage.patience, "health says that it receives nothing")
            opening.set()
            await recorder.until_done(2, stage.patience)
        said = [record.getMessage() for record in caplog.records if topic in record.getMessage()]
        assert len(said) == 1, said


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
