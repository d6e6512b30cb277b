"""What a doctor concludes from topics and subscriptions as they are."""

from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")

from google.protobuf import duration_pb2
from google.pubsub_v1 import types

from things_kit.brokers.pubsub.facts import add_group, add_topic
from things_kit.brokers.pubsub.options import DAY
from things_kit.engine.conclusions import conclude
from things_kit.engine.driver import Capabilities
from things_kit.engine.facts import Facts, Question


def subscription(**fields: Any) -> types.Subscription:
    return types.Subscription(
        **{
            "name": "projects/p/subscriptions/orders+billing",
            "enable_message_ordering": True,
            "message_retention_duration": duration_pb2.Duration(seconds=7 * DAY),
            **fields,
        }
    )


def levels(facts: Facts, retry_span: float | None = None) -> list[str]:
    question = Question("orders", "billing", retry_span=retry_span)
    return [finding.level for finding in conclude(facts, question, Capabilities(), declares=True)]


def of_group(found: types.Subscription, retry_span: float | None = None) -> list[str]:
    facts = Facts()
    add_group(facts, "orders", "billing", found, ordered=True)
    return [level for level in levels(facts, retry_span) if level != "ok"]


def of_topic(topic: types.Topic, *groups: str) -> list[str]:
    facts = Facts()
    add_topic(facts, "orders", topic, groups)
    return levels(facts)


def test_a_subscription_as_we_make_it_is_well() -> None:
    assert of_group(subscription()) == []


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({"detached": True}, "error"),
        ({"enable_message_ordering": False}, "error"),
        ({"push_config": types.PushConfig(push_endpoint="https://a")}, "error"),
        ({"dead_letter_policy": types.DeadLetterPolicy(dead_letter_topic="t", max_delivery_attempts=5)}, "warning"),
        ({"expiration_policy": types.ExpirationPolicy(ttl=duration_pb2.Duration(seconds=31 * DAY))}, "warning"),
        ({"retry_policy": types.RetryPolicy(minimum_backoff=duration_pb2.Duration(seconds=10))}, "warning"),
        ({"filter": 'attributes.a = "b"'}, "warning"),
        ({"message_retention_duration": duration_pb2.Duration(seconds=600)}, "warning"),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_lose_or_hold_up_messages_is_found(fields: dict[str, Any], level: str) -> None:
    assert of_group(subscription(**fields)) == [level]


def test_a_retention_shorter_than_the_retries_is_an_error() -> None:
    assert of_group(subscription(), retry_span=8.0 * DAY) == ["error"]
    assert of_group(subscription(), retry_span=6.0 * DAY) == []


def test_a_topic_that_nobody_gets_anything_of_is_a_warning() -> None:
    assert of_topic(types.Topic()) == ["warning"]
    assert of_topic(types.Topic(), "a") == ["ok"]
    assert of_topic(types.Topic(message_retention_duration=duration_pb2.Duration(seconds=DAY))) == []
    schema = types.Topic(schema_settings=types.SchemaSettings(schema="s"))
    assert of_topic(schema, "a") == ["ok", "warning"]
