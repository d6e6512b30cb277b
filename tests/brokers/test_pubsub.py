"""The Pub/Sub driver's parts that need no server: options, names, messages, errors, and what a doctor judges."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")

from google.api_core import exceptions
from google.auth.exceptions import RefreshError
from google.protobuf import duration_pb2
from google.pubsub_v1 import types
from google.rpc.error_details_pb2 import ErrorInfo
from hypothesis import given
from hypothesis import strategies as st

from things_kit import BrokerUnavailable, ConfigError, Message, MessageTooLarge, PublishError, connect
from things_kit.brokers.pubsub.errors import ERRORS, failures
from things_kit.brokers.pubsub.facts import add_group, add_topic
from things_kit.brokers.pubsub.names import subscription_id, topic_id, topic_of
from things_kit.brokers.pubsub.options import DAY, Settings
from things_kit.brokers.pubsub.wire import PUBSUB_MESSAGE, Order, Packer, Unpacker
from things_kit.engine.conclusions import conclude
from things_kit.engine.driver import Capabilities, ConnectionLost, UnknownTopic
from things_kit.engine.facts import Facts, Question
from things_kit.engine.url import BrokerURL

NOW = datetime(2026, 11, 23, 18, 40, 7, 369139, tzinfo=UTC)


def settings(query: str = "", project: str = "my-project") -> Settings:
    return Settings.from_url(
        BrokerURL.parse(f"pubsub://{project}?{query}" if query else f"pubsub://{project}")
    )


# --- the URL


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("lease=0", "lease must be from 10 to 600"),
        ("lease=601", "lease must be from 10 to 600"),
        ("lease=5", "no less than 10 seconds"),
        ("retain=1", "retain must be 0, or from 600 seconds"),
        ("expire=599", "expire must be from 600 seconds"),
        ("ordering=partition", "ordering"),
        ("max_message_bytes=10000001", "max_message_bytes"),
        ("endpoint=a:1&region=europe-west1", "cannot both be given"),
        ("endpont=a:1", "unknown option 'endpont'"),
    ],
)
def test_a_wrong_option_is_named(query: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(query)


@pytest.mark.parametrize(
    "url", ["pubsub://", "pubsub://a,b", "pubsub://a/b", "pubsub://a:1", "pubsub://u:p@a"]
)
def test_a_url_is_a_project(url: str) -> None:
    with pytest.raises(ConfigError, match="expected pubsub://PROJECT"):
        connect(url)


def test_an_emulator_may_have_shorter_leases_than_the_service() -> None:
    assert settings("endpoint=127.0.0.1:1&lease=1").options.lease == 1


def test_who_is_called_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    assert (settings().host, settings().plain) == ("pubsub.googleapis.com:443", False)
    assert settings("region=europe-west1").host == "europe-west1-pubsub.googleapis.com:443"
    assert (settings("endpoint=a:1").host, settings("endpoint=a:1").plain) == ("a:1", True)
    assert not settings("endpoint=a:1&ca=ca.pem").plain
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:8085")
    assert (settings().host, settings().plain) == ("127.0.0.1:8085", True)
    assert settings("region=europe-west1").host == "europe-west1-pubsub.googleapis.com:443"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("no JSON", "not the JSON key"),
        ('{"private_key": "hunter2"}', "not the JSON key"),
    ],
)
async def test_credentials_that_are_none_are_refused_without_showing_them(
    tmp_path: Any, content: str | None, said: str
) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    broker = connect(f"pubsub://my-project?credentials={path}")
    with pytest.raises(ConfigError, match=said) as raised:
        await broker.open()
    await broker.close()
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__!r} {raised.value.__context__!r}"


async def test_no_credentials_at_all_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    broker = connect("pubsub://my-project")
    with pytest.raises(ConfigError, match="no Google credentials were found"):
        await broker.open()
    await broker.close()


# --- names


def test_names_that_the_service_has_are_left_as_they_are() -> None:
    for name in ("orders", "a.b-c_d~e", "Orders-dlq", "x" * 255):
        assert topic_id(name) == name
    assert subscription_id("orders", "billing") == "orders+billing"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a+b", "a%2Bb"),
        ("7up", "tk~7up"),
        ("ab", "tk~ab"),
        ("google", "tk~google"),
        ("Goog", "tk~Goog"),
        ("tk~7up", "tk~tk~7up"),
        ("..", "tk~.."),
        ("ü", "tk~%C3%BC"),
    ],
)
def test_other_names_are_encoded(name: str, expected: str) -> None:
    assert topic_id(name) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_every_name_is_an_id_of_its_own(name: str) -> None:
    assert topic_of(topic_id(name)) == name


short_names = st.text(st.sampled_from("ab+%~/."), min_size=1, max_size=4)


@given(short_names, short_names, short_names, short_names)
def test_no_two_groups_share_a_subscription(topic: str, group: str, topic_2: str, group_2: str) -> None:
    same = (topic, group) == (topic_2, group_2)
    assert (subscription_id(topic, group) == subscription_id(topic_2, group_2)) is same


def test_names_that_are_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match="255 are the most"):
        topic_id("x" * 256)
    with pytest.raises(ConfigError, match="255 are the most"):
        subscription_id("x" * 200, "y" * 100)


# --- messages


def through(message: Message, order: Order = "key") -> tuple[Any, Message]:
    """What the service gets, and what comes back."""
    packed = Packer(order).pack(message)
    return packed, Unpacker(message.topic).unpack(packed, 0)


def sample(**fields: Any) -> Message:
    return Message(**{"topic": "orders", "value": b"x", "timestamp": NOW, "id": "1", **fields})


def test_a_plain_message_is_native() -> None:
    packed, back = through(sample(key=b"k", headers={"type": "order"}))
    assert (packed.data, packed.ordering_key) == (b"x", "k")
    assert dict(packed.attributes) == {"type": "order", "tk-id": "1", "tk-time": NOW.isoformat()}
    assert back == sample(key=b"k", headers={"type": "order"})


ODD: list[dict[str, Any]] = [
    {"key": b""},
    {"key": b"\xff\x00"},
    {"key": b"k" * 1025},
    {"key": b"tk~topic"},
    {"key": b"tk~x"},
    {"headers": {"": "empty name"}},
    {"headers": {"goog-x": "1", "GOOGLE": "2", "g": "3"}},
    {"headers": {"n" * 300: "long name", "long text": "€" * 2000}},
    {"headers": {f"header-{n}": str(n) for n in range(200)}},
    {"headers": {"n" * 100: "t" * 300}},
    {"id": "ü" * 2000, "key": b"\xff", "headers": {"": "x"}},
    {"id": ""},
    {"value": b""},
]


@pytest.mark.parametrize("order", ["key", "topic", "none"])
@pytest.mark.parametrize("fields", ODD, ids=range(len(ODD)))
def test_what_does_not_fit_is_packed_within_the_services_limits(fields: dict[str, Any], order: Order) -> None:
    packed, back = through(sample(**fields), order)
    assert back == sample(**fields)
    assert packed.data == sample(**fields).value
    assert len(packed.attributes) <= 100
    assert len(packed.ordering_key.encode()) <= 1024
    for name, text in packed.attributes.items():
        assert 0 < len(name.encode()) <= 256
        assert len(text.encode()) <= 1024
        assert not name.lower().startswith("goog")


def test_keys_that_are_packed_still_order() -> None:
    keys = [Packer("key").pack(sample(key=key)).ordering_key for key in (b"\xff", b"\xff", b"\xfe", b"")]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert all(keys)


def test_one_order_for_a_topic_is_one_ordering_key() -> None:
    packed = [Packer("topic").pack(sample(key=key)) for key in (b"a", b"b", None)]
    assert {each.ordering_key for each in packed} == {"tk~topic"}
    assert {each.attributes.get("tk-key") for each in packed} == {"a", "b", None}


def test_no_order_is_no_ordering_key() -> None:
    packed, back = through(sample(key=b"k"), "none")
    assert (packed.ordering_key, back.key) == ("", b"k")


def test_headers_beyond_what_all_attributes_hold_are_too_large() -> None:
    with pytest.raises(MessageTooLarge, match="headers of a message for 'orders'"):
        Packer("key").pack(sample(headers={"x": "y" * 100_000}))


def test_a_foreign_message_is_a_normal_one() -> None:
    foreign = PUBSUB_MESSAGE(
        data=b"v",
        ordering_key="k",
        message_id="77",
        attributes={"type": "order", "tk-x": "y", "tk-time": "?"},
    )
    foreign.publish_time.FromDatetime(NOW)
    message = Unpacker("orders").unpack(foreign, 3)
    assert message == Message("orders", b"v", b"k", {"type": "order"}, None, None, NOW, "orders-77", 3)


@pytest.mark.parametrize("rubbish", ["{", '{"key": 5}', "null", "[]"])
def test_attributes_of_our_names_that_are_not_ours_are_left_out(rubbish: str) -> None:
    foreign = PUBSUB_MESSAGE(data=b"v", message_id="7", attributes={"tk-packed-0": rubbish, "a": "b"})
    message = Unpacker("orders").unpack(foreign, 0)
    assert (message.headers, message.key, message.id, message.attempt) == ({"a": "b"}, None, "orders-7", 1)


def test_times_of_other_zones_are_in_utc() -> None:
    foreign = PUBSUB_MESSAGE(data=b"v", attributes={"tk-id": "1", "tk-time": "2026-11-23T19:40:07+01:00"})
    when = Unpacker("orders").unpack(foreign, 0).timestamp
    assert when == datetime(2026, 11, 23, 18, 40, 7, tzinfo=UTC)
    assert when is not None
    assert when.utcoffset() == timedelta(0)


# --- errors

_exceptions: Any = exceptions  # which has no annotations
_RefreshError: Any = RefreshError


@pytest.mark.parametrize(
    ("error", "ours", "said"),
    [
        (_exceptions.ServiceUnavailable("x"), ConnectionLost, "doing: x"),
        (_exceptions.ResourceExhausted("x"), ConnectionLost, "quota"),
        (_exceptions.DeadlineExceeded("x"), ConnectionLost, "x"),
        (_RefreshError("invalid_grant: hunter2"), ConnectionLost, "no token"),
        (_exceptions.ServiceUnavailable("Getting metadata from plugin failed with error: hunter2"), ConnectionLost, "no token"),
        (_exceptions.PermissionDenied("x"), ConfigError, "declare=false"),
        (_exceptions.Unauthenticated("x"), ConfigError, "does not accept these credentials"),
        (_exceptions.InvalidArgument("x"), ConfigError, "doing: x"),
    ],
)  # fmt: skip
def test_errors_are_translated_with_a_sentence(error: Exception, ours: type[Exception], said: str) -> None:
    translation = ERRORS.translate(error, "doing")
    assert type(translation) is ours
    assert said in str(translation)
    assert "hunter2" not in str(translation)
    assert translation.__cause__ is error


def test_refusals_of_messages_are_told_apart() -> None:
    assert isinstance(ERRORS.refusal(_exceptions.NotFound("x"), "orders"), UnknownTopic)
    assert isinstance(
        ERRORS.refusal(_exceptions.InvalidArgument("size exceeds the limit"), "orders"), MessageTooLarge
    )
    assert type(ERRORS.refusal(_exceptions.InvalidArgument("schema"), "orders")) is PublishError
    assert type(ERRORS.refusal(_exceptions.PermissionDenied("x"), "orders")) is PublishError
    assert isinstance(ERRORS.refusal(_exceptions.ResourceExhausted("x"), "orders"), ConnectionLost)


def test_only_settlements_count_as_failed_settlements() -> None:
    told = {"service": "pubsub", "1": "PERMANENT_FAILURE_INVALID_ACK_ID", "2": "TRANSIENT_FAILURE_X"}
    error = _exceptions.FailedPrecondition("x", error_info=ErrorInfo(metadata=told))
    assert set(failures(error)) == {"1", "2"}
    assert failures(_exceptions.PermissionDenied("x")) == {}


async def test_nobody_there_is_unavailable_in_time() -> None:
    broker = connect("pubsub://my-project?endpoint=127.0.0.1:1&publish_timeout=0.3")
    with pytest.raises(BrokerUnavailable, match="did not answer"):
        await broker.open()
    await broker.close()


# --- what a doctor judges


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
