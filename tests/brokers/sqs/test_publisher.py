"""Publishing, to an SNS that answers as it is told."""

from typing import Any

import pytest

pytest.importorskip("aiobotocore")


from tests.brokers.sqs.given import NOW, refusal, settings
from things_kit import Message, MessageTooLarge, PublishError
from things_kit.brokers.sqs.admin import Admin
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.publisher import Item, Publisher, chunks, streams
from things_kit.engine.driver import ConnectionLost, UnknownTopic


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
