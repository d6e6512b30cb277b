"""What an `amqp://` URL asks for, and how it is to be reached."""

import re
import ssl
from collections.abc import Sequence
from typing import Any, Final, Self

import msgspec

from things_kit.brokers.rabbitmq.amqp.connection import Login
from things_kit.engine.addresses import Address, address, addresses
from things_kit.engine.secrets import Secret
from things_kit.engine.tls import TLSOptions, check_tls, tls_context
from things_kit.engine.url import BrokerURL

PORTS: Final = {"amqp": 5672, "amqps": 5671}

PATIENCE: Final = 10.0
"""Seconds for one host to let us in, where a publish may wait so long."""

UNLIMITED: Final = 2**31 - 1
"""Deliveries after which a quorum queue drops a message. Since 4.0 that is 20 by default; -1 lifts it there, and drops
every message that comes back on 3.10."""

API: Final = re.compile(
    r"(?P<scheme>https?)://(?:(?P<user>[^:@/?#]+):(?P<password>.*)@)?(?P<at>[^@/?#]+)(?P<path>/[^@?#]*)?"
)
"""Where the management API is."""

API_PORTS: Final = {"http": 15672, "https": 15671}

_TEMPLATE: Final = re.compile(r"\{(?!topic\}|group\})")


class RabbitMQOptions(TLSOptions, frozen=True):
    """The options of `amqp://` and `amqps://`; those of TLS are for the latter.

    Attributes:
        exclusive: Group queues have a single active consumer: order across processes.
        arguments: More arguments of group queues that are declared: `x-max-length=1000,x-overflow=reject-publish`.
        exchange: An exchange that exists, to which every topic is published and every group is bound, instead of
            one exchange a topic.
        routing_key: With `exchange`: under which key a topic is published there, and a group's queue is bound.
        queue: A queue that exists, from which groups consume, instead of one of their own; never declared or removed.
        max_message_bytes: The largest value, key and headers together.
        consumer_timeout: Seconds for which the broker lets a consumer hold a message, its setting of that name: what is
            held for longer is renewed before.
        heartbeat: Both sides say twice in so many seconds that they live; a connection that is silent for twice as
            long is opened anew. 0: neither.
        management: Where RabbitMQ's management API is, `http://HOST:PORT`, for who lists topics; by default the same host
            and user, on port 15672, or 15671 with TLS.
    """

    exclusive: bool = False
    arguments: str = ""
    exchange: str | None = None
    routing_key: str = "{topic}"
    queue: str | None = None
    max_message_bytes: int = 16 * 1024 * 1024
    consumer_timeout: float = 1800.0
    heartbeat: int = 10
    management: Secret | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.max_message_bytes <= 512 * 1024 * 1024:
            raise ValueError("max_message_bytes must be from 1 to 512 MiB")
        if not 0 <= self.heartbeat <= 65535:
            raise ValueError("heartbeat must be from 0 to 65535 seconds")
        if not 1 <= self.consumer_timeout <= 1_000_000:
            raise ValueError("consumer_timeout must be from 1 to 1,000,000 seconds")
        if not all(re.fullmatch(r"[^=]+=[^=]+", part) for part in self._arguments()):
            raise ValueError("arguments must be like x-max-length=1000,x-overflow=reject-publish")
        for name in ("routing_key", "queue"):
            if _TEMPLATE.search(getattr(self, name) or ""):
                raise ValueError(f"{name} may contain {{topic}} and {{group}}, and no other braces")
        if "{group}" in self.routing_key:
            raise ValueError("routing_key is of a topic, whatever the group: it may contain {topic} only")
        if self.exchange is None and self.routing_key != "{topic}":
            raise ValueError("routing_key goes with exchange")
        if self.exchange == "" or self.queue == "":
            raise ValueError("exchange and queue must be names")
        if self.management is not None:
            found = API.fullmatch(self.management.reveal())
            if found is None:
                raise ValueError(
                    "management must be http://HOST:PORT or https://HOST:PORT, for another user with USER:PASSWORD@ before HOST"
                )
            address(found["at"], API_PORTS[found["scheme"]])

    def _arguments(self) -> list[str]:
        return self.arguments.split(",") if self.arguments else []

    def queue_arguments(self) -> dict[str, str | int]:
        """What a group's queue is declared with."""
        given = dict(part.strip().split("=") for part in self._arguments())
        found: dict[str, str | int] = {"x-queue-type": "quorum"}
        found |= {name: int(value) if value.isdigit() else value for name, value in given.items()}
        if found["x-queue-type"] == "quorum":
            found.setdefault("x-delivery-limit", UNLIMITED)
        if self.exclusive:
            found["x-single-active-consumer"] = True
        return found

    @property
    def kind(self) -> object:
        """The type of group queues; None where they are not ours, and so not known."""
        return self.queue_arguments()["x-queue-type"] if self.queue is None else None

    @property
    def single_active(self) -> bool:
        """Whether only one consumer of a group gets messages at a time."""
        return self.queue_arguments().get("x-single-active-consumer") in {True, "true"}


def handing_on(key: str | None, milliseconds: int, exchange: str = "") -> dict[str, Any]:
    """The arguments of a queue whose messages go to an exchange after a time, and none is lost; None: with the key they have."""
    arguments = {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return arguments if key is None else {**arguments, "x-dead-letter-routing-key": key}


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood. Its repr shows no secret."""

    url: BrokerURL
    options: RabbitMQOptions
    addresses: Sequence[Address]
    context: ssl.SSLContext | None

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError if it is no URL of RabbitMQ, an option is unknown, or a file cannot be read."""
        options, hosts = url.options(RabbitMQOptions), addresses(url, PORTS[url.scheme], path="/VHOST")
        check_tls(url, options, secure="amqps")
        return cls(url, options, hosts, tls_context(url, options) if url.scheme == "amqps" else None)

    def __repr__(self) -> str:
        return f"Settings({self.url.display!r})"

    @property
    def login(self) -> Login:
        """As whom to connect, and how."""
        url = self.url
        return Login(
            user=url.username or "guest",
            password=Secret(url.password or "guest"),
            virtual_host=url.path[1:] or "/",
            heartbeat=self.options.heartbeat,
            context=self.context,
            patience=max(0.1, min(PATIENCE, url.engine.publish_timeout)),
        )
