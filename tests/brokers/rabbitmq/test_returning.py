"""Who leaves a queue gives back what it held, and the broker takes its time to have it in its place again."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("pika")

from things_kit import Broker, Message, connect
from things_kit.brokers.rabbitmq import receiver as receivers
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.rabbitmq import RabbitMQServer


async def holding_one(broker: Broker, topic: str) -> tuple[Any, Any]:
    """A receiver of the group that holds a message, as it is collected from and as it is."""
    driver: Any = broker.transmission.driver
    await broker.declare(topic, ["g"])
    await broker.producer().publish(Message(topic, b"1"))
    first = await collect(driver, Subscription(topic=topic, group="g"))
    assert await first.receive(1, 10)
    [receiver] = [each for each in driver._admin.receivers if each._source.queue.endswith(topic)]
    return first, receiver


async def test_nobody_of_this_process_consumes_before_a_busy_broker_has_all_back(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "FAREWELL", 0.1)
    driver: Any = broker.transmission.driver
    first, leaving = await holding_one(broker, topic)
    members, back = leaving._members, asyncio.Event()

    async def until_back() -> int:
        if not back.is_set():
            return 1
        return int(await members())

    monkeypatch.setattr(leaving, "_members", until_back)
    await first.close()
    joining = asyncio.create_task(collect(driver, Subscription(topic=topic, group="g")))
    await broker.lag(topic, "g")  # the broker has had time to answer something else
    assert not joining.done()
    back.set()
    second = await joining
    await eventually(lambda: not driver._admin.returning(), 10)
    [again] = await second.receive(1, 10)
    assert again.message.value == b"1"
    await second.close()


async def test_a_broker_that_is_closed_meanwhile_waits_for_nothing(
    rabbitmq: RabbitMQServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "FAREWELL", 0.1)
    broker = connect(rabbitmq.url)
    await broker.open()
    driver: Any = broker.transmission.driver
    first, leaving = await holding_one(broker, topic)

    async def never() -> int:
        return 1

    monkeypatch.setattr(leaving, "_members", never)
    await first.close()
    [returning] = driver._admin.returning()
    await broker.close()
    assert returning.done()


async def test_who_cannot_end_its_consumer_in_time_is_waited_for_as_well(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way to it is to come before what is behind."""
    monkeypatch.setattr(receivers, "FAREWELL", 0.05)
    driver: Any = broker.transmission.driver
    await broker.declare(topic, ["g"])
    await collect(driver, Subscription(topic=topic, group="g"))
    [leaving] = [each for each in driver._admin.receivers if each._source.queue.endswith(topic)]
    leaving.credit(5)

    async def consumes() -> bool:
        return bool(await leaving._members() == 1)

    await eventually(consumes, 10)

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(leaving._consumers, "_end", never)
    await leaving.close()
    assert leaving.returning is not None
    second = await collect(driver, Subscription(topic=topic, group="g"))
    assert leaving.returning.done()
    assert await leaving._members() == 0, "its consumer is gone before another one begins"
    await second.close()


async def test_two_that_leave_one_after_the_other_turn_no_order_around(broker: Broker, topic: str) -> None:
    """The second has had the credit for a part of what the first held, and the queue has that part back behind the rest."""
    driver: Any = broker.transmission.driver
    await broker.declare(topic, ["g"])
    values = [b"%d" % number for number in range(30)]
    await broker.producer().publish_batch([Message(topic, value, key=b"k") for value in values])
    for credit in (30, 5, 30):
        reading = await collect(driver, Subscription(topic=topic, group="g"))
        came: list[bytes] = []
        while len(came) < credit:
            came += [each.message.value for each in await reading.receive(credit - len(came), 10)]
        await reading.close()
    assert came == values
