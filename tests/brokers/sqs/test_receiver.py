"""Receiving and settling, with an SQS that answers as it is told."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

pytest.importorskip("aiobotocore")


from tests.brokers.sqs.given import refusal, settings
from things_kit import ConfigError, Message
from things_kit.brokers.sqs import queue as queue_module
from things_kit.brokers.sqs.admin import Admin
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.queue import Queue
from things_kit.brokers.sqs.receiver import Lent, SQSReceiver
from things_kit.engine.collected import Collected
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.uncounted import Uncounted
from things_kit.testing.conformance.waiting import eventually


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
            return await answer if isinstance(answer, asyncio.Future) else answer

        return ask


def receiver(sqs: FakeSQS, topic: str = "orders") -> SQSReceiver:
    asked = settings()
    clients = Clients(asked)
    clients.sqs = sqs
    admin = Admin(asked, clients)
    subscription = Subscription(topic=topic, group="billing", inbox=Collected())
    queue = Queue(asked, sqs, topic, f"http://queues/{topic}", admin.forget)
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
        assert sqs.asked[1] == ("delete_message_batch", [{"Id": "1", "ReceiptHandle": "receipt of b"}])

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
        late = asyncio.get_running_loop().create_future()
        sqs = FakeSQS(receive_message=[{"Messages": [found("a", 1)]}, late])
        polled = receiver(sqs)
        polled._width = 2
        asking = asyncio.ensure_future(fetched(polled, 20))
        await eventually(lambda: bool(polled._arriving), 5)
        await polled.extend([])
        assert [entry["ReceiptHandle"] for entry in sqs.asked[-1][1]] == ["receipt of a"]
        late.set_result({})
        assert await asking == ["a"]

    async def test_what_the_inbox_refuses_goes_back(self) -> None:
        sqs = FakeSQS(receive_message=[{"Messages": [found("a", 1)]}])
        polled = receiver(sqs)
        inbox: Any = polled.subscription.inbox
        inbox.put = lambda deliveries: deliveries
        await polled.fetch(1, 1.0)
        hidden = {"Id": "0", "ReceiptHandle": "receipt of a", "VisibilityTimeout": 0}
        assert sqs.asked[1:] == [("change_message_visibility_batch", [hidden])]

    async def test_what_a_poll_brings_after_it_was_told_to_be_quiet_goes_back(self) -> None:
        late = asyncio.get_running_loop().create_future()
        sqs = FakeSQS(receive_message=[late])
        polled = receiver(sqs)
        await polled.fetch(1, 0.01)
        await polled.quiesce()
        late.set_result({"Messages": [found("a", 1)]})
        await eventually(lambda: len(sqs.asked) > 1, 5)
        hidden = {"Id": "0", "ReceiptHandle": "receipt of a", "VisibilityTimeout": 0}
        assert sqs.asked[1:] == [("change_message_visibility_batch", [hidden])]

    @pytest.mark.parametrize(
        ("topic", "held", "overdue"), [("orders", 1, 2), ("orders.fifo", 1, None), ("orders.fifo", 0, 2)]
    )
    async def test_what_waits_is_overdue_unless_its_order_may_be_held_up(
        self, topic: str, held: int, overdue: int | None
    ) -> None:
        said = {"ApproximateNumberOfMessages": "2", "ApproximateNumberOfMessagesNotVisible": str(held)}
        polled = receiver(FakeSQS(get_queue_attributes=[{"Attributes": said}]), topic)
        polled.subscription = msgspec.structs.replace(polled.subscription, create=False)
        assert await polled.overdue() == overdue

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
