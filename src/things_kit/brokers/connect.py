"""From a URL to a broker: drivers are imported only when a URL asks for them."""

import functools
from importlib import import_module
from typing import Final, cast

import msgspec

from things_kit.engine.broker import Broker
from things_kit.engine.driver import Driver
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

ENTRY_POINTS: Final = "things_kit.brokers"
"""The entry point group in which other packages register a driver under its URL scheme."""


class BuiltIn(msgspec.Struct, frozen=True):
    """Where a driver of ours is, and what must be installed for it."""

    module: str
    name: str
    extra: str | None = None


RABBITMQ: Final = BuiltIn("things_kit.brokers.rabbitmq.driver", "RabbitMQDriver", "rabbitmq")
NATS: Final = BuiltIn("things_kit.brokers.nats.driver", "NATSDriver", "nats")
REDIS: Final = BuiltIn("things_kit.brokers.redis.driver", "RedisDriver", "redis")
POSTGRES: Final = BuiltIn("things_kit.brokers.postgres.driver", "PostgresDriver", "postgres")

BUILT_IN: Final = {
    "amqp": RABBITMQ,
    "amqps": RABBITMQ,
    "kafka": BuiltIn("things_kit.brokers.kafka.driver", "KafkaDriver", "kafka"),
    "memory": BuiltIn("things_kit.brokers.memory", "MemoryDriver"),
    "nats": NATS,
    "postgres": POSTGRES,
    "postgresql": POSTGRES,
    "pubsub": BuiltIn("things_kit.brokers.pubsub.driver", "PubSubDriver", "pubsub"),
    "redis": REDIS,
    "rediss": REDIS,
    "servicebus": BuiltIn("things_kit.brokers.servicebus.driver", "ServiceBusDriver", "servicebus"),
    "sqlite": BuiltIn("things_kit.brokers.sqlite.driver", "SQLiteDriver"),
    "sqs": BuiltIn("things_kit.brokers.sqs.driver", "SQSDriver", "sqs"),
    "tls": NATS,
}


def connect(url: str) -> Broker:
    """The broker behind a URL, to be entered with `async with` (or `await broker.open()`).

    Raises:
        ConfigError: The URL, its scheme or an option is not understood, or the client library is not installed.
    """
    parsed = BrokerURL.parse(url)
    return Broker(_driver(parsed.scheme).from_url(parsed), parsed)


def schemes() -> list[str]:
    """All URL schemes that `connect` knows on this machine."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - costs more than ours; rarely needed

    return sorted({*BUILT_IN, *entry_points(group=ENTRY_POINTS).names})


def _driver(scheme: str) -> type[Driver]:
    built_in = BUILT_IN.get(scheme)
    if built_in is None:
        return _registered(scheme)
    try:
        module = import_module(built_in.module)
    except ModuleNotFoundError as error:
        if built_in.extra is None or (error.name or "").startswith("things_kit"):
            raise
        raise ConfigError(
            f"{scheme}:// needs the package {error.name!r}, which is not installed: "
            f'pip install "things-kit[{built_in.extra}]"'
        ) from error
    return cast("type[Driver]", getattr(module, built_in.name))


@functools.cache  # looking goes through all packages that are installed
def _registered(scheme: str) -> type[Driver]:
    from importlib.metadata import entry_points  # noqa: PLC0415

    found = entry_points(group=ENTRY_POINTS, name=scheme)
    if not found:
        known = ", ".join(f"{name}://" for name in schemes())
        raise ConfigError(f"unknown broker {scheme}://; {_meant(scheme)}known are {known}")
    return cast("type[Driver]", next(iter(found)).load())


def _meant(scheme: str) -> str:
    """What somebody means who writes the name of a broker, or a URL of SQLAlchemy's, or misspells one."""
    import difflib  # noqa: PLC0415 - for mistakes only

    words = {each.extra: name for name, each in reversed(BUILT_IN.items()) if each.extra}
    known = {**words, **dict.fromkeys(schemes())}
    close = difflib.get_close_matches(scheme.partition("+")[0], known, n=1, cutoff=0.75)
    return f"did you mean {known[close[0]] or close[0]}://? " if close else ""
