"""SQS and SNS keep every promise, as far as an emulator of them shows it."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest

pytest.importorskip("aiobotocore")

from aiobotocore.session import get_session

from things_kit.brokers.sqs import names
from things_kit.engine.driver import Capabilities
from things_kit.testing.conformance import (
    ConformanceSuite,
    OrderSuite,
    SurvivalSuite,
    Target,
)
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import OutageSuite, falling_silent, outage
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.sqs import REGION, SQSServer, sqs_url

SECRET = "geheim-7f3a9c"

sqs = shared(SQSServer, "sqs")
own_sqs = own(SQSServer)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of nobody, found by AWS's own chain."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


class Foreign:
    """Another client of SNS and SQS: aiobotocore alone."""

    def __init__(self, server: SQSServer) -> None:
        self._server = server

    def _client(self, service: str) -> Any:
        return get_session().create_client(service, region_name=REGION, endpoint_url=self._server.endpoint)

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        """Key and bytes that are no text as the documentation has it."""
        said = {"key": (key or b"").decode(), "body": "base64"}
        attributes = {**headers, "tk-message": json.dumps(said)}
        async with self._client("sns") as sns:
            arn = (await sns.create_topic(Name=names.topic_name(topic)))["TopicArn"]
            await sns.publish(
                TopicArn=arn,
                Message=base64.b64encode(value).decode(),
                MessageAttributes={
                    name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()
                },
            )

    @property
    def unreadable(self) -> Sequence[Callable[[str], Awaitable[None]]]:
        return [self.publish_attributes_of_every_kind]

    async def publish_attributes_of_every_kind(self, topic: str) -> None:
        async with self._client("sns") as sns:
            arn = (await sns.create_topic(Name=names.topic_name(topic)))["TopicArn"]
            await sns.publish(
                TopicArn=arn,
                Message="x",
                MessageAttributes={
                    "bytes": {"DataType": "Binary", "BinaryValue": b"\xff\xfe"},
                    "number": {"DataType": "Number", "StringValue": "1e3"},
                    "tk-message": {"DataType": "String", "StringValue": "this is no JSON"},
                },
            )

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        """All that is in the one queue of the topic."""
        async with self._client("sqs") as client:
            found = await client.list_queues(QueueNamePrefix=f"{names.topic_name(topic)}{names.BETWEEN}")
            [url] = found["QueueUrls"]
            answer = await client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], WaitTimeSeconds=1
            )
        return [_read(entry) for entry in answer["Messages"]]


def _read(entry: Mapping[str, Any]) -> tuple[bytes | None, bytes, dict[str, str]]:
    attributes = {name: value["StringValue"] for name, value in entry["MessageAttributes"].items()}
    said = json.loads(attributes.pop("tk-message"))
    body = entry["Body"]
    value = base64.b64decode(body) if said.get("body") == "base64" else body.encode()
    return said["key"].encode() if "key" in said else None, value, attributes


REOPENING = {
    "test_nothing_is_lost_when_everything_is_closed_and_reopened_twenty_times",
    "test_a_consumer_stops_and_a_broker_closes_while_the_connection_is_lost",
    "test_a_closed_broker_leaves_what_it_had_not_finished",
    "test_closing_leaves_nothing_behind",
}
"""Tests that receive as a group again whose broker they have closed: closing waits there for polls under way, as by
default. To all others it matters as little what becomes of such a poll as it does of their topic."""


class TestSQS(ConformanceSuite):
    @pytest.fixture
    def target(self, sqs: SQSServer, request: pytest.FixtureRequest) -> Target:
        foreign = Foreign(sqs)
        return Target(
            url=sqs.url if request.function.__name__ in REOPENING else f"{sqs.url}&grace=0",
            lease_options={"lease": "2"},
            size_options={"max_message_bytes": "4096"},
            secret=SECRET,
            absent=f"sqs://{REGION}?endpoint=http://127.0.0.1:1",
            foreign_publish=foreign.publish,
            foreign_read=foreign.read,
            unreadable=foreign.unreadable,
        )


class TestSQSThatGoesAway(OutageSuite):
    """What the suite has about outages, on a server of its own: standing still, and stopped.

    It is not killed: then it would have lost all that it had, which SQS does not.
    """

    @pytest.fixture(params=["paused", "stopped"])
    async def target(self, request: pytest.FixtureRequest, own_sqs: SQSServer) -> AsyncIterator[Target]:
        async with outage(own_sqs, request.param, url=f"{own_sqs.url}&lease=5") as target:
            yield target


class TestSQSWithCutConnections(Suite):
    """The service stays, the connections to it break."""

    @pytest.fixture
    async def target(self, sqs: SQSServer) -> AsyncIterator[Target]:
        async with Relay(sqs.ports[0]) as relay:
            endpoint = f"http://127.0.0.1:{relay.port}"
            yield Target(url=f"{sqs_url(endpoint)}&lease=5", cut=relay.cut, patience=30.0)

    test_each_once = SurvivalSuite.test_after_a_cut_connection_each_message_is_handled_once


class FifoStage(Stage):
    """Topics that keep an order at the broker, across processes: what other brokers do for all of theirs."""

    def topic(self, word: str = "orders") -> str:
        name = self.name(word)
        self.sweep(f"{name}.fifo", f"{name}-dlq.fifo")
        return f"{name}.fifo"

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, lanes=True)


class TestSQSInOrder(Suite):
    """What the suite has about order across processes, on topics whose names end in `.fifo`."""

    @pytest.fixture
    def target(self, sqs: SQSServer) -> Target:
        return Target(url=f"{sqs.url}&grace=0", lease_options={"lease": "2"})

    @pytest.fixture
    async def stage(self, target: Target) -> AsyncIterator[Stage]:
        async with FifoStage(target) as stage:
            yield stage

    test_across_consumers = OrderSuite.test_keys_keep_their_order_across_the_consumers_of_a_group
    test_publishes_at_once = OrderSuite.test_concurrent_publishes_of_one_producer_keep_the_order_of_a_key
    test_a_killed_process = SurvivalSuite.test_a_killed_process_leaves_what_it_had_begun_to_others


class TestSQSThatFallsSilent(HalfOpenSuite):
    """Connections hear nothing more, without a reset, while new ones work."""

    @pytest.fixture
    async def target(self, sqs: SQSServer) -> AsyncIterator[Target]:
        async with Relay(sqs.ports[0]) as relay:
            yield falling_silent(relay, f"{sqs_url(f'http://127.0.0.1:{relay.port}')}&lease=2")
