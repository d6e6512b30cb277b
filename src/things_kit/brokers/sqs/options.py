"""What an `sqs://` URL asks for."""

from collections.abc import Mapping
from typing import Final, Literal, Self
from urllib.parse import urlsplit

import msgspec
from aiobotocore.config import AioConfig

from things_kit.brokers.sqs.names import is_fifo
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

QUEUE_ATTRIBUTES: Final = "queue."
TOPIC_ATTRIBUTES: Final = "topic."
"""Options of the URL that begin so are attributes of queues and topics that are created."""

SNS_BYTES: Final = 262_144
SQS_BYTES: Final = 1_048_576
"""What a request may carry, and so the largest message with its attributes (AWS, quotas of SNS and SQS, 2026)."""

ROOM: Final = 4096
"""Bytes of a request that are kept for what we add to value, key and headers."""

MOST_EXTENDED: Final = 43_200
"""Seconds, twelve hours, for which SQS keeps a message from others at most, beginning with its delivery."""

LONGEST_HIDDEN: Final = MOST_EXTENDED - 60
"""Seconds for which a message that was just received is hidden at most: SQS counts from its delivery."""

CONNECT: Final = 3.0
"""Seconds to connect: AWS answers in milliseconds, and whoever is away should be found out soon."""

READ: Final = 40.0
"""Seconds to wait for an answer, beyond the longest poll; most calls have a closer bound of ours."""

UNBOUNDED: Final = 0
"""Connections: as many as there are requests, which options bound for each consumer; those that wait for one would be late."""

Attributes = Mapping[str, str]


