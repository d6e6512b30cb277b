"""What is secret among the options of drivers is shown nowhere, whichever driver it is."""

from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from things_kit.engine.secrets import is_secret
from things_kit.engine.url import BrokerURL

DRIVERS = {
    "kafka": "KafkaOptions",
    "nats": "NATSOptions",
    "rabbitmq": "RabbitMQOptions",
    "redis": "RedisOptions",
}

OF_A_FORM = {"management": "http://user:geheim@host"}
"""Values of options that are not any text."""

SECRET_NAMES = ("password", "secret", "token")


@pytest.fixture(params=DRIVERS)
def options(request: pytest.FixtureRequest) -> Any:
    module = pytest.importorskip(f"things_kit.brokers.{request.param}.options")
    return getattr(module, DRIVERS[request.param])


def secret(options: Any) -> dict[str, str]:
    fields = msgspec.structs.fields(options)
    return {
        field.name: OF_A_FORM.get(field.name, f"geheim-{field.name}")
        for field in fields
        if is_secret(field.type)
    }


def test_what_is_called_a_secret_is_one(options: Any) -> None:
    called = {
        name for name in options.__struct_fields__ if any(part in SECRET_NAMES for part in name.split("_"))
    }
    assert called <= secret(options).keys()


def test_options_do_not_show_what_is_secret(options: Any) -> None:
    query = "&".join(f"{name}={value}" for name, value in secret(options).items())
    made = BrokerURL.parse(f"x://host?{query}").options(options)
    assert "geheim" not in repr(made) + str(made) + pretty_repr(made)
