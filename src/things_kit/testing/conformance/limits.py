"""Messages at the very limit of size: line 50."""

from typing import Final

import pytest

from things_kit import Message, Reject
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import Stage

RESERVE: Final = 2048
"""What publish keeps of the broker's limit for the headers of a dead letter."""


async def _reject(message: Message) -> None:
    raise Reject("it is not wanted, " + "n" * 500)


class LimitSuite(Suite):
    """Every message can become a dead letter: none is handled for ever because it is large."""

    async def _limit(self, stage: Stage) -> int:
        if not stage.target.size_options:
            pytest.skip("give size_options, to have a limit that is cheap to reach")
        limit = (await stage.open(**stage.target.size_options)).capabilities.max_message_bytes
        assert limit is not None
        return limit

    async def test_the_largest_message_becomes_a_dead_letter_with_its_story(self, stage: Stage) -> None:
        """Line 50: as large as publish takes it, by one byte; value, headers and the whole story arrive."""
        limit = await self._limit(stage)
        broker = await stage.open(**stage.target.size_options)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, _reject, broker=broker)
        sent, size = None, limit
        while sent is None and size > limit - RESERVE:  # what counts besides the value is the broker's own
            try:
                [sent] = await stage.publish(topic, b"v" * size, broker=broker, headers={"type": "huge"})
            except Exception:  # noqa: BLE001 - too large by a byte or more
                size -= 1
        assert sent is not None, f"no message near {limit} bytes is taken"
        [dead] = await stage.dead_letters(topic, 1)
        assert (dead.value, dead.id, dead.headers["type"]) == (sent.value, sent.id, "huge")
        assert {"original-topic", "consumer-group", "attempts", "error-type", "error"} <= dead.headers.keys()
        await stage.until_lag(topic, group, 0)
        assert len(recorder.began) == 1

    async def test_a_foreign_message_at_the_brokers_limit_becomes_a_dead_letter(self, stage: Stage) -> None:
        """Line 50: the story is cut where there is no room for it, the value never."""
        publish = stage.target.foreign_publish
        if publish is None:
            pytest.skip("give foreign_publish")
        limit = await self._limit(stage)
        broker = await stage.open(**stage.target.size_options)
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, _reject, broker=broker)
        value = b"v" * (limit + RESERVE)
        await publish(topic, b"k", value, {})
        [dead] = await stage.dead_letters(topic, 1)
        assert dead.value == value
        await stage.until_lag(topic, group, 0)
        assert len(recorder.began) == 1
