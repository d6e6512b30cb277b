"""Models are what their brokers' drivers are: the engine sees no difference."""

from typing import Final

import msgspec
import pytest

from things_kit import connect
from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models import MODELS

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
