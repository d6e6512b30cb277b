"""What a `kafka://` URL asks for, as properties of librdkafka."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import msgspec
from confluent_kafka import KafkaException

from things_kit.brokers.kafka.errors import error_of
from things_kit.engine.addresses import Address, addresses
from things_kit.engine.tls import TLSOptions
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.kafka")

Config = dict[str, Any]
"""Properties of librdkafka (its CONFIGURATION.md names them all)."""

PORT: Final = 9092

NATIVE: Final = "conf."
"""Options of the URL that begin so are properties of librdkafka, handed on as they are."""

TOPIC: Final = "topic."
"""Options of the URL that begin so are settings of topics that are created."""

CLEANING: Final = ("retention.", "local.retention.", "delete.retention.", "cleanup.")
"""How names of settings begin by which a broker deletes what it has."""

OVERHEAD: Final = 10_000
"""Bytes beside a message's value, key and headers that a request may need: framing, our headers, the topic's name."""


SILENCE_MS: Final = 10_000
"""Milliseconds after which a request without an answer ends its connection; what can be is asked again over the next."""


class KafkaOptions(TLSOptions, frozen=True):
    """The options of `kafka://`, beside those of TLS.

    Attributes:
        partitions: Of topics that are created.
        replication: Of topics that are created; -1 is the broker's default.
        group_type: "consumer", or "share" for share groups (KIP-932), a preview in librdkafka.
        group_protocol: "classic", with cooperative-sticky assignment, or "consumer" for KIP-848.
        group_instance_id: Static membership: a consumer that restarts under this name keeps its partitions.
        session_timeout: Seconds after which a silent consumer's partitions go to others; classic protocol only.
        commit_interval: Seconds between two commits of what was acknowledged, unless `max_in_flight` were before.
        acks: "all" replicas in sync confirm a message, or the leader alone, "1": then it can be lost with the leader.
        compression: Of what is published.
        linger: Milliseconds for which messages may wait for more while `publish_batch` is still handing some over.
        max_message_bytes: The largest value, key and headers together. What the broker takes it decides itself
            (`message.max.bytes`).
        security_protocol: By default "sasl_ssl" with a user name in the URL, "ssl" with `ca` or `cert`, else "plaintext".
        sasl_mechanism: By default "PLAIN" with a user name in the URL.
    """

    partitions: int = 6
    replication: int = -1
    group_type: Literal["consumer", "share"] = "consumer"
    group_protocol: Literal["classic", "consumer"] = "classic"
    group_instance_id: str | None = None
    session_timeout: float = 45.0
    commit_interval: float = 1.0
    acks: Literal["all", "1"] = "all"
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    linger: float = 5.0
    max_message_bytes: int = 1_000_000
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] | None = None
    sasl_mechanism: str | None = None

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.replication == 0 or self.replication < -1:
            raise ValueError(
                "partitions must be from 1, and replication from 1, or -1 for the broker's default"
            )
        if not self.session_timeout > 0 or not self.linger >= 0:
            raise ValueError(
                "session_timeout must be more than 0 seconds, and linger not less than 0 milliseconds"
            )
        if not 0 <= self.commit_interval <= 3600:
            raise ValueError("commit_interval must be from 0 to 3600 seconds")
        if not 1 <= self.max_message_bytes <= 1_000_000_000 - OVERHEAD:
            raise ValueError("max_message_bytes must be from 1 to about a billion")


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood. Its repr shows no secret."""

    url: BrokerURL
    options: KafkaOptions
    addresses: Sequence[Address]
    passed: Mapping[str, str]
    topic: Mapping[str, str] = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError if it is no URL of Kafka, or an option is unknown."""
        hosts = addresses(url, PORT)
        options = url.options(KafkaOptions, besides=(NATIVE, TOPIC))
        return cls(url, options, hosts, url.prefixed(NATIVE), url.prefixed(TOPIC))

    def topic_settings(self, *, kept: bool) -> dict[str, str]:
        """For a topic that is created. One that is to be `kept` is cleaned by the broker's own settings alone."""
        return {name: value for name, value in self.topic.items() if not (kept and name.startswith(CLEANING))}

    def with_session(self, most: float) -> Self:
        """The same for members of a group that are missed after so many seconds at the latest.

        The protocol is the classic one, as with the other the broker says when somebody is missed.
        """
        session = min(self.options.session_timeout, most)
        options = msgspec.structs.replace(self.options, session_timeout=session, group_protocol="classic")
        return msgspec.structs.replace(self, options=options)

    def __repr__(self) -> str:
        return f"Settings({self.url.display!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:  # else rich prints every field
        return [("url", self.url.display)]

    def common(self) -> Config:
        """What every client of librdkafka needs."""
        return {
            "bootstrap.servers": ",".join(map(str, self.addresses)),
            "client.id": "things-kit",
            # By default a client may sleep for ten seconds after its broker is back
            "reconnect.backoff.max.ms": 250,
            "log.connection.close": False,
            # A connection that went silent is replaced after so long: a minute by default
            "socket.timeout.ms": SILENCE_MS,
            "socket.connection.setup.timeout.ms": SILENCE_MS,
            # A broker that was fenced for a moment names no brokers, and a client that hears so forgets its last one
            "metadata.recovery.rebootstrap.trigger.ms": 5000,
            **self._security(),
            **self.passed,
        }

    def producer(self, batch_size: int) -> Config:
        """For publishing: in order, without duplicates through retries, in batches of so many bytes."""
        options = self.options
        return {
            "acks": options.acks,
            "enable.idempotence": options.acks == "all",
            # Without idempotence one request at a time, as one that is repeated would come behind the next
            "max.in.flight.requests.per.connection": 5 if options.acks == "all" else 1,
            "request.timeout.ms": SILENCE_MS - 1000,
            "partitioner": "murmur2_random",  # what the Java client does, so keys meet theirs in one partition
            "compression.type": options.compression,
            "linger.ms": options.linger,
            "batch.size": batch_size,
            "message.max.bytes": options.max_message_bytes + OVERHEAD,
            "message.timeout.ms": max(1000, int(1000 * self.url.engine.publish_timeout)),
            "queue.buffering.max.messages": 200_000,
            "topic.metadata.propagation.max.ms": 2000,  # for so long a missing topic may be on its way
            **self.common(),
        }

    def consumer(self, group: str, instance: str | None = None) -> Config:
        """For receiving. Where to begin, and what to commit, is decided by the receiver."""
        config: Config = {
            "group.id": group,
            "statistics.interval.ms": 1000,  # which say whether it is in its group
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Only where a committed offset is gone: what is still there was not handled by anybody
            "auto.offset.reset": "earliest",
            # Offsets may end with what is no message, such as the end of a transaction: it counts as lag until committed
            "enable.partition.eof": True,
            # Prefetching bounded in memory, and going on as soon as there is room: the default waits a second
            "queued.max.messages.kbytes": 16_384,
            "fetch.queue.backoff.ms": 10,
            # A partition that was assigned or resumed waits for the request that is under way to the same broker
            "fetch.wait.max.ms": 100,
        }
        if instance is not None:
            config["group.instance.id"] = instance
        if self.options.group_protocol == "consumer":
            config["group.protocol"] = "consumer"
        else:
            config["partition.assignment.strategy"] = "cooperative-sticky"
            config["session.timeout.ms"] = int(1000 * self.options.session_timeout)
            # How soon a member hears of a rebalance, while which no commit is taken; the default is three seconds
            config["heartbeat.interval.ms"] = min(300, int(300 * self.options.session_timeout) or 1)
        return {**config, **self.common()}

    def reader(self, group: str) -> Config:
        """For asking what a group has committed; what is passed through is meant for consumers, and fits only all of the others."""
        return {"isolation.level": "read_uncommitted", **self.consumer(group), "statistics.interval.ms": 0}

    def share_consumer(self, group: str, most: int) -> Config:
        """For a share group, which has no use for the properties of others."""
        return {
            "group.id": group,
            "share.acknowledgement.mode": "explicit",
            "max.poll.records": most,
            "max.poll.interval.ms": 86_400_000,  # it may not poll while it handles; locks run out long before
            **self.common(),
        }

    def _security(self) -> Config:
        options, url = self.options, self.url
        protocol = options.security_protocol
        if any(login and login[0].isspace() for login in (url.username, url.password)):
            raise ConfigError(
                f"{url.display}: librdkafka takes no user name or password that begins with whitespace"
            )
        if protocol is None:
            protocol = "sasl_ssl" if url.username else "ssl" if options.ca or options.cert else "plaintext"
        config: Config = {"security.protocol": protocol}
        mechanism = options.sasl_mechanism or ("PLAIN" if url.username else None)
        chosen = {
            "sasl.mechanism": mechanism,
            "sasl.username": url.username,
            "sasl.password": url.password,
            "ssl.ca.location": options.ca,
            "ssl.certificate.location": options.cert,
            "ssl.key.location": options.key,
            "ssl.key.password": options.key_password.reveal() if options.key_password else None,
        }
        return config | {name: value for name, value in chosen.items() if value is not None}

    def created(self, client: Any, config: Config, **callbacks: Any) -> Any:
        """A client of librdkafka. Raises ConfigError, without showing values, if it refuses a property."""
        try:
            return client({**config, **callbacks, "logger": Quiet()})
        except KafkaException as error:
            said = error_of(error).str()
        except (TypeError, ValueError) as error:
            said = str(error)
        # Outside of the handler, as the client's exception, which may show a secret, would be the context of ours
        raise ConfigError(f"{self.url.display}: {self._concealed(said)}")

    def _concealed(self, text: str) -> str:
        key_password = self.options.key_password
        own = (self.url.password, key_password.reveal() if key_password else None)
        for secret in (*own, *self.passed.values()):
            if secret:
                text = text.replace(secret, "***")
        return text


