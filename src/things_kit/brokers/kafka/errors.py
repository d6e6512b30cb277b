"""What librdkafka's errors mean to us: one table."""

# ruff: noqa: SLF001 - the names of librdkafka's own errors begin with an underscore

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from things_kit.engine.driver import ConnectionLost, UnknownTopic
from things_kit.engine.errors import ErrorTable, Failure, on
from things_kit.messaging.errors import ConfigError, MessageTooLarge, PublishError

PARTITION_END: Final = KafkaError._PARTITION_EOF

GIVEN_UP: Final = frozenset({KafkaError._FATAL, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE})
"""What librdkafka says of each message that it did not publish because of something else."""

REFUSED_LOGIN: Final = frozenset({
    KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED,
})  # fmt: skip
"""We are not let in: librdkafka goes on trying, and may only say "timed out" in the end."""

UNREACHABLE: Final = frozenset({KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._ALL_BROKERS_DOWN})
"""Why a broker cannot be connected to; librdkafka goes on trying."""

UNKNOWN: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.UNKNOWN_TOPIC_ID, KafkaError._UNKNOWN_TOPIC,
)  # fmt: skip

_OUTAGES: Final = (
    KafkaError._ALL_BROKERS_DOWN, KafkaError._DESTROY, KafkaError._DESTROY_BROKER, KafkaError._MAX_POLL_EXCEEDED,
    KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE, KafkaError._RESOLVE,
    KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError._TRANSPORT, KafkaError._WAIT_COORD, KafkaError._STATE,
    KafkaError._ASSIGNMENT_LOST, KafkaError._FENCED, KafkaError._UNKNOWN_BROKER, KafkaError._NO_OFFSET, KafkaError._PARTIAL,
    KafkaError.BROKER_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.FENCED_MEMBER_EPOCH, KafkaError.ILLEGAL_GENERATION, KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION, KafkaError.NOT_CONTROLLER,
    KafkaError.NOT_COORDINATOR, KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.REPLICA_NOT_AVAILABLE, KafkaError.REQUEST_TIMED_OUT, KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.THROTTLING_QUOTA_EXCEEDED, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.UNKNOWN_PRODUCER_ID,
    KafkaError.OFFSET_NOT_AVAILABLE, KafkaError.UNSTABLE_OFFSET_COMMIT, KafkaError.UNRELEASED_INSTANCE_ID,
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.FENCED_LEADER_EPOCH, KafkaError._NOENT,  # no leader known yet
)  # fmt: skip
"""The broker is away, moving, or has forgotten who we are: trying again may help."""

_TOO_OLD: Final = (
    "this broker is too old for what was asked, or has it switched off: check group_protocol and group_type"
)

_HINTS: Final = {
    KafkaError._AUTHENTICATION: "it does not accept this login: check user, password, sasl_mechanism and ca",
    KafkaError._SSL: "the TLS handshake failed: check security_protocol and ca",
    KafkaError.SASL_AUTHENTICATION_FAILED: "it does not accept this user and password",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "it does not offer this sasl_mechanism",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not use the topic: it needs an ACL for it",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user may not use the group: it needs an ACL for it",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not do that in the cluster: it needs an ACL for it",
    KafkaError.FENCED_INSTANCE_ID: "another consumer has the same group_instance_id",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "the group has members of another protocol: give all the same options",
    KafkaError.UNSUPPORTED_VERSION: _TOO_OLD,
    KafkaError._UNSUPPORTED_FEATURE: _TOO_OLD,
    KafkaError.INVALID_CONFIG: "check the options topic.NAME=VALUE",
    KafkaError.INVALID_REPLICATION_FACTOR: "it has not so many brokers: check the option replication",
    KafkaError.INVALID_SESSION_TIMEOUT: "check the option session_timeout",
    KafkaError.NON_EMPTY_GROUP: "it has consumers that run: stop them first",
    KafkaError.INVALID_PARTITIONS: "check the option partitions",
}
"""What the user can do about errors that trying again does not mend."""


def error_of(failure: Failure) -> Failure:
    """The error that an exception of the client carries; anything else is itself."""
    if not isinstance(failure, KafkaException):
        return failure
    found = failure.args[0] if failure.args else None
    return found if isinstance(found, KafkaError) else KafkaError(KafkaError._FAIL, str(failure))


def _code(error: KafkaError) -> int:
    code: int = error.code()
    if code == KafkaError._FATAL:  # whose own code is only in the text
        return next((each for each in _HINTS if KafkaError(each).str() in error.str()), code)
    return code


ERRORS: Final = ErrorTable(
    "kafka",
    on(*UNKNOWN, raises=ConnectionLost, publishing=UnknownTopic),
    on(KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, raises=MessageTooLarge),
    on(KafkaError._UNKNOWN_PARTITION, raises=ConnectionLost, publishing=PublishError,
       says="{doing}: the topic has no such partition"),
    *(on(code, raises=ConfigError, hint=hint) for code, hint in _HINTS.items()),
    on(KafkaError.TOPIC_EXCEPTION, KafkaError.INVALID_GROUP_ID, KafkaError.POLICY_VIOLATION, KafkaError._INVALID_ARG,
       KafkaError.GROUP_MAX_SIZE_REACHED, raises=ConfigError),
    on(KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP, raises=ConnectionLost, publishing=PublishError),
    on(*_OUTAGES, lambda error: error.retriable(), raises=ConnectionLost),
    client=KafkaError,
    code=_code,
    said=lambda error: error.str(),
    unwrap=error_of,
)  # fmt: skip


def away(why: str) -> KafkaException:
    """An error as librdkafka would raise it, for a broker that keeps us waiting."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, why))


def translated(error: KafkaError, doing: str) -> Exception:
    """Ours for one of librdkafka's, while asking the broker for something."""
    return ERRORS.translate(KafkaException(error), doing)


def refused(error: KafkaError, topic: str) -> Exception:
    """Ours for why a message was not taken: ConnectionLost means that it may be taken later."""
    return ERRORS.refusal(KafkaException(error), topic)


def unknown(error: KafkaError) -> bool:
    """Whether it says that a topic is not there."""
    return error.code() in UNKNOWN


def unanswered(error: KafkaError) -> bool:
    """Whether librdkafka says so of itself, and no broker does: a client in this state may never find back."""
    local = error.code() < 0 and error.code() not in (*UNKNOWN, KafkaError._UNKNOWN_PARTITION)
    return local and isinstance(translated(error, ""), ConnectionLost)
