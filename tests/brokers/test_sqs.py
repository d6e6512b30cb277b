"""The driver for SQS and SNS: names, packing, errors; what it makes of a server is in test_sqs_server.py."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("aiobotocore")

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
)
from hypothesis import given
from hypothesis import strategies as st

from things_kit import ConfigError, Message, MessageTooLarge, PublishError, connect
from things_kit.brokers.sqs import names, wire
from things_kit.brokers.sqs import queue as queue_module
from things_kit.brokers.sqs.admin import Admin, _allowing
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.counts import Uncounted
from things_kit.brokers.sqs.errors import ERRORS, bare
from things_kit.brokers.sqs.options import SNS_BYTES, SQS_BYTES, Settings
from things_kit.brokers.sqs.publisher import Item, Publisher, chunks, streams
from things_kit.brokers.sqs.queue import Queue
from things_kit.brokers.sqs.receiver import Lent, SQSReceiver
from things_kit.engine.collected import Collected
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription, UnknownTopic
from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance.waiting import eventually

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def settings(query: str = "") -> Settings:
    return Settings.from_url(BrokerURL.parse(f"sqs://us-east-1?{query}" if query else "sqs://us-east-1"))


def refusal(code: str, said: str = "no", status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": said}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Publish"
    )


class TestNames:
    def test_usual_names_stay_as_they_are(self) -> None:
        assert names.topic_name("order_events-2") == "order_events-2"
        assert names.topic_name("orders.fifo") == "orders.fifo"
        assert names.queue_name("orders", "billing") == "orders_-_billing"

    def test_other_characters_are_written_in_digits(self) -> None:
        assert names.topic_name("orders.created") == "orders_-2E-created"
        assert names.topic_name("a.b.fifo") == "a_-2E-b.fifo"

    @given(st.lists(st.text("a_-.2E注", min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
    def test_different_names_stay_different(self, pair: list[str]) -> None:
        assert names.escaped(pair[0]) != names.escaped(pair[1])

    @given(st.lists(st.tuples(st.text("a_-.h", min_size=1, max_size=4), st.text("a_-.h", min_size=1, max_size=4)), min_size=2, max_size=2, unique=True))  # fmt: skip
    def test_no_two_groups_share_a_queue(self, pairs: list[tuple[str, str]]) -> None:
        first, second = (names.queue_name(*pair) for pair in pairs)
        assert first != second

    @pytest.mark.parametrize("topic", ["x" * 300, "x" * 300 + ".fifo", "注" * 60, ".fifo"])
    def test_a_topic_that_sns_cannot_have_is_refused(self, topic: str) -> None:
        with pytest.raises(ConfigError, match="SNS cannot have a topic"):
            names.topic_name(topic)

    def test_a_queue_whose_name_would_be_too_long_ends_in_a_hash(self) -> None:
        queues = {names.queue_name("t" * 70, f"group-{number}") for number in range(3)}
        assert len(queues) == 3
        assert all(len(queue) == names.LONGEST_QUEUE for queue in queues)
        assert all(names.belongs(queue, "t" * 70) for queue in queues)

    def test_a_fifo_topic_has_fifo_queues(self) -> None:
        queue = names.queue_name("orders.fifo", "a.b")
        assert queue == "orders_-_a_-2E-b.fifo"
        assert len(names.queue_name("o" * 100 + ".fifo", "g")) == names.LONGEST_QUEUE

    def test_an_ephemeral_queue_is_told_from_those_of_groups(self) -> None:
        queue = names.ephemeral_queue_name("orders.fifo")
        assert names.is_ephemeral(queue)
        assert names.belongs(queue, "orders.fifo")
        assert not names.is_ephemeral(names.queue_name("orders.fifo", "-e-" + "0" * 32))

    def test_a_queue_of_others_is_not_ours(self) -> None:
        assert not names.belongs("audit", "orders")
        assert not names.belongs("orders-2_-_billing", "orders")

    def test_a_key_is_its_message_group_where_it_can_be(self) -> None:
        assert names.message_group(b"o-1", "id") == "o-1"
        strange = [b"", b"\xff", b"a b", b"x" * 129, b"tk-free-1", "ü".encode()]
        groups = {names.message_group(key, "id") for key in strange}
        assert len(groups) == len(strange)
        assert all(group.startswith("tk-key-") and len(group) <= names.LONGEST_ID for group in groups)

    def test_messages_without_a_key_have_groups_of_their_own(self) -> None:
        assert names.message_group(None, "1") != names.message_group(None, "2")

    def test_an_id_is_the_deduplication_id_where_it_can_be(self) -> None:
        assert names.deduplication_id("o-1", None) == "o-1"
        assert names.deduplication_id("with space", None).startswith("tk-id-")

    def test_what_is_published_again_while_it_is_in_hand_is_no_duplicate(self) -> None:
        again = names.deduplication_id("o-1", "receipt")
        assert again != "o-1"
        assert again == names.deduplication_id("o-1", "receipt")
        assert again != names.deduplication_id("o-1", "another")


def there_and_back(message: Message) -> tuple[Message, wire.Parcel]:
    packed = wire.pack(message, SQS_BYTES)
    entry = {
        "MessageId": "sqs-1",
        "Body": packed.body,
        "MessageAttributes": packed.attributes,
        "Attributes": {"SentTimestamp": "1", "MessageGroupId": "somebody"},
    }
    return wire.unpack(message.topic, entry).message, packed


class TestPacking:
    @given(
        st.builds(
            Message,
            topic=st.just("orders"),
            value=st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
            key=st.none() | st.binary(max_size=20),
            headers=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=14),
            timestamp=st.datetimes(timezones=st.just(UTC)),
            id=st.text(min_size=1, max_size=10),
        )
    )
    def test_every_message_comes_back_as_it_was(self, message: Message) -> None:
        back, packed = there_and_back(message)
        assert back == message
        assert len(packed.attributes) <= wire.MOST_ATTRIBUTES
        said = json.dumps(packed.attributes, ensure_ascii=False) + packed.body
        assert not wire._FORBIDDEN.search(said)

    def test_text_and_plain_headers_are_where_others_look_for_them(self) -> None:
        message = Message("orders", b'{"n": 1}', b"k", {"type": "order"}, timestamp=NOW, id="1")
        packed = wire.pack(message, SQS_BYTES)
        assert packed.body == '{"n": 1}'
        assert packed.attributes["type"] == {"DataType": "String", "StringValue": "order"}
        assert json.loads(packed.attributes["tk-message"]["StringValue"])["key"] == "k"

    @pytest.mark.parametrize("name", ["AWS.x", "amazon.y", ".a", "a.", "a..b", "a b", "ü", "x" * 257, ""])
    def test_a_header_that_can_be_no_attribute_is_packed(self, name: str) -> None:
        back, packed = there_and_back(Message("orders", b"x", None, {name: "1"}, timestamp=NOW, id="1"))
        assert list(packed.attributes) == ["tk-message"]
        assert back.headers == {name: "1"}

    def test_what_is_too_large_as_it_is_packed_is_refused(self) -> None:
        message = Message("orders", b"\xff" * 900, timestamp=NOW, id="1")
        with pytest.raises(MessageTooLarge, match="AWS takes 1000"):
            wire.pack(message, 1000)

    def test_a_foreign_message_is_a_normal_one(self) -> None:
        entry = {
            "MessageId": "sqs-1",
            "Body": "hello",
            "MessageAttributes": {
                "type": {"DataType": "String", "StringValue": "greeting"},
                "size": {"DataType": "Number", "StringValue": "5"},
                "raw": {"DataType": "Binary", "BinaryValue": b"\x00\x01"},
            },
            "Attributes": {"SentTimestamp": "1700000000123", "MessageGroupId": "k"},
        }
        message = wire.unpack("orders", entry).message
        assert (message.value, message.key, message.id) == (b"hello", b"k", "sqs-1")
        assert message.headers == {"type": "greeting", "size": "5", "raw": "AAE="}
        assert message.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)

    def test_halves_of_characters_are_no_reason_to_stop(self) -> None:
        entry = {
            "MessageId": "sqs-1",
            "Body": "a\ud800",
            "MessageAttributes": {"type\udc00": {"DataType": "String", "StringValue": "\ud800b"}},
        }
        message = wire.unpack("orders", entry).message
        assert (message.value, message.headers) == (b"a?", {"type?": "?b"})

    @pytest.mark.parametrize(
        "said",
        [
            "",
            "no JSON",
            "[]",
            '{"id": 5}',
            '{"body": "base64"}',
            '{"key64": "%"}',
            '{"time": "0001-01-01T00:00:00+14:00"}',
        ],
    )
    def test_an_attribute_of_our_name_that_says_nothing_is_ignored(self, said: str) -> None:
        entry = {
            "MessageId": "sqs-1",
            "Body": "hel-lo",
            "MessageAttributes": {"tk-message": {"DataType": "String", "StringValue": said}},
        }
        message = wire.unpack("orders", entry).message
        assert (message.value, message.id, message.headers) == (b"hel-lo", "sqs-1", {})


class TestOptions:
    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("sqs://us-east-1/path", "expected sqs://REGION"),
            ("sqs://a,b", "expected sqs://REGION"),
            ("sqs://us-east-1:80", "expected sqs://REGION"),
            ("sqs://key:geheim@us-east-1", "credentials do not belong into the URL"),
            ("sqs://us-east-1?endpoint=127.0.0.1:4566", "'endpoint' must be http"),
            ("sqs://us-east-1?endpoint=http://u:geheim@host", "'endpoint' must be http"),
            ("sqs://us-east-1?lease=0", "lease must be from 1"),
            ("sqs://us-east-1?lease=0.5", "'lease'"),
            ("sqs://us-east-1?poll=21", "poll must be from 1 to 20"),
            ("sqs://us-east-1?account=12", "twelve digits"),
            ("sqs://us-east-1?mode=stack", "'mode'"),
            ("sqs://us-east-1?max_message_bytes=300000", "topic.MaximumMessageSize"),
            ("sqs://us-east-1?queue.=1", "expected queue.NAME=VALUE"),
            ("sqs://us-east-1?topic.MaximumMessageSize=big", "must be a number"),
            ("sqs://us-east-1?wait=1", "unknown option 'wait'"),
        ],
    )
    def test_what_is_not_understood_is_said(self, url: str, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence) as raised:
            connect(url)
        assert "geheim" not in str(raised.value)

    def test_attributes_are_handed_on(self) -> None:
        asked = settings("queue.KmsMasterKeyId=alias/a&topic.KmsMasterKeyId=alias/b")
        assert asked.attributes_of_queue("q")["KmsMasterKeyId"] == "alias/a"
        assert asked.attributes_of_queue("q")["MessageRetentionPeriod"] == "1209600"
        assert asked.attributes_of_queue("q.fifo")["FifoQueue"] == "true"
        assert asked.attributes_of_topic("t.fifo") == {"KmsMasterKeyId": "alias/b", "FifoTopic": "true"}

    def test_a_message_may_be_as_large_as_aws_takes(self) -> None:
        assert settings().bytes_at_once == SNS_BYTES
        assert settings("mode=queue").bytes_at_once == SQS_BYTES
        assert settings("topic.MaximumMessageSize=1048576").bytes_at_once == SQS_BYTES

    async def test_there_are_as_many_connections_as_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Above a hundred consumers, each of which waits for messages, nobody could publish any more."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
        connected = asyncio.Event()
        writers: list[asyncio.StreamWriter] = []

        async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            if len(writers) == 150:
                connected.set()

        async with await asyncio.start_server(silent, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            clients = Clients(settings(f"endpoint=http://127.0.0.1:{port}"))
            await clients.open()
            polls = [
                asyncio.ensure_future(clients.sqs.receive_message(QueueUrl="url", WaitTimeSeconds=20))
                for _ in range(150)
            ]
            try:
                await asyncio.wait_for(connected.wait(), 20)
            finally:
                for poll in polls:
                    poll.cancel()
                await asyncio.gather(*polls, return_exceptions=True)
                await clients.close()
                for writer in writers:
                    writer.close()

    async def test_without_credentials_there_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
        with pytest.raises(ConfigError, match="there are no AWS credentials"):
            await connect("sqs://us-east-1?publish_timeout=5").open()

    async def test_an_unknown_profile_has_a_sentence(self) -> None:
        with pytest.raises(ConfigError, match="no-such-profile"):
            await connect("sqs://us-east-1?profile=no-such-profile").open()


class TestErrors:
    @pytest.mark.parametrize("code", ["Throttling", "ThrottledException", "InternalError", "KMSThrottling"])
    def test_a_busy_aws_is_waited_for(self, code: str) -> None:
        assert isinstance(ERRORS.translate(refusal(code), "publishing"), ConnectionLost)

    @pytest.mark.parametrize(
        ("code", "remedy"),
        [
            ("ExpiredToken", "renew them"),
            ("AccessDenied", "give them the permission"),
            ("InvalidClientTokenId", "does not know this access key"),
            ("SignatureDoesNotMatch", "does not fit"),
            ("KmsAccessDenied", "kms:Decrypt"),
        ],
    )
    def test_what_trying_again_does_not_mend_says_what_does(self, code: str, remedy: str) -> None:
        error = ERRORS.translate(
            refusal(code, "arn:aws:iam::1:user/x is not authorized"), "publishing to 'orders'"
        )
        assert isinstance(error, ConfigError)
        assert remedy in str(error)
        assert isinstance(error.__cause__, ClientError)

    def test_a_name_that_was_just_deleted_is_waited_for(self) -> None:
        error = ERRORS.translate(refusal("AWS.SimpleQueueService.QueueDeletedRecently"), "declaring")
        assert isinstance(error, ConnectionLost)
        assert "60 seconds" in str(error)

    def test_an_endpoint_that_is_away_is_waited_for(self) -> None:
        error = ERRORS.translate(EndpointConnectionError(endpoint_url="http://127.0.0.1:1/"), "asking")
        assert isinstance(error, ConnectionLost)

    def test_missing_credentials_are_final(self) -> None:
        assert isinstance(ERRORS.translate(NoCredentialsError(), "asking"), ConfigError)

    @pytest.mark.parametrize(
        "error", [refusal("NobodyEverHeardOfThis"), RuntimeError("a fault in the client")]
    )
    def test_what_nobody_knows_is_waited_for(
        self, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert isinstance(ERRORS.translate(error, "asking"), ConnectionLost)
        assert "not an error that is known" in caplog.text

    def test_a_machine_that_gives_no_credentials_for_now_is_waited_for(self) -> None:
        error = CredentialRetrievalError(provider="iam-role", error_msg="timeout")
        assert isinstance(ERRORS.translate(error, "asking"), ConnectionLost)

    async def test_an_answer_that_does_not_come_is_a_lost_connection(self) -> None:
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.01 s"):
            await bare(asyncio.Event().wait(), "asking", 0.01)


class FakeSNS:
    """Answers requests as it was told; keeps them."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []
        self.deduplicated: list[str | None] = []

    async def publish_batch(self, **request: Any) -> Any:
        entries = request["PublishBatchRequestEntries"]
        self.deduplicated += [entry.get("MessageDeduplicationId") for entry in entries]
        self.asked.append([entry["Message"] for entry in entries])
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            raise answer
        return answer