class Quiet:
    """Where librdkafka's own log goes: it reports as errors what clients recover from by themselves."""

    def log(self, level: int, message: str, *arguments: object) -> None:
        """One line of librdkafka: of use to who looks for the cause of trouble, at the level of debugging."""
        log.log(min(level, logging.DEBUG), message, *arguments)


# --- names

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def possible_topic(topic: str) -> bool:
    """Whether Kafka could have a topic of that name (org.apache.kafka.common.internals.Topic)."""
    return _TOPIC.fullmatch(topic) is not None and topic not in {".", ".."}


def check_topic(topic: str) -> None:
    """Raises ConfigError for a name that Kafka cannot have."""
    if not possible_topic(topic):
        raise ConfigError(
            f"Kafka cannot have a topic {topic!r}: a name is up to 249 letters, digits, '.', '_' and '-', "
            "and neither '.' nor '..'"
        )


def check_group(group: str) -> None:
    """Raises ConfigError for a name that would not reach the broker as it is.

    librdkafka's strings end at a null character and lose the whitespace they begin with (rdkafka_conf.c).
    """
    try:
        size = len(group.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= 32_767 or "\0" in group or group[0].isspace():
        raise ConfigError(
            f"Kafka cannot have a group {group!r} here: a name is up to 32767 bytes of text, "
            "without null characters, and does not begin with whitespace"
        )


# --- static membership

_LONGEST_INSTANCE: Final = 249
"""Kafka takes the id of an instance if it could be the name of a topic."""


def instance_id(name: str, topic: str, number: int) -> str:
    """The `group.instance.id` of one consumer of a process: the same each time, and nobody else's."""
    whole = f"{name}-{topic}" if number == 0 else f"{name}-{topic}-{number}"
    if len(whole) <= _LONGEST_INSTANCE:
        return whole
    return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:32]}"
