"""What the URL says: where Service Bus is, as whom, and how."""

from typing import Final, Literal, Self

import msgspec

from things_kit.engine.addresses import Address, address, addresses
from things_kit.engine.secrets import Secret
from things_kit.engine.tls import TLSOptions, check_tls
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

SECURE_PORT: Final = 5671
WEB_PORT: Final = 443
EMULATOR_PORT: Final = 5672


class ServiceBusOptions(msgspec.Struct, frozen=True):
    """The options of `servicebus://`.

    Attributes:
        key_name: The name of a shared access key; without one, azure-identity finds credentials.
        key: The key itself.
        emulator: It is an emulator: without TLS, at the port that the URL says.
        admin_port: Where an emulator has its management API; without it nothing can be declared there.
        mode: "topic": a topic, and a subscription for each group. "queue": a queue, which one group has to itself.
        sessions: Keys are sessions, whose order holds across processes.
        session_receivers: The most sessions that one consumer has at once.
        lease: Seconds for which a message is locked, in entities that are created.
        dedup: Seconds within which topics that are created drop a message whose id they have had; 0 for not at all.
        ttl: Seconds after which messages expire, in entities that are created; 0 for never.
        max_message_bytes: The largest value, key and headers together. Standard takes 256 KiB with all that is around.
        endpoint: HOST:PORT to connect to in place of the namespace's own, such as a private endpoint.
        ca: A file of the certificates that sign the server's.
        websockets: Speak through port 443.
    """

    key_name: str | None = None
    key: Secret | None = None
    emulator: bool = False
    admin_port: int | None = None
    mode: Literal["topic", "queue"] = "topic"
    sessions: bool = False
    session_receivers: int = 16
    lease: int = 30
    dedup: int = 0
    ttl: int = 0
    max_message_bytes: int = 255_000
    endpoint: str | None = None
    ca: str | None = None
    websockets: bool = False

    def __post_init__(self) -> None:
        if (self.key_name is None) != (self.key is None):
            raise ValueError(
                "key_name and key go together: give both, or neither to have azure-identity find some"
            )
        if ";" in f"{self.key_name}{self.key and self.key.reveal()}":
            raise ValueError("key_name and key have no ';'")
        if not 5 <= self.lease <= 300:
            raise ValueError("lease must be from 5 to 300 seconds: Service Bus locks a message for no longer")
        if self.dedup and not 20 <= self.dedup <= 7 * 86_400:
            raise ValueError("dedup must be from 20 seconds to 7 days, or 0")
        if self.ttl < 0:
            raise ValueError("ttl must be 0 or more seconds")
        if not 1 <= self.session_receivers <= 100:
            raise ValueError("session_receivers must be from 1 to 100")
        if self.max_message_bytes < 1:
            raise ValueError("max_message_bytes must be 1 or more")
        if self.admin_port is not None and not self.emulator:
            raise ValueError(
                "admin_port is an emulator's; Service Bus has its management API at the namespace's own"
            )
        if self.emulator and self.key is None:
            raise ValueError("an emulator wants some key_name and key")
        if self.endpoint is not None:
            address(self.endpoint, WEB_PORT)


class Settings:
    """A URL and its options."""

    def __init__(self, url: BrokerURL, options: ServiceBusOptions) -> None:
        self.url = url
        self.options = options
        self.namespace = url.hosts[0]

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Read a URL. Raises ConfigError."""
        options = url.options(ServiceBusOptions)
        if len(url.hosts) != 1:
            raise ConfigError(
                f"{url.display}: expected one namespace, such as servicebus://NAME.servicebus.windows.net?key_name=…&key=…"
            )
        if url.username or url.password:
            raise ConfigError(f"{url.display}: the login is ?key_name=…&key=…, not part of the host")
        if ":" in url.hosts[0] and not options.emulator:
            raise ConfigError(
                f"{url.display}: a namespace has no port; for an emulator say emulator=true, "
                "for another address ?endpoint=HOST:PORT"
            )
        check_tls(url, TLSOptions(ca=options.ca))
        addresses(url, SECURE_PORT)
        return cls(url, options)

    @property
    def by_queue(self) -> bool:
        """Whether topics are plain queues."""
        return self.options.mode == "queue"

    @property
    def address(self) -> Address:
        """Where AMQP is spoken."""
        options = self.options
        port = EMULATOR_PORT if options.emulator else WEB_PORT if options.websockets else SECURE_PORT
        return address(options.endpoint or self.namespace, port)