def publisher(sns: FakeSNS, query: str = "") -> Publisher:
    asked = settings(query)
    clients = Clients(asked)
    clients.sns = sns
    admin = Admin(asked, clients)
    for topic in ("orders", "orders.fifo"):
        admin._topics[topic] = f"arn:aws:sns:us-east-1:1:{topic}"
    return Publisher(asked, clients, admin, lambda _: None)


def rows(count: int, size: int = 1) -> list[Message]:
    return [Message("orders", b"%d" % n * size, timestamp=NOW, id=str(n)) for n in range(count)]


class TestPublishing:
    async def test_a_message_that_is_refused_harms_no_other(self) -> None:
        failure = {"Id": "1", "Code": "InvalidParameter", "Message": "no", "SenderFault": True}
        results = await publisher(FakeSNS({"Failed": [failure]})).send(rows(3))
        assert [type(result) for result in results] == [type(None), PublishError, type(None)]

    async def test_what_aws_itself_failed_to_take_is_sent_again_alone(self) -> None:
        failure = {"Id": "1", "Code": "InternalError", "Message": "", "SenderFault": False}
        sns = FakeSNS({"Failed": [failure]}, {})
        assert await publisher(sns).send(rows(3)) == [None, None, None]
        assert sns.asked == [["0", "1", "2"], ["1"]]

    async def test_what_aws_goes_on_failing_to_take_is_a_lost_connection(self) -> None:
        failure = {"Id": "0", "Code": "InternalError", "Message": "", "SenderFault": False}
        with pytest.raises(ConnectionLost):
            await publisher(FakeSNS(*[{"Failed": [failure]}] * 3)).send(rows(1))

    async def test_a_topic_that_is_gone_is_declared_again(self) -> None:
        [result] = await publisher(FakeSNS(refusal("NotFound"))).send(rows(1))
        assert isinstance(result, UnknownTopic)

    async def test_who_may_not_publish_is_told(self) -> None:
        [result] = await publisher(FakeSNS(refusal("AuthorizationError"))).send(rows(1))
        assert isinstance(result, PublishError)
        assert "permission" in str(result)

    async def test_a_throttled_publish_is_tried_again_by_the_engine(self) -> None:
        with pytest.raises(ConnectionLost):
            await publisher(FakeSNS(refusal("Throttled"))).send(rows(1))

    async def test_a_request_has_ten_messages_and_no_more_bytes_than_aws_takes(self) -> None:
        sns = FakeSNS()
        await publisher(sns).send([*rows(25), *rows(3, size=100_000)])
        assert [len(asked) for asked in sns.asked] == [10, 10, 7, 1]

    async def test_a_message_that_is_too_large_as_it_is_packed_harms_no_other(self) -> None:
        messages = [*rows(1), Message("orders", b"\xff" * 250_000, timestamp=NOW, id="x"), *rows(1)]
        results = await publisher(FakeSNS()).send(messages)
        assert [type(result) for result in results] == [type(None), MessageTooLarge, type(None)]

    async def test_what_comes_after_a_failed_message_in_its_group_is_sent_after_it(self) -> None:
        failure = {"Id": "0", "Code": "InternalError", "Message": "", "SenderFault": False}
        sns = FakeSNS({"Failed": [failure]})
        messages = [
            Message("orders.fifo", value, key, timestamp=NOW, id=value.decode())
            for value, key in [(b"a1", b"a"), (b"a2", b"a"), (b"b1", b"b"), (b"a3", b"a"), (b"b2", b"b")]
        ]
        assert await publisher(sns).send(messages) == [None] * 5
        assert sns.asked == [["a1", "b1"], ["a1"], ["a2", "b2"], ["a3"]]

    async def test_what_comes_after_a_message_that_is_not_taken_is_not_sent(self) -> None:
        failure = {"Id": "0", "Code": "InternalError", "Message": "", "SenderFault": False}
        sns = FakeSNS(*[{"Failed": [failure]}] * 3)
        twice = [Message("orders.fifo", b"%d" % n, b"k", timestamp=NOW, id=str(n)) for n in range(2)]
        with pytest.raises(ConnectionLost):
            await publisher(sns).send(twice)
        assert sns.asked == [["0"]] * 3

    async def test_a_publish_that_is_sent_again_is_known_by_the_topic(self) -> None:
        sns = FakeSNS(refusal("InternalError"))
        publishing = publisher(sns)
        order = Message("orders.fifo", b"x", b"k", timestamp=NOW, id="o-1")
        with pytest.raises(ConnectionLost):
            await publishing.send([order])
        for _ in range(2):
            await publishing.send([order])
        lost, again, another = sns.deduplicated
        assert lost == again
        assert another != again, "that is another publish of the same message"

    async def test_a_topic_may_know_messages_by_their_id(self) -> None:
        sns = FakeSNS()
        for value in (b"x", b"y"):
            message = Message("orders.fifo", value, b"k", timestamp=NOW, id="o-1")
            await publisher(sns, "deduplicate=id").send([message])
        assert sns.deduplicated == ["o-1", "o-1"]

    def test_messages_of_one_key_stay_in_one_stream(self) -> None:
        items = [Item(n, {}, 1, b"%d" % (n % 7)) for n in range(200)]
        found = streams(items, 4)
        for key in range(7):
            homes = [stream for stream in found if any(item.order == b"%d" % key for item in stream)]
            assert len(homes) == 1
        assert sum(map(len, found)) == 200
        assert all(
            [item.index for item in stream] == sorted(item.index for item in stream) for stream in found
        )

    def test_messages_without_a_key_are_spread(self) -> None:
        items = [Item(n, {}, 1, None) for n in range(100)]
        assert [len(stream) for stream in streams(items, 4)] == [25] * 4

    def test_chunks_keep_the_order(self) -> None:
        items = [Item(n, {}, 30, None) for n in range(7)]
        assert [[item.index for item in chunk] for chunk in chunks(items, 100)] == [[0, 1, 2], [3, 4, 5], [6]]


