"""What goes over the wire, what the service refuses, and its limits."""

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.pubsub_v1 import types

Proto = Any
"""A message of protocol buffers: its classes are made at run time."""

NAME: Final = re.compile(r"projects/[^/]+/(topics|subscriptions)/(?!goog)[A-Za-z][\w.~+%-]{2,254}", re.ASCII)
DAY: Final = 86_400

Code: Final = grpc.StatusCode


class Refusal(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str, failures: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.code, self.text, self.failures = code, text, failures


def check_name(name: str) -> None:
    """Of a topic or subscription."""
    if not NAME.fullmatch(name):
        raise Refusal(Code.INVALID_ARGUMENT, f"Invalid resource name given (name={name}).")


def check_message(message: Proto) -> None:
    """Of a publish request."""
    if not message.data and not message.attributes:
        raise Refusal(Code.INVALID_ARGUMENT, "Some messages in the Publish request are empty.")
    if len(message.attributes) > 100 or len(message.ordering_key.encode()) > 1024:
        raise Refusal(Code.INVALID_ARGUMENT, "Too many attributes, or the ordering key is too long.")
    for name, value in message.attributes.items():
        size = len(name.encode())
        if not 0 < size <= 256 or len(value.encode()) > 1024 or name.lower().startswith("goog"):
            raise Refusal(Code.INVALID_ARGUMENT, "An attribute is malformed or too long.")


def check_settings(settings: Proto) -> None:
    """Of a subscription that is to be created."""
    deadline, ttl = settings.ack_deadline_seconds, settings.expiration_policy.ttl.seconds
    retention = settings.message_retention_duration.seconds
    if deadline and not 10 <= deadline <= 600:
        raise Refusal(Code.INVALID_ARGUMENT, "Invalid ack deadline given.")
    if settings.HasField("message_retention_duration") and not 600 <= retention <= 31 * DAY:
        raise Refusal(Code.INVALID_ARGUMENT, "Invalid message retention duration given.")
    if settings.expiration_policy.HasField("ttl") and ttl < DAY:
        raise Refusal(Code.INVALID_ARGUMENT, "The expiration TTL must be at least one day.")


def update(target: Proto, source: Proto, paths: Iterable[str]) -> None:
    """Take over the fields that an update mask names."""
    for path in paths:
        if path == "labels":
            target.labels.clear()
            target.labels.update(source.labels)
        elif hasattr(field := getattr(source, path), "CopyFrom"):
            getattr(target, path).CopyFrom(field)
        else:
            setattr(target, path, field)


def proto(name: str) -> Any:
    """The class of this name, without Google's wrapper."""
    return getattr(types, name).pb()


TOPIC, SUBSCRIPTION, MESSAGE = proto("Topic"), proto("Subscription"), proto("PubsubMessage")
TOPICS, TOPIC_SUBSCRIPTIONS = proto("ListTopicsResponse"), proto("ListTopicSubscriptionsResponse")
RECEIVED, STREAMED = proto("ReceivedMessage"), proto("StreamingPullResponse")
PUBLISHED, PULLED, SOUGHT = proto("PublishResponse"), proto("PullResponse"), proto("SeekResponse")
