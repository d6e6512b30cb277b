"""Models are what their brokers' drivers are: the engine sees no difference."""

import random
from typing import Final

import msgspec
import pytest

from things_kit import Message, connect
from things_kit.engine.driver import Capabilities, Subscription
from things_kit.testing.simulation.models import MODELS, model
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.server import Server
from things_kit.testing.simulation.plan import Chance, Plan
from things_kit.testing.simulation.process import SimulatedProcess

URLS: Final = {
    "kafka": "kafka://localhost",
    "rabbitmq": "amqp://localhost",
    "nats": "nats://localhost",
    "redis": "redis://localhost",
    "sqs": "sqs://eu-west-1",
    "sqs-fifo": "sqs://eu-west-1",
    "pubsub": "pubsub://project",
    "servicebus": "servicebus://namespace?emulator=true&admin_port=5300&key_name=Root&key=c2VjcmV0",
    "sqlite": "sqlite:///events.db",
    "postgres": "postgres://localhost/events",
}


def of_driver(name: str) -> Capabilities:
    """What the real broker's driver has, as it is used by default."""
    capabilities = connect(URLS[name]).capabilities
    if name == "nats":  # a server says so once it is connected
        return msgspec.structs.replace(capabilities, schedule_ids=True, schedules=True)
    return capabilities


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_capabilities_of_its_broker(name: str) -> None:
    assert msgspec.structs.asdict(MODELS[name][0].capabilities) == msgspec.structs.asdict(of_driver(name))


IN_ORDER: Final = [
    name for name, (traits, kind) in MODELS.items() if kind is QueueGroup and not traits.unordered
]


@pytest.mark.parametrize("name", IN_ORDER)
async def test_what_two_receivers_left_when_they_closed_comes_again_in_its_order(name: str) -> None:
    traits, kind = model(name)
    server = Server(traits, kind, Chance(Plan(seed=1, processes=1), {}), lambda *_: None)
    group = server.group(server.topic("orders"), "billing", earliest=True)
    assert isinstance(group, QueueGroup)
    driver = server.driver(SimulatedProcess(1, 0, 0.0, random.Random(1)))
    for number in "1234":
        assert server.append(Message("orders", b"x", key=b"k", id=number)) is None

    async def taken(limit: int) -> list[str | None]:
        receiver = group.join(driver, Subscription(topic="orders", group="billing"))
        ids = [each.message.id for each in group.take(receiver, limit)]
        await receiver.close()
        return ids

    every = ["1", "2", "3", "4"]
    assert every[: len(first := await taken(4))] == first
    assert await taken(2) == first[:2]
    assert await taken(4) == first
