"""A topic that is deleted under those who use it: line 54."""

import asyncio

import pytest

from things_kit import Message, ThingsKitError
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually


class DeletionSuite(Suite):
    """Whatever an administrator does to a topic, a confirmation keeps its meaning."""

    async def test_a_topic_deleted_under_its_users_confirms_nothing_that_is_dropped(
        self, stage: Stage
    ) -> None:
        """Line 54: once it is deleted, what is confirmed arrives at the consumer that runs, and so does all afterwards."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        await stage.publish(topic, b"before")
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)
        elsewhere = await stage.open()
        await elsewhere.remove(topic)
        confirmed = await self._confirmed(stage, topic, 20)
        await eventually(
            lambda: set(confirmed) <= recorder.ids,
            2 * stage.patience,
            "all that was confirmed after the deletion arrives",
        )
        await stage.until_lag(topic, group, 0)
        assert (await stage.broker.health()).ok

    async def _confirmed(self, stage: Stage, topic: str, count: int) -> list[str]:
        """Publish until so many are confirmed: some may be refused while the topic is made anew."""
        producer = stage.broker.producer()
        confirmed: list[str] = []
        refused: Exception | None = None
        deadline = asyncio.get_running_loop().time() + 2 * stage.patience
        number = 0
        while len(confirmed) < count:
            number += 1
            try:
                await producer.publish(Message(topic, b"after", id=f"after-{number}"))
            except ThingsKitError as error:
                refused = error
                await asyncio.sleep(0.1)
            else:
                confirmed.append(f"after-{number}")
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"publishing does not go on after the deletion: {refused!r}")
        await producer.close()
        return confirmed

    async def test_who_subscribes_makes_the_topic_that_was_deleted_meanwhile(self, stage: Stage) -> None:
        """Line 54: though nobody publishes; between two looks of a consumer that makes it anew it may be deleted again."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        driver = stage.broker.transmission.driver
        await driver.remove(topic)  # behind the engine's back
        receiver = await collect(driver, Subscription(topic=topic, group=group))
        await receiver.receive(1, 0.0)
        await receiver.close()
        recorder = await stage.record(topic, group)
        await stage.publish(topic, b"1")
        await recorder.until_done(1, stage.patience)
