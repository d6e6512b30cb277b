"""What a `kafka://` URL asks for, as properties of librdkafka, and what librdkafka's errors mean to us."""

# ruff: noqa: SLF001 - the names of librdkafka's own errors begin with an underscore

import logging
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

import msgspec
from confluent_kafka import KafkaError, KafkaException

from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError

log = logging.getLogger("things_kit.kafka")

Config = dict[str, Any]
"""Properties of librdkafka (its CONFIGURATION.md names them all)."""

NATIVE: Final = "conf."
"""Options of the URL that begin so are properties of librdkafka, handed on as they are."""

TOPIC: Final = "topic."
"""Options of the URL that begin so are settings of topics that are created."""

CLEANING: Final = ("retention.", "local.retention.", "delete.retention.", "cleanup.")
"""How names of settings begin by which a broker deletes what it has."""

OVERHEAD: Final = 10_000
"""Bytes beside a message's value, key and headers that a request may need: framing, our headers, the topic's name."""


class KafkaOptions(msgspec.Struct, frozen=True):
    """The options of `kafka://`.

    Attributes:
        partitions: Of topics that are created.
        replication: Of topics that are created; -1 is the broker's default.
        group_type: "consumer", or "share" for share groups (KIP-932), a preview in librdkafka.
        group_protocol: "classic", with cooperative-sticky assignment, or "consumer" for KIP-848.
        group_instance_id: Static membership: a consumer that restarts under this name keeps its partitions.
        session_timeout: Seconds after which a silent consumer's partitions go to others; classic protocol only.
        acks: "all" replicas in sync confirm a message, or the leader alone, "1": then it can be lost with the leader.
        compression: Of what is published.
        linger: Milliseconds for which messages may wait for more while `publish_batch` is still handing some over.
        max_message_bytes: The largest value, key and headers together. What the broker takes it decides itself
            (`message.max.bytes`).
        security_protocol: By default "sasl_ssl" with a user name in the URL, "ssl" with `ca` or `cert`, else "plaintext".
        sasl_mechanism: By default "PLAIN" with a user name in the URL.
        ca: File of the certificates that sign the broker's; the system's by default.
        cert: File of this client's certificate.
        key: File of its private key.
        key_password: What the private key is encrypted with.
    """

    partitions: int = 6
    replication: int = -1
    group_type: Literal["consumer", "share"] = "consumer"
    group_protocol: Literal["classic", "consumer"] = "classic"
    group_instance_id: str | None = None
    session_timeout: float = 45.0
    acks: Literal["all", "1"] = "all"
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    linger: float = 10.0
    max_message_bytes: int = 1_000_000
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] | None = None
    sasl_mechanism: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: str | None = None

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.replication == 0 or self.replication < -1:
            raise ValueError(
                "partitions must be from 1, and replication from 1, or -1 for the broker's default"
            )
        if not self.session_timeout > 0 or not self.linger >= 0:
            raise ValueError(
                "session_timeout must be more than 0 seconds, and linger not less than 0 milliseconds"
            )
        if not 1 <= self.max_message_bytes <= 1_000_000_000 - OVERHEAD:
            raise ValueError("max_message_bytes must be from 1 to about a billion")


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood. Its repr shows no secret."""

    url: BrokerURL
    options: KafkaOptions
    passed: Mapping[str, str]
    topic: Mapping[str, str] = {}

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError if it is no URL of Kafka, or an option is unknown."""
        if not url.hosts or url.path.strip("/"):
            raise ConfigError(
                f"{url.display}: expected kafka://HOST:PORT, or several hosts with commas between them"
            )
        passed = _named(url, NATIVE, "property of librdkafka")
        topic = _named(url, TOPIC, "setting of a topic")
        ours = {name: value for name, value in url.query.items() if not name.startswith((NATIVE, TOPIC))}
        return cls(url, msgspec.structs.replace(url, query=ours).options(KafkaOptions), passed, topic)

    def topic_settings(self, *, kept: bool) -> dict[str, str]:
        """For a topic that is created. One that is to be `kept` is cleaned by the broker's own settings alone."""
        return {name: value for name, value in self.topic.items() if not (kept and name.startswith(CLEANING))}

    def __repr__(self) -> str:
        return f"Settings({self.url.display!r})"

    def common(self) -> Config:
        """What every client of librdkafka needs."""
        return {
            "bootstrap.servers": ",".join(
                host if _PORT.search(host) else f"{host}:9092" for host in self.url.hosts
            ),
            "client.id": "things-kit",
            # By default a client may sleep for ten seconds after its broker is back
            "reconnect.backoff.max.ms": 250,
            "log.connection.close": False,
            **self._security(),
            **self.passed,
        }

    def producer(self, batch_size: int) -> Config:
        """For publishing: in order, without duplicates through retries, in batches of so many bytes."""
        options = self.options
        return {
            "acks": options.acks,
            "enable.idempotence": options.acks == "all",
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

    def consumer(self, group: str) -> Config:
        """For receiving. Where to begin, and what to commit, is decided by the receiver."""
        config: Config = {
            "group.id": group,
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
        if self.options.group_instance_id:
            config["group.instance.id"] = self.options.group_instance_id
        if self.options.group_protocol == "consumer":
            config["group.protocol"] = "consumer"
        else:
            config["partition.assignment.strategy"] = "cooperative-sticky"
            config["session.timeout.ms"] = int(1000 * self.options.session_timeout)
            # How soon a member hears of a rebalance, while which no commit is taken; the default is three seconds
            config["heartbeat.interval.ms"] = min(300, int(300 * self.options.session_timeout) or 1)
        return {**config, **self.common()}

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
            "ssl.key.password": options.key_password,
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
        for secret in (self.url.password, self.options.key_password, *self.passed.values()):
            if secret:
                text = text.replace(secret, "***")
        return text


class Quiet:
    """Where librdkafka's own log goes: it reports as errors what clients recover from by themselves."""

    def log(self, level: int, message: str, *arguments: object) -> None:
        """One line of librdkafka: of use to who looks for the cause of trouble, at the level of debugging."""
        log.log(min(level, logging.DEBUG), message, *arguments)


def _named(url: BrokerURL, prefix: str, what: str) -> dict[str, str]:
    """The options of that prefix, without it."""
    found = {name[len(prefix) :]: value for name, value in url.query.items() if name.startswith(prefix)}
    if wrong := [name for name, value in found.items() if not name or "\0" in name + value]:
        raise ConfigError(f"{url.display}: {(prefix + wrong[0])!r} is no {what} with a value")
    return found


_PORT: Final = re.compile(r":\d+$")

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


# --- the error table

MAX_POLL_EXCEEDED: Final = KafkaError._MAX_POLL_EXCEEDED
PARTITION_END: Final = KafkaError._PARTITION_EOF

GIVEN_UP: Final = frozenset({KafkaError._FATAL, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE})
"""What librdkafka says of each message that it did not publish because of something else."""


def away(why: str) -> KafkaException:
    """An error as librdkafka would raise it, for a broker that keeps us waiting."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, why))


def refused_login(error: KafkaError) -> bool:
    """Whether it says that we are not let in: librdkafka goes on trying, and may only say "timed out" in the end."""
    return error.code() in {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
    }


_AWAY: Final = frozenset({
    KafkaError._ALL_BROKERS_DOWN, KafkaError._DESTROY, KafkaError._MAX_POLL_EXCEEDED, KafkaError._MSG_TIMED_OUT,
    KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE, KafkaError._RESOLVE, KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE, KafkaError._TRANSPORT, KafkaError._WAIT_COORD, KafkaError._STATE,
    KafkaError._ASSIGNMENT_LOST, KafkaError._FENCED, KafkaError._UNKNOWN_BROKER, KafkaError._NO_OFFSET, KafkaError._PARTIAL,
    KafkaError.BROKER_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.FENCED_MEMBER_EPOCH, KafkaError.ILLEGAL_GENERATION, KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION, KafkaError.NOT_CONTROLLER,
    KafkaError.NOT_COORDINATOR, KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.REPLICA_NOT_AVAILABLE, KafkaError.REQUEST_TIMED_OUT, KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.THROTTLING_QUOTA_EXCEEDED, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.OFFSET_NOT_AVAILABLE, KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.UNRELEASED_INSTANCE_ID,
})  # fmt: skip
"""The broker is away, moving, or has forgotten who we are: trying again may help."""

_UNKNOWN: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID, KafkaError._UNKNOWN_TOPIC,
})  # fmt: skip

_NOT_OFFERED: Final = (
    "this broker is too old for what was asked, or has it switched off: check group_protocol and group_type"
)

_REMEDY: Final = {
    KafkaError._AUTHENTICATION: "it does not accept this login: check user, password, sasl_mechanism and ca",
    KafkaError._SSL: "the TLS handshake failed: check security_protocol and ca",
    KafkaError.SASL_AUTHENTICATION_FAILED: "it does not accept this user and password",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "it does not offer this sasl_mechanism",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not use the topic: it needs an ACL for it",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user may not use the group: it needs an ACL for it",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not do that in the cluster: it needs an ACL for it",
    KafkaError.FENCED_INSTANCE_ID: "another consumer has the same group_instance_id",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "the group has members of another protocol: give all the same options",
    KafkaError.UNSUPPORTED_VERSION: _NOT_OFFERED,
    KafkaError._UNSUPPORTED_FEATURE: _NOT_OFFERED,
    KafkaError.INVALID_CONFIG: "check the options topic.NAME=VALUE",
    KafkaError.INVALID_REPLICATION_FACTOR: "it has not so many brokers: check the option replication",
}
"""What the user can do about errors that trying again does not mend."""


def error_of(error: KafkaException) -> KafkaError:
    """The error that an exception of the client carries."""
    found = error.args[0] if error.args else None
    return found if isinstance(found, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def translated(error: KafkaError, doing: str) -> Exception:
    """Ours for one of librdkafka's, while asking the broker for something: ConnectionLost or ConfigError."""
    code, said = error.code(), f"{doing}: {error.str()}"
    if code in _AWAY or (error.retriable() and code not in _UNKNOWN):
        return _caused(ConnectionLost(said), error)
    return _caused(ConfigError(said + _remedy(error)), error)


def refused(error: KafkaError, topic: str) -> Exception:
    """Ours for why a message was not taken: ConnectionLost means that it may be taken later."""
    code = error.code()
    if code in {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}:
        return _caused(MessageTooLarge(f"a message for {topic!r} is too large: {error.str()}"), error)
    if code in _UNKNOWN:
        return _caused(UnknownTopic(topic), error)
    if code == KafkaError._UNKNOWN_PARTITION:
        return _caused(PublishError(f"the topic {topic!r} has no such partition"), error)
    if code in _AWAY or error.retriable():
        return _caused(ConnectionLost(f"publishing to {topic!r}: {error.str()}"), error)
    return _caused(PublishError(f"publishing to {topic!r}: {error.str()}{_remedy(error)}"), error)


def _remedy(error: KafkaError) -> str:
    code = error.code()
    if code == KafkaError._FATAL:  # whose own code is only in the text
        code = next((each for each in _REMEDY if KafkaError(each).str() in error.str()), code)
    return f" ({_REMEDY[code]})" if code in _REMEDY else ""


def unknown(error: KafkaError) -> bool:
    """Whether it says that a topic is not there."""
    return error.code() in _UNKNOWN


def _caused(ours: Exception, error: KafkaError) -> Exception:
    ours.__cause__ = KafkaException(error)
    return ours
