"""How the consumers of a group share its work, when some are slow, killed, or come and go: lines 47 and 62."""

import asyncio
from collections import Counter
from uuid import uuid4

from things_kit import Message
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.history import History
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

SLOW = 0.015
"""Seconds for one message: much longer than it takes to bring it."""

LONG = 3.0
"""Seconds for one message, in which a consumer of partitions that has no room stops asking for more."""


def _spread(stage: Stage, topic: str, count: int) -> list[Message]:
    """Messages without a key; where partitions belong to consumers, with keys that spread over all of them."""
    keyed = stage.capabilities.partitions
    return [
        Message(topic, b"x", key=b"%d" % n if keyed else None, id=f"{n}-{uuid4().hex}") for n in range(count)
    ]


class Pace:
    """An act that takes as long as it is told at the moment."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self, message: Message) -> None:
        """Take that long."""
        await asyncio.sleep(self.seconds)


class SharingSuite(Suite):
    """Work goes to whoever can begin it, and nobody keeps what others could do."""

    async def test_two_slow_consumers_share_a_load_evenly(self, stage: Stage) -> None:
        """Line 47: both started, then 600 messages: each handles at least 40 % of them."""
        topic, group = stage.topic(), stage.group()
        history = History()
        for name in ("one", "two"):
            slow = Recorder(Pace(SLOW), history=history, name=name)
            await stage.consume(topic, group, slow, broker=await stage.open(), concurrency=2)
        await stage.publish_all(_spread(stage, topic, 600))
        await eventually(
            lambda: len(set(history.ids("done"))) == 600, 4 * stage.patience, "all 600 are handled"
        )
        shares = Counter(event.worker for event in history.events if event.kind == "done")
        assert min(shares["one"], shares["two"]) >= 240, f"they did not share: {dict(shares)}"

    async def test_what_a_killed_consumer_had_to_do_is_done_by_the_other(self, stage: Stage) -> None:
        """Line 47: of two slow processes one is killed; the other handles what is left of its share."""
        topic, group = stage.topic(), stage.group()
        workers = [await stage.worker(topic, group, concurrency=2, delay=SLOW) for _ in range(2)]
        await stage.publish_all(_spread(stage, topic, 300))
        killed, other = workers
        await eventually(lambda: len(killed.history.ids("done")) >= 20, stage.patience, "both work")
        await killed.kill()

        def left() -> int:
            return 300 - len({id_ for worker in workers for id_ in worker.history.ids("done")})

        await eventually(lambda: not left(), 4 * stage.patience, "the other handles all that is left")
        await stage.until_lag(topic, group, 0)
        assert other.alive

    async def test_a_group_goes_on_after_it_was_scaled_up_and_down_under_load(self, stage: Stage) -> None:
        """Line 62: members join while all are slow, and leave when all are quick, twice."""
        topic, group = stage.topic(), stage.group()
        pace, history = Pace(0.0), History()
        expected: set[str | None] = set()

        async def publish(count: int) -> None:
            messages = _spread(stage, topic, count)
            expected.update(message.id for message in messages)
            await stage.publish_all(messages)

        async def handled() -> None:
            await eventually(
                lambda: expected <= set(history.ids("done")),
                stage.patience,  # sooner than the watch over progress would have it mended
                f"all {len(expected)} messages are handled",
            )

        first = Recorder(pace, history=history, name="first")
        await stage.consume(topic, group, first, concurrency=4, max_in_flight=20)
        for number in range(2):
            pace.seconds = LONG if stage.capabilities.partitions else 0.3
            await publish(150)
            begun = len(first.began) + 8
            await first.until_began(begun, stage.patience)  # so long is it full that it asks for no more
            joined = []
            for _ in range(2):
                member = Recorder(pace, history=history, name=f"joined {number}")
                broker = await stage.open()
                joined.append(
                    await stage.consume(topic, group, member, broker=broker, concurrency=4, max_in_flight=20)
                )
            pace.seconds = 0.0
            await publish(100)
            for consumer in joined:
                await consumer.stop()
            await publish(100)
            await handled()
        await stage.until_lag(topic, group, 0)
