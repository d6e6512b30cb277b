"""Service Bus: names, options, packing, and what only a server can show."""

import asyncio
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("azure.servicebus")

from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient

from things_kit import BrokerUnavailable, ConfigError, Message, PublishError, Retry, RetryPolicy, connect
from things_kit.brokers.servicebus import names
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.servicebus import KEY, ServiceBusServer

servicebus = shared(ServiceBusServer, "servicebus")

NAMESPACE = "servicebus://shop.servicebus.windows.net"


def unique(word: str) -> str:
    return f"{word}-{uuid4().hex[:10]}"


# --- names


@pytest.mark.parametrize("name", ["orders", "Orders.v2", "a", "a_b-c.d", "x" * 50])
def test_a_name_that_service_bus_takes_is_taken_as_it_is(name: str) -> None:
    assert names.entity_of(name) == names.subscription_of(name) == name


def test_names_that_cannot_be_are_replaced_each_by_another() -> None:
    hostile = [
        "a/b",
        "a-b ",
        "a b",
        "ä",
        "-a",
        "a-",
        "a\nb",
        "a/subscriptions/b",
        "$default",
        "*",
        "x" * 300,
        "x" * 301,
    ]
    replaced = [names.subscription_of(name) for name in hostile]
    assert len(set(replaced)) == len(hostile)
    for name in replaced:
        assert len(name) <= 50
        assert name.replace(".", "a").replace("-", "a").isalnum()
        assert names.subscription_of(name) != name, "it would be taken for the one that it stands for"


def test_a_session_is_the_key_where_it_can_be() -> None:
    assert names.session_of(b"o-1", 0) == "o-1"
    keys = [b"", b"\xff", b"x" * 129, b"tk-free-1", b"a\nb"]
    sessions = {names.session_of(key, 0) for key in keys}
    assert len(sessions) == len(keys)
    assert all(session.startswith("tk-") and len(session) <= 128 for session in sessions)
    assert len({names.session_of(None, number) for number in range(100)}) == names.FREE_SESSIONS


