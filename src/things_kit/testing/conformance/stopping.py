"""Stopping in time, whatever the broker does: line 49."""

import asyncio
import time
from typing import Final

import pytest

from things_kit import Broker, BrokerUnavailable, Message
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

DRAIN: Final = 1.0
STOP: Final = 5.0
"""Seconds that `stop` may take beyond its `drain_timeout`."""

CLOSE: Final = 4.0
"""Seconds that `close` flushes, when the consumers have stopped."""

BUSY: Final = 1.5
"""Seconds that a busy machine may add."""


async def assert_stops_in_time(consumer: object, broker: Broker, publishing: "asyncio.Task[None]") -> None:
    """Stop a consumer and close its broker, which is away: both within their time; what hangs is told so."""
    began = time.monotonic()
    await asyncio.wait_for(consumer.stop(), 15)  # type: ignore[attr-defined]
    stopped = time.monotonic()
    await asyncio.wait_for(broker.close(), 15)
    closed = time.monotonic()
    assert stopped - began <= DRAIN + STOP + BUSY, f"stop took {stopped - began:.1f} s"
    assert closed - stopped <= CLOSE + BUSY, f"close took {closed - stopped:.1f} s more"
    with pytest.raises(BrokerUnavailable):
        await publishing


class StoppingSuite(Suite):
    """Kubernetes kills after 30 seconds: an outage must not make of every deployment a crash."""

    async def test_a_consumer_stops_and_its_broker_closes_in_time_though_nobody_answers(
        self, stage: Stage
    ) -> None:
        """Line 49: with a handler that hangs, one that has ended, and a publish under way; nothing is lost by it."""
        stage.needs_outage()
        topic, group = stage.topic(), stage.group()
        broker = await stage.open(publish_timeout=60)
        gate, finish = Gate(passing=lambda message: message.value != b"hangs"), Gate()

        async def act(message: Message) -> None:
            await gate(message)
            await finish(message)

        recorder = Recorder(act)
        consumer = await stage.consume(
            topic, group, recorder, broker=broker, concurrency=2, drain_timeout=DRAIN
        )
        sent = await stage.publish(topic, b"hangs", broker=broker, key=b"1")
        sent += await stage.publish(topic, b"ends", broker=broker, key=b"2")
        await recorder.until_began(2, stage.patience)
        producer = broker.producer()
        async with stage.outage():
            finish.open()
            await recorder.until_done(1, stage.patience)
            publishing = asyncio.create_task(producer.publish(Message(topic, b"under way")))
            done, _ = await asyncio.wait({publishing}, timeout=0.3)
            assert not done, "the broker is away, but publish ended"
            await assert_stops_in_time(consumer, broker, publishing)
        rest = await stage.record(topic, group)
        await eventually(
            lambda: sent[0].id in rest.ids, 2 * stage.patience, "what had not ended comes again elsewhere"
        )
