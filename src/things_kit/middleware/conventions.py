"""The words of OpenTelemetry's semantic conventions for messaging, version 1.44, and what stands under them.

They are written out here, as the package that has them calls those of messaging unstable.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from things_kit.messaging.instrument import Endpoint
from things_kit.messaging.message import Message
from things_kit.messaging.names import CORRELATION_ID
from things_kit.messaging.outcomes import BatchError

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "things_kit"

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
TEMPORARY: Final = "messaging.destination.temporary"
PARTITION: Final = "messaging.destination.partition.id"
GROUP: Final = "messaging.consumer.group.name"
COUNT: Final = "messaging.batch.message_count"
MESSAGE_ID: Final = "messaging.message.id"
CONVERSATION: Final = "messaging.message.conversation_id"
BODY_SIZE: Final = "messaging.message.body.size"
KAFKA_OFFSET: Final = "messaging.kafka.offset"
KAFKA_KEY: Final = "messaging.kafka.message.key"
ERROR_TYPE: Final = "error.type"
HOST: Final = "server.address"
PORT: Final = "server.port"
ATTEMPT: Final = "things_kit.attempt"
"""Ours: the conventions have a word for it with some brokers only."""

SENT: Final = "messaging.client.sent.messages"
CONSUMED: Final = "messaging.client.consumed.messages"
OPERATION_DURATION: Final = "messaging.client.operation.duration"
PROCESS_DURATION: Final = "messaging.process.duration"

LAG: Final = "things_kit.consumer.lag"
PUT_OFF: Final = "things_kit.consumer.put_off"
"""Ours, both: the conventions have no gauge of messages that wait."""

STATE: Final = "things_kit.consumer.middleware"
STATE_OF: Final = "things_kit.middleware.name"
STATE_IS: Final = "things_kit.middleware.state"
"""Ours: a gauge that is 1 for the state that a middleware has."""

AGE: Final = "things_kit.consumer.age"
"""Ours as well: how long the oldest message in hand has been published."""

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds: the bounds that the conventions want for both durations."""

Attributes: TypeAlias = dict[str, str | int]

_SYSTEMS: Final = {
    "amqp": "rabbitmq", "amqps": "rabbitmq", "tls": "nats", "rediss": "redis", "sqs": "aws_sqs",
    "pubsub": "gcp_pubsub",
}  # fmt: skip


def of_broker(endpoint: Endpoint) -> Attributes:
    """Which broker it is."""
    said: Attributes = {SYSTEM: _SYSTEMS.get(endpoint.scheme, endpoint.scheme)}
    if endpoint.host is not None:
        said[HOST] = endpoint.host
    if endpoint.port is not None:
        said[PORT] = endpoint.port
    return said


def of_operation(endpoint: Endpoint, name: str, kind: str | None = None) -> Attributes:
    """What all spans and figures of one operation have in common; its kind is one that the conventions know."""
    return of_broker(endpoint) | {OPERATION_NAME: name, OPERATION_TYPE: kind or name}


def of_lag(endpoint: Endpoint, topic: str, group: str) -> Attributes:
    """What a figure says of a group that lags behind."""
    return of_broker(endpoint) | {DESTINATION: topic, GROUP: group}


def of_watched(endpoint: Endpoint, group: str | None, topics: Sequence[str]) -> Attributes:
    """What a figure says of a whole consumer."""
    said = of_broker(endpoint)
    if len(topics) == 1:
        said[DESTINATION] = topics[0]
    if group is not None:
        said[GROUP] = group
    return said


def of_consumption(endpoint: Endpoint, group: str | None) -> Attributes:
    """The same for handling, with the group where it has a name that lasts."""
    common = of_operation(endpoint, "process")
    if group is not None:
        common[GROUP] = group
    return common


def of_message(message: Message, system: str | int) -> Attributes:
    """What a span says of one message."""
    said: Attributes = {DESTINATION: message.topic, BODY_SIZE: len(message.value)}
    if message.id is not None:
        said[MESSAGE_ID] = message.id
    if CORRELATION_ID in message.headers:
        said[CONVERSATION] = message.headers[CORRELATION_ID]
    if message.partition is not None:
        said[PARTITION] = str(message.partition)
    if system == "kafka":
        if message.offset is not None:
            said[KAFKA_OFFSET] = message.offset
        if message.key is not None:
            said[KAFKA_KEY] = message.key.decode("utf-8", "backslashreplace")
    return said


def destination(messages: Sequence[Message]) -> str | None:
    """The topic of all of these; None where there are several."""
    topics = {message.topic for message in messages}
    return topics.pop() if len(topics) == 1 else None


def error_type(error: BaseException) -> str:
    """The class of an error; of a batch of which all failed alike, of that."""
    if isinstance(error, BatchError):
        kinds = {error_type(each) for each in error.errors.values()}
        if len(kinds) == 1:
            return kinds.pop()
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