# --- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{NAMESPACE}?key_name=a", "key_name and key go together"),
        (f"{NAMESPACE}?key_name=a&key=b&lease=3", "lease must be from 5 to 300"),
        (f"{NAMESPACE}?key_name=a&key=b&admin_port=1", "admin_port is an emulator's"),
        (f"{NAMESPACE}?key_name=a&key=b&mode=both", "mode"),
        (f"{NAMESPACE}?key_name=a&key=b&colour=red", "unknown option 'colour'"),
        (f"{NAMESPACE}/orders?key_name=a&key=b", "has no path"),
        ("servicebus://a,b?key_name=a&key=b", "expected one namespace"),
        ("servicebus://user:geheim@a", "login is"),
        (f"{NAMESPACE}:5671?key_name=a&key=b", "no port"),
        (f"{NAMESPACE}?key_name=a&key=b&ca=/no/such/file", "there is no file"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_a_sentence(url: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        connect(url)
    assert "geheim" not in str(refused.value)


async def test_without_a_key_and_without_azure_identity_it_says_what_to_install() -> None:
    if find_spec("azure.identity") is not None:
        pytest.skip("azure-identity is installed here")
    with pytest.raises(ConfigError, match="azure-identity"):
        await connect(NAMESPACE).open()


# --- a server


async def test_a_wrong_key_is_a_sentence_without_the_key(servicebus: ServiceBusServer) -> None:
    wrong = servicebus.url.replace("key=", "key=Z2VoZWlt", 1)
    async with connect(f"{wrong}&publish_timeout=5") as broker:
        with pytest.raises(ConfigError, match="refuses this key") as refused:
            await broker.declare(unique("orders"))
    assert "Z2VoZWlt" not in str(refused.value)
    assert KEY not in str(refused.value)


async def test_publishing_with_a_wrong_key_fails_with_a_sentence(servicebus: ServiceBusServer) -> None:
    topic = unique("orders")
    async with connect(servicebus.url) as broker:
        await broker.declare(topic)
        wrong = servicebus.url.replace("key=", "key=Z2VoZWlt", 1)
        async with connect(f"{wrong}&declare=false&publish_timeout=5") as stranger:
            with pytest.raises((PublishError, BrokerUnavailable)) as refused:
                await stranger.producer().publish(Message(topic, b"x"))
        assert "Z2VoZWlt" not in str(refused.value)
        await broker.remove(topic)


async def test_without_a_management_api_what_is_there_can_be_used(servicebus: ServiceBusServer) -> None:
    topic = unique("orders")
    bare = servicebus.url.partition("&admin_port")[0]
    async with connect(servicebus.url) as broker, connect(f"{bare}&declare=false") as plain:
        await broker.declare(topic, groups=["billing"])
        assert not plain.capabilities.lag
        assert await plain.lag(topic, group="billing") is None
        with pytest.raises(ConfigError, match="admin_port"):
            await plain.declare(topic)
        recorder = Recorder()
        async with plain.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await plain.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)
        with pytest.raises(PublishError, match="declare it first"):
            await plain.producer().publish(Message(unique("missing"), b"x"))
        with pytest.raises(ConfigError, match="declare it first"):
            await plain.consumer(topic, group="nobody", handler=recorder, dead_letter=None).start()
        await broker.remove(topic)


async def test_names_that_differ_in_case_alone_are_not_taken_for_one_another(
    servicebus: ServiceBusServer,
) -> None:
    topic = unique("orders")
    async with connect(servicebus.url) as broker:
        await broker.declare(topic, groups=["billing"])
        with pytest.raises(ConfigError, match="upper and lower case"):
            await broker.declare(topic.upper())
        with pytest.raises(ConfigError, match="upper and lower case"):
            await broker.declare(topic, groups=["Billing"])
        await broker.remove(topic)


async def test_a_queue_has_one_group(servicebus: ServiceBusServer) -> None:
    topic = unique("work")
    async with connect(f"{servicebus.url}&mode=queue") as broker:
        await broker.declare(topic, groups=["billing"])
        async with connect(f"{servicebus.url}&mode=queue") as other:
            with pytest.raises(ConfigError, match="belongs to the group 'billing'"):
                await other.declare(topic, groups=["shipping"])
        await broker.remove(topic)


async def test_sessions_of_an_entity_and_of_the_url_must_agree(servicebus: ServiceBusServer) -> None:
    topic = unique("orders")
    async with connect(servicebus.url) as broker, connect(f"{servicebus.url}&sessions=true") as other:
        await broker.declare(topic, groups=["billing"])
        with pytest.raises(ConfigError, match="sessions=false"):
            await other.declare(topic, groups=["billing"])
        await broker.remove(topic)


async def test_a_delayed_retry_is_a_copy_for_its_group_alone(servicebus: ServiceBusServer) -> None:
    topic = unique("orders")
    delayed = RetryPolicy(attempts=3, first=1.0, factor=1.0, limit=1.0, jitter=0.0, mode="delayed")
    times: list[float] = []

    async def act(message: Message) -> None:
        times.append(asyncio.get_running_loop().time())
        if message.attempt == 1:
            raise Retry(after=1.5)

    async with connect(servicebus.url) as broker:
        await broker.declare(topic, groups=["billing", "shipping"])
        failing, other = Recorder(act), Recorder()
        async with (
            broker.consumer(topic, group="billing", handler=failing, retry=delayed, dead_letter=None),
            broker.consumer(topic, group="shipping", handler=other, dead_letter=None),
        ):
            await broker.producer().publish(Message(topic, b"x", key=b"k", headers={"a": "ü"}, id="m-1"))
            await eventually(lambda: len(times) == 1, 15, "it fails")
            await eventually(lambda: _lag_is(broker, topic, 1), 5, "the copy counts")
            await failing.until_done(1, 15)
            await eventually(lambda: _lag_is(broker, topic, 0), 5, "the copy is done")
        [again] = failing.done
        assert (again.id, again.key, again.headers, again.attempt) == ("m-1", b"k", {"a": "ü"}, 2)
        assert times[1] - times[0] >= 1.4
        assert len(other.done) == 1, "another group got the copy"
        await broker.remove(topic)


async def _lag_is(broker: Any, topic: str, expected: int) -> bool:
    return bool(await broker.lag(topic, group="billing") == expected)


async def test_a_topic_that_drops_duplicates_lets_copies_and_dead_letters_through(
    servicebus: ServiceBusServer,
) -> None:
    topic = unique("orders")
    async with connect(f"{servicebus.url}&dedup=60") as broker:
        await broker.declare(topic, groups=["billing"])
        await broker.declare(f"{topic}-dlq", groups=["dead-letters"])
        failures = 2

        async def act(message: Message) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise ValueError("not yet")

        recorder = Recorder(act)
        once = RetryPolicy(attempts=1)
        async with broker.consumer(topic, group="billing", handler=recorder, retry=once):
            producer = broker.producer()
            await producer.publish(Message(topic, b"x", id="m-1"))
            await producer.publish(Message(topic, b"x", id="m-1"))  # dropped
            for _ in range(2):
                await eventually(lambda: _dead(broker, topic), 15, "it is dead")
                assert await broker.replay(f"{topic}-dlq") == 1
            [done] = await recorder.until_done(1, 15)
            assert done.id == "m-1"
        await broker.remove(topic)
        await broker.remove(f"{topic}-dlq")


async def _dead(broker: Any, topic: str) -> bool:
    return bool(await broker.lag(f"{topic}-dlq", group="dead-letters") == 1)


async def test_messages_of_others_are_ordinary_messages(servicebus: ServiceBusServer) -> None:
    topic = unique("orders")
    async with connect(servicebus.url) as broker:
        await broker.declare(topic, groups=["billing"])
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            async with (
                ServiceBusClient.from_connection_string(servicebus.connection_string) as client,
                client.get_topic_sender(topic) as sender,
            ):
                await sender.send_messages(
                    [
                        ServiceBusMessage(
                            b"{}",
                            message_id="theirs",
                            content_type="application/json",
                            subject="created",
                            correlation_id="c-1",
                            application_properties={"n": 7, "yes": True, "text": "ü", "tk-time": "rubbish"},
                        ),
                        ServiceBusMessage(None),
                        ServiceBusMessage("text"),
                    ]
                )
            first, empty, text = await recorder.until_done(3, 15)
        assert (first.id, first.value, first.key, first.attempt) == ("theirs", b"{}", None, 1)
        assert first.headers == {
            "content-type": "application/json", "subject": "created", "correlation-id": "c-1",
            "n": "7", "yes": "true", "text": "ü",
        }  # fmt: skip
        assert first.timestamp is not None
        assert abs(first.timestamp - datetime.now(UTC)) < timedelta(minutes=5)
        assert (empty.value, text.value) == (b"", b"text")
        assert empty.id
        await broker.remove(topic)


async def test_too_many_headers_fail_alone(servicebus: ServiceBusServer) -> None:
    topic = unique("orders")
    async with connect(servicebus.url) as broker:
        await broker.declare(topic, groups=["billing"])
        large = Message(topic, b"x", headers={f"h{n}": "x" * 1000 for n in range(70)})
        with pytest.raises(PublishError) as refused:
            await broker.producer().publish_batch([Message(topic, b"1"), large, Message(topic, b"2")])
        assert set(refused.value.failures) == {1}
        assert await broker.lag(topic, group="billing") == 2
        await broker.remove(topic)
