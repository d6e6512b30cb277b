"""Mistakes of users, and what is said of them: lines 57 and 59."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from things_kit import Broker, ConfigError, Message, ThingsKitError, connect
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage

WRONG = "as-you-like-it"
"""A value that no option takes."""


async def _publish(broker: Broker, topic: str, group: str) -> None:
    await broker.producer().publish(Message(topic, b"x"))


async def _lag(broker: Broker, topic: str, group: str) -> None:
    await broker.lag(topic, group=group)


async def _consume(broker: Broker, topic: str, group: str) -> None:
    await broker.consumer(topic, group=group, handler=Recorder()).start()


async def _declare(broker: Broker, topic: str, group: str) -> None:
    await broker.declare(topic, groups=[group])


class MistakeSuite(Suite):
    """Each says itself in one sentence, with what was meant."""

    @pytest.mark.parametrize("use", [_publish, _lag, _consume, _declare])
    async def test_a_broker_used_from_a_second_event_loop_says_so(
        self, stage: Stage, use: Callable[[Broker, str, str], Awaitable[Any]]
    ) -> None:
        """Line 57: at once, in one sentence, and the first loop goes on as if nothing had been."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        await stage.publish(topic, b"before")
        await recorder.until_done(1, stage.patience)

        async def elsewhere() -> BaseException | None:
            try:
                await asyncio.wait_for(use(stage.broker, topic, group), 5)
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                return error
            return None

        error = await asyncio.to_thread(asyncio.run, elsewhere())
        assert isinstance(error, ThingsKitError), f"it was answered with {error!r}"
        assert "event loop" in str(error)
        assert "\n" not in str(error)
        await stage.publish(topic, b"after")
        await recorder.until_done(2, stage.patience)

    async def test_an_error_about_an_option_quotes_its_value(self, stage: Stage) -> None:
        """Line 59: name and value, of the engine's options and of the driver's own."""
        options = {
            "publish_timeout",
            "declare",
            "unrouted",
            *stage.target.size_options,
            *stage.target.lease_options,
        }
        for name in sorted(options):
            with pytest.raises(ConfigError) as raised:
                connect(stage.target.at(**{name: WRONG}))
            assert name in str(raised.value)
            assert WRONG in str(raised.value), f"the wrong value of {name} is not said: {raised.value}"
