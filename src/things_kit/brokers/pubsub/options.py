"""What a `pubsub://` URL asks for."""

import os
from typing import Final, Literal, Self

import msgspec

from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

DAY: Final = 86_400

LONGEST: Final = 31 * DAY
"""Seconds for which the service keeps a message at the most."""

REQUEST_BYTES: Final = 10_000_000
"""The largest request that the service takes (cloud.google.com/pubsub/quotas#resource_limits)."""

OVERHEAD: Final = 50_000
"""Bytes of a request beside a message's value, key and headers: names, framing, what is packed."""

LONGEST_LEASE: Final = 600
SHORTEST_LEASE: Final = 10
"""Seconds that an ack deadline may have at the service."""


class PubSubOptions(msgspec.Struct, frozen=True):
    """The options of `pubsub://`.

    Attributes:
        endpoint: HOST:PORT of an emulator: without TLS, and without a login unless `credentials` or `ca` are given.
            By default what $PUBSUB_EMULATOR_HOST says, else the service itself.
        region: Use the service's endpoint of this region, such as "europe-west1". Order by key needs publishers of one region.
        credentials: File of a service account's key, or of other Google credentials; by default what the environment has
            (Application Default Credentials).
        ca: File of the certificates that sign the endpoint's.
        ordering: "key": messages with the same key have it as their ordering key. "topic": all messages of a topic
            have the same ordering key, so that the whole topic is in order. "none": there is no order.
        exactly_once: Whether subscriptions are created with exactly-once delivery, or changed to have it.
        lease: Seconds until an unsettled message goes to others, unless extended, as it is while its handler runs.
        retain: Of topics that are created: seconds for which all messages are kept for groups yet to come; 0 for not at all.
        expire: Of subscriptions that are created: seconds after which the service drops what was not acknowledged.
        max_message_bytes: The largest value, key and headers together.
    """

    endpoint: str | None = None
    region: str | None = None
    credentials: str | None = None
    ca: str | None = None
    ordering: Literal["key", "topic", "none"] = "key"
    exactly_once: bool = False
    lease: int = 60
    retain: int = 0
    expire: int = 7 * DAY
    max_message_bytes: int = REQUEST_BYTES - OVERHEAD

    def __post_init__(self) -> None:
        if not 1 <= self.lease <= LONGEST_LEASE:
            raise ValueError(f"lease must be from {SHORTEST_LEASE} to {LONGEST_LEASE} seconds")
        if self.retain and not 600 <= self.retain <= LONGEST:
            raise ValueError("retain must be 0, or from 600 seconds to 31 days (2678400)")
        if not 600 <= self.expire <= LONGEST:
            raise ValueError("expire must be from 600 seconds to 31 days (2678400)")
        if not 1 <= self.max_message_bytes <= REQUEST_BYTES - OVERHEAD:
            raise ValueError(f"max_message_bytes must be from 1 to {REQUEST_BYTES - OVERHEAD}")
        if self.endpoint and self.region:
            raise ValueError("endpoint and region cannot both be given")


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood."""

    url: BrokerURL
    project: str
    options: PubSubOptions

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError if it is no URL of Pub/Sub, or an option is unknown."""
        options = url.options(PubSubOptions)
        if len(url.hosts) != 1 or ":" in url.hosts[0] or url.path.strip("/") or url.username or url.password:
            raise ConfigError(
                f"{url.display}: expected pubsub://PROJECT, such as pubsub://my-project?endpoint=127.0.0.1:8085"
            )
        emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
        if emulator and options.endpoint is None and options.region is None:
            options = msgspec.structs.replace(options, endpoint=emulator)
        if options.lease < SHORTEST_LEASE and not options.endpoint:
            raise ConfigError(
                f"{url.display}: option 'lease': the service takes no less than {SHORTEST_LEASE} seconds"
            )
        return cls(url, url.hosts[0], options)

    @property
    def host(self) -> str:
        """HOST:PORT to call."""
        if self.options.endpoint:
            return self.options.endpoint
        prefix = f"{self.options.region}-" if self.options.region else ""
        return f"{prefix}pubsub.googleapis.com:443"

    @property
    def plain(self) -> bool:
        """Whether it is an emulator, called without TLS and login."""
        options = self.options
        return options.endpoint is not None and options.ca is None and options.credentials is None

    @property
    def patience(self) -> float:
        """Seconds that one call may take."""
        return min(30.0, max(0.5, self.url.engine.publish_timeout))
