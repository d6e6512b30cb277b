"""The models of brokers, by the name that `simulate(broker=...)` has for them."""

from collections.abc import Callable
from typing import Final

from things_kit.messaging.errors import ConfigError
from things_kit.testing.simulation.models import (
    kafka,
    nats,
    postgres,
    pubsub,
    rabbitmq,
    redis,
    servicebus,
    sqlite,
    sqs,
    sqs_fifo,
)
from things_kit.testing.simulation.models.server import Group, Server, Topic
from things_kit.testing.simulation.models.traits import Traits

MODELS: Final[dict[str, tuple[Traits, Callable[[Server, Topic, str, bool], Group]]]] = {
    module.TRAITS.name: (module.TRAITS, module.GROUP)
    for module in (kafka, rabbitmq, nats, redis, sqs, sqs_fifo, pubsub, servicebus, sqlite, postgres)
}


def model(name: str) -> tuple[Traits, Callable[[Server, Topic, str, bool], Group]]:
    """The model of this broker. Raises ConfigError if there is none."""
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(f"there is no model of a broker {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]
