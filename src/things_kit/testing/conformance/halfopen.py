"""Connections that fall silent without a reset: line 52."""

import asyncio
import time
from typing import Final

import pytest

from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

NOTICED: Final = 30.0
"""Seconds within which a silent connection is noticed and replaced."""


class HalfOpenSuite(Suite):
    """A firewall forgets a connection, a cable is pulled: nobody is told, and all goes on. Needs `Target.half_open`.

    It is no part of `ConformanceSuite`, as it takes half a minute: subclass it for a target with a way that can fall
    silent, such as `things_kit.testing.servers.relay.Relay`.
    """

    @pytest.mark.timeout(180)
    async def test_a_silent_connection_is_noticed_and_replaced(self, stage: Stage) -> None:
        """Line 52: within 30 s; a publish under way goes through, what others publish arrives, and health says so meanwhile."""
        half_open = stage.target.half_open
        assert half_open is not None, "this suite needs Target.half_open"
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, concurrency=2)
        await stage.publish(topic, b"before")
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)
        ill: list[str] = []

        async def watch() -> None:
            while True:
                health = await stage.broker.health()
                if not health.ok:
                    ill.append(health.reason or "")
                await asyncio.sleep(0.2)

        watching = asyncio.create_task(watch())
        await half_open()
        began = time.monotonic()
        try:
            other = await stage.open()  # a new connection, which works
            await stage.publish(topic, b"of another", broker=other)
            publishing = asyncio.create_task(stage.publish(topic, b"under way"))
            await asyncio.wait_for(publishing, NOTICED + stage.patience)  # its publish_timeout is 30 s
            assert time.monotonic() - began <= NOTICED + 1, "the publish outlived its publish_timeout"
            await eventually(
                lambda: {b"of another", b"under way"} <= set(recorder.values),
                NOTICED + stage.patience - (time.monotonic() - began),
                "what was published meanwhile arrives",
            )
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert ill, "health never said that something was wrong"

        async def well() -> bool:
            return (await stage.broker.health()).ok

        await eventually(well, stage.patience, "health is good again")

    async def test_a_consumer_that_falls_silent_while_nothing_happens_hears_again(self, stage: Stage) -> None:
        """Line 52: though nobody publishes through its connection, and nothing is under way on it."""
        half_open = stage.target.half_open
        assert half_open is not None, "this suite needs Target.half_open"
        topic, group = stage.topic(), stage.group()
        listening = await stage.open()
        recorder = Recorder()
        await stage.consume(topic, group, recorder, broker=listening)
        await stage.publish(topic, b"heard")
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)
        await half_open()
        publishing = await stage.open()
        await stage.publish(topic, b"unheard at first", broker=publishing)
        await recorder.until_done(2, NOTICED + stage.patience)