class SQSOptions(msgspec.Struct, frozen=True):
    """The options of `sqs://`.

    Attributes:
        endpoint: Where SQS and SNS are, for an emulator or a private endpoint; by default AWS's own of the region.
        ca: File of the certificates that sign the endpoint's; by default the client's own, or AWS_CA_BUNDLE.
        profile: Of the AWS configuration; else the usual chain finds the credentials.
        mode: "topic": a topic is an SNS topic, and a group an SQS queue subscribed to it. "queue": a topic is an SQS
            queue, without SNS, and has one group.
        account: The number of the AWS account, which saves looking for topics where `declare=false`.
        lease: Seconds, the visibility timeout: after so long what a dead process held goes to others.
        poll: The most seconds that one request waits for messages. A consumer begins with one second, and
            waits longer the longer nothing comes.
        grace: The most seconds that closing waits for such requests that are under way. What one takes that nobody waits
            for is hidden from others until its lease ends.
        pollers: The most requests for messages that a consumer has under way at once.
        publishers: The most requests that one publish has under way at once.
        deduplicate: What a FIFO topic knows a message by that it had within five minutes, and drops: "publish": that it
            was sent again after a lost connection. "id": that it has the same id, whatever else it says.
        retries: How often the client asks, the first time included, when AWS throttles or fails.
        retry_mode: How the client retries: "standard", or "adaptive", which slows down when it is throttled.
        max_message_bytes: The largest value, key and headers together.
    """

    endpoint: str | None = None
    ca: str | None = None
    profile: str | None = None
    mode: Literal["topic", "queue"] = "topic"
    account: str | None = None
    lease: int = 30
    poll: int = 20
    grace: float = 3.0
    pollers: int = 8
    publishers: int = 8
    deduplicate: Literal["publish", "id"] = "publish"
    retries: int = 4
    retry_mode: Literal["standard", "adaptive"] = "standard"
    max_message_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.lease <= MOST_EXTENDED:
            raise ValueError(f"lease must be from 1 to {MOST_EXTENDED} whole seconds")
        if not 1 <= self.poll <= 20:
            raise ValueError("poll must be from 1 to 20 whole seconds")
        if not self.grace >= 0:
            raise ValueError("grace must be from 0 seconds")
        if self.pollers < 1 or self.publishers < 1 or self.retries < 1:
            raise ValueError("pollers, publishers and retries must be from 1")
        if self.account is not None and not (self.account.isdecimal() and len(self.account) == 12):
            raise ValueError("account must be twelve digits")


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood.

    Attributes:
        region: Of AWS; None for that of the AWS configuration.
        bytes_at_once: The most that one request may carry, and one message with its attributes.
        max_message_bytes: The largest value, key and headers together.
    """

    url: BrokerURL
    options: SQSOptions
    region: str | None
    queue_attributes: Attributes
    topic_attributes: Attributes
    bytes_at_once: int
    max_message_bytes: int

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError if it is no URL of SQS, or an option is unknown."""
        if url.username or url.password:
            raise ConfigError(
                f"{url.display}: credentials do not belong into the URL; AWS's own chain finds them (environment, profile, role)"
            )
        if len(url.hosts) > 1 or url.path.strip("/") or any(":" in host for host in url.hosts):
            raise ConfigError(f"{url.display}: expected sqs://REGION, such as sqs://us-east-1")
        queue, topic = url.prefixed(QUEUE_ATTRIBUTES), url.prefixed(TOPIC_ATTRIBUTES)
        options = url.options(SQSOptions, besides=(QUEUE_ATTRIBUTES, TOPIC_ATTRIBUTES))
        _check_endpoint(url, options.endpoint)
        limit = _limit(url, options, queue, topic)
        return cls(
            url=url,
            options=options,
            region=url.hosts[0] if url.hosts else None,
            queue_attributes={"MessageRetentionPeriod": "1209600", **queue},
            topic_attributes=topic,
            bytes_at_once=limit,
            max_message_bytes=options.max_message_bytes or limit - ROOM,
        )

    def __repr__(self) -> str:
        return f"Settings({self.url.display!r})"

    @property
    def by_queue(self) -> bool:
        """Whether a topic is a queue, without SNS."""
        return self.options.mode == "queue"

    @property
    def plain(self) -> bool:
        """Whether the endpoint is reached without TLS."""
        return (self.options.endpoint or "").startswith("http://")

    @property
    def local(self) -> bool:
        """Whether the endpoint is on this machine, where only emulators are."""
        host = urlsplit(self.options.endpoint or "").hostname or ""
        return host in {"localhost", "::1"} or host.startswith("127.")

    def client(self) -> AioConfig:
        """How the clients of SQS and SNS behave."""
        return AioConfig(
            connect_timeout=CONNECT,
            read_timeout=READ,
            max_pool_connections=UNBOUNDED,
            retries={"mode": self.options.retry_mode, "total_max_attempts": self.options.retries},
            parameter_validation=False,  # a third of a call's time here, to find what mypy finds
            user_agent_extra="things-kit",
        )

    def attributes_of_queue(self, name: str) -> dict[str, str]:
        """The attributes with which a queue is created."""
        more = {"FifoQueue": "true"} if is_fifo(name) else {}
        return {"VisibilityTimeout": str(self.options.lease), **self.queue_attributes, **more}

    def attributes_of_topic(self, name: str) -> dict[str, str]:
        """The attributes with which a topic is created."""
        more = {"FifoTopic": "true"} if is_fifo(name) else {}
        return {**self.topic_attributes, **more}


def _check_endpoint(url: BrokerURL, endpoint: str | None) -> None:
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
        fine = fine and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(
            f"{url.display}: option 'endpoint' must be http://HOST:PORT or https://HOST, without a login"
        )


def _limit(url: BrokerURL, options: SQSOptions, queue: Attributes, topic: Attributes) -> int:
    """What AWS takes at once, by the attributes of queues or topics."""
    by_queue = options.mode == "queue"
    said = (queue if by_queue else topic).get("MaximumMessageSize", "")
    if said and not said.isdecimal():
        raise ConfigError(f"{url.display}: MaximumMessageSize must be a number of bytes")
    limit = int(said) if said else SQS_BYTES if by_queue else SNS_BYTES
    largest = options.max_message_bytes
    if largest is not None and not 1 <= largest <= limit:
        raise ConfigError(
            f"{url.display}: option 'max_message_bytes' must be from 1 to {limit}; topics take more with "
            f"{TOPIC_ATTRIBUTES}MaximumMessageSize, up to {SQS_BYTES}"
        )
    return limit