class FakeSQS:
    """Answers requests as it was told, by operation; keeps them."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []

    def __getattr__(self, operation: str) -> Any:
        async def ask(**request: Any) -> Any:
            self.asked.append((operation, request.get("Entries")))
            left = self.answers.get(operation) or [{}]
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, asyncio.Event):
                await answer.wait()
                return {}
            return answer

        return ask


def receiver(sqs: FakeSQS, topic: str = "orders") -> SQSReceiver:
    asked = settings()
    clients = Clients(asked)
    clients.sqs = sqs
    admin = Admin(asked, clients)
    subscription = Subscription(topic=topic, group="billing", inbox=Collected())
    queue = Queue(asked, sqs, topic, "url", admin.forget)
    return SQSReceiver(
        asked,
        queue,
        admin,
        subscription,
        Uncounted(),
        lambda _, work: asyncio.create_task(work),
        lambda _: None,
    )


async def fetched(polled: SQSReceiver, limit: int = 10, wait: float = 1.0) -> list[str | None]:
    """The ids of what one call brings."""
    inbox: Any = polled.subscription.inbox
    await polled.fetch(limit, wait)
    return [delivery.message.id for delivery in inbox.take(limit)]


def found(value: str, sent: int, number: int = 0) -> dict[str, Any]:
    said = {"DataType": "String", "StringValue": json.dumps({"n": number})}
    return {
        "MessageId": value,
        "ReceiptHandle": f"receipt of {value}",
        "Body": value,
        "Attributes": {"SentTimestamp": str(sent)},
        "MessageAttributes": {"tk-message": said},
    }


def lent(value: str) -> Delivery:
    return Delivery(
        Message("orders", b"x", id=value), Lent(f"receipt of {value}", value, value, 1, 1, keyed=False)
    )


class TestReceiving:
    async def test_what_comes_at_once_is_sorted_by_when_it_was_sent(self) -> None:
        first, second = [found("c", 5, 9), found("a", 1)], [found("d", 5, 10), found("b", 5, 2)]
        polled = receiver(FakeSQS(receive_message=[{"Messages": first}, {"Messages": second}]))
        polled._width = 2
        assert await fetched(polled, 20) == ["a", "b", "c", "d"]

    async def test_a_fifo_queue_is_not_sorted(self) -> None:
        polled = receiver(
            FakeSQS(receive_message=[{"Messages": [found("b", 5), found("a", 1)]}]), "orders.fifo"
        )
        assert await fetched(polled, 20) == ["b", "a"]

    async def test_one_request_that_fails_does_not_lose_what_the_others_bring(self) -> None:
        polled = receiver(FakeSQS(receive_message=[refusal("Throttling"), {"Messages": [found("a", 1)]}]))
        polled._width = 2
        assert await fetched(polled, 20) == ["a"]

    async def test_more_polls_are_made_while_much_comes_and_one_when_little_does(self) -> None:
        full = {"Messages": [found(str(n), 1) for n in range(10)]}
        sqs = FakeSQS(receive_message=[full, full, full, {}])
        polled = receiver(sqs)
        counts = []
        for _ in range(3):
            before = len(sqs.asked)
            await fetched(polled, 100)
            counts.append(len(sqs.asked) - before)
        assert counts == [1, 2, 4]

    async def test_too_much_in_flight_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queue_module, "PAUSE", 0.0)
        assert await fetched(receiver(FakeSQS(receive_message=[refusal("OverLimit")]))) == []

    async def test_a_queue_that_is_gone_is_a_lost_connection(self) -> None:
        with pytest.raises(ConnectionLost, match="its queue was removed"):
            await fetched(receiver(FakeSQS(receive_message=[refusal("QueueDoesNotExist")])))

    async def test_who_may_not_receive_is_told(self) -> None:
        with pytest.raises(ConfigError, match="permission"):
            await fetched(receiver(FakeSQS(receive_message=[refusal("AccessDenied")])))

    async def test_what_aws_failed_to_delete_is_deleted_again_alone(self) -> None:
        failure = {"Id": "1", "Code": "InternalError", "SenderFault": False}
        sqs = FakeSQS(delete_message_batch=[{"Failed": [failure]}, {}])
        await receiver(sqs).settle([lent("a"), lent("b")], [])
        assert sqs.asked[1] == ("delete_message_batch", [{"Id": "0", "ReceiptHandle": "receipt of b"}])

    async def test_what_aws_goes_on_failing_to_delete_is_a_lost_connection(self) -> None:
        failure = {"Id": "0", "Code": "InternalError", "SenderFault": False}
        with pytest.raises(ConnectionLost):
            await receiver(FakeSQS(delete_message_batch=[{"Failed": [failure]}] * 3)).settle([lent("a")], [])

    async def test_a_lease_that_was_lost_is_passed_over(self) -> None:
        failure = {"Id": "0", "Code": "ReceiptHandleIsInvalid", "SenderFault": True}
        sqs = FakeSQS(delete_message_batch=[{"Failed": [failure]}])
        await receiver(sqs).settle([lent("a")], [])
        assert len(sqs.asked) == 1

    async def test_what_a_poll_brings_while_nobody_asks_is_here_at_once(self) -> None:
        """So its lease is kept, though there may be no room for more for long."""
        polled = receiver(FakeSQS(receive_message=[{"Messages": [found("a", 1)]}]))
        asking = asyncio.ensure_future(polled.fetch(1, 1.0))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert polled._wave is not None
        await asyncio.wait({polled._wave})
        inbox: Any = polled.subscription.inbox
        assert [delivery.message.id for delivery in inbox.waiting] == ["a"]

    async def test_what_has_come_is_kept_while_the_rest_of_its_wave_is_on_its_way(self) -> None:
        late = asyncio.Event()
        sqs = FakeSQS(receive_message=[{"Messages": [found("a", 1)]}, late])
        polled = receiver(sqs)
        polled._width = 2
        asking = asyncio.ensure_future(fetched(polled, 20))
        await eventually(lambda: bool(polled._arriving), 5)
        await polled.extend([])
        assert [entry["ReceiptHandle"] for entry in sqs.asked[-1][1]] == ["receipt of a"]
        late.set()
        assert await asking == ["a"]

    async def test_what_the_inbox_refuses_goes_back(self) -> None:
        sqs = FakeSQS(receive_message=[{"Messages": [found("a", 1)]}])
        polled = receiver(sqs)
        inbox: Any = polled.subscription.inbox
        inbox.put = lambda deliveries: deliveries
        await polled.fetch(1, 1.0)
        hidden = {"Id": "0", "ReceiptHandle": "receipt of a", "VisibilityTimeout": 0}
        assert sqs.asked[1:] == [("change_message_visibility_batch", [hidden])]

    async def test_deliveries_are_counted_by_sqs_from_the_attempt_that_a_copy_has(self) -> None:
        first, copy = found("a", 1), found("b", 2)
        said = json.dumps({"attempt": 3, "suspect": 4})
        copy["MessageAttributes"]["tk-message"]["StringValue"] = said
        for entry in (first, copy):
            entry["Attributes"]["ApproximateReceiveCount"] = "2"
        polled = receiver(FakeSQS(receive_message=[{"Messages": [first, copy]}]))
        await polled.fetch(10, 1.0)
        inbox: Any = polled.subscription.inbox
        come = {each.token.receipt: (each.message.attempt, each.suspect) for each in inbox.waiting}
        assert come == {"receipt of a": (2, 0), "receipt of b": (4, 4)}

    async def test_requests_have_ten_messages(self) -> None:
        sqs = FakeSQS()
        await receiver(sqs).extend([lent(str(n)) for n in range(25)])
        assert sorted(len(entries) for _, entries in sqs.asked) == [5, 10, 10]

    async def test_a_copy_that_sqs_does_not_take_leaves_the_original(self) -> None:
        failure = {"Id": "0", "Code": "InvalidParameterValue", "SenderFault": True}
        sqs = FakeSQS(send_message_batch=[{"Failed": [failure]}])
        await receiver(sqs).settle([], [Release(lent("a"), delay=30.0, attempt=3)])
        hidden = {"Id": "0", "ReceiptHandle": "receipt of a", "VisibilityTimeout": 30}
        assert sqs.asked[1:] == [("change_message_visibility_batch", [hidden])]

    async def test_who_may_not_send_has_messages_hidden(self) -> None:
        sqs = FakeSQS(send_message_batch=[refusal("AccessDenied")])
        await receiver(sqs).settle([], [Release(lent("a"), delay=30.0, attempt=3)])
        assert [operation for operation, _ in sqs.asked][1:] == ["change_message_visibility_batch"]


def test_a_policy_keeps_the_statements_of_others() -> None:
    other = {"Sid": "x", "Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": "q"}
    once = _allowing({"Statement": other}, "arn:topic", "arn:queue")
    assert once["Statement"][0] == other
    assert once["Statement"][1]["Condition"] == {"ArnEquals": {"aws:SourceArn": "arn:topic"}}
    assert _allowing(once, "arn:topic", "arn:queue") == once
