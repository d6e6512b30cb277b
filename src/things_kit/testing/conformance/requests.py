"""Requests and their replies."""

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import pytest

from things_kit import DISCARD, ClosedError, Message, Reject, RemoteError, RetryPolicy, Topic
from things_kit.engine.driver import Listing
from things_kit.engine.naming import REPLIES
from things_kit.messaging.names import CORRELATION_ID, DEAD_LETTER_GROUP, DEADLINE, REPLY_TO
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually


class Order(msgspec.Struct):
    """What is asked with."""

    id: str
    amount: int


class Invoice(msgspec.Struct):
    """What is answered."""

    order: str
    total: int


async def bill(order: Order) -> Invoice:
    """Answer an order with its invoice."""
    return Invoice(order.id, order.amount * 2)


class RequestSuite(Suite):
    """What somebody who asks can rely on."""

    async def test_a_request_is_answered_with_what_its_handler_returns(self, stage: Stage) -> None:
        """Line 68: typed on both sides."""
        orders = Topic(stage.topic(), Order)
        await stage.consume(orders, stage.group(), bill)

        invoice = await stage.broker.request(orders, Order("o-1", 21), reply=Invoice, timeout=stage.patience)

        assert invoice == Invoice("o-1", 42)

    async def test_what_a_handler_returns_is_encoded_by_what_it_is(self, stage: Stage) -> None:
        """Line 68: none is empty, text and bytes are themselves, all else is JSON."""
        answers: list[Any] = [None, b"\x00\xff", "grün", [1, 2], {"a": None}]
        topic = stage.topic()

        async def answer(message: Message) -> Any:
            return answers[int(message.value)]

        await stage.consume(topic, stage.group(), answer)

        replies = [
            await stage.broker.request(Message(topic, b"%d" % index), timeout=stage.patience)
            for index in range(len(answers))
        ]

        assert [reply.value for reply in replies] == [
            b"",
            b"\x00\xff",
            "grün".encode(),
            b"[1,2]",
            b'{"a":null}',
        ]
        assert [reply.headers.get("content-type") for reply in replies] == [
            None, "application/octet-stream", "text/plain; charset=utf-8", "application/json", "application/json",
        ]  # fmt: skip

    async def test_a_hundred_requests_at_once_get_each_its_own_reply(self, stage: Stage) -> None:
        """Line 68: one inbox serves all."""
        orders = Topic(stage.topic(), Order)
        await stage.consume(orders, stage.group(), bill, concurrency=8)
        asked = [Order(f"o-{number}", number) for number in range(100)]

        invoices = await asyncio.gather(
            *(stage.broker.request(orders, order, reply=Invoice, timeout=stage.patience) for order in asked)
        )

        assert invoices == [Invoice(order.id, order.amount * 2) for order in asked]

    async def test_the_servers_of_a_group_share_the_requests(self, stage: Stage) -> None:
        """Line 68: each is answered by one of them, and both have work: either waits with its first for the other's."""
        topic, group = stage.topic(), stage.group()
        began = [asyncio.Event(), asyncio.Event()]

        def server(own: int) -> Any:
            async def answer(_: Message) -> int:
                began[own].set()
                await began[1 - own].wait()
                return own

            return answer

        for own, broker in enumerate((stage.broker, await stage.open())):
            await stage.consume(topic, group, server(own), broker=broker, concurrency=1, max_in_flight=2)
        asked = (Message(topic, b"x", key=b"%d" % number) for number in range(20))
        wait = 2 * stage.patience
        replies = await asyncio.gather(
            *(stage.broker.request(each, reply=int, timeout=wait) for each in asked)
        )
        assert set(replies) == {0, 1}
        await stage.until_lag(topic, group, 0)

    async def test_who_asks_is_told_what_ended_in_the_dead_letter(self, stage: Stage) -> None:
        """Line 69: with type and text; the dead letter is no request any more."""
        topic = stage.topic()

        async def refuse(_: Message) -> None:
            raise Reject("no such order")

        await stage.consume(topic, stage.group(), refuse)
        with pytest.raises(RemoteError) as failed:
            await stage.broker.request(Message(topic, b"o-1", headers={"a": "b"}), timeout=stage.patience)

        assert failed.value.error == "no such order"
        assert failed.value.error_type == "things_kit.messaging.outcomes.Reject"
        (dead,) = await stage.dead_letters(topic, 1)
        assert dead.headers["a"] == "b"
        assert not {REPLY_TO, CORRELATION_ID, DEADLINE} & dead.headers.keys()

    async def test_who_asks_is_told_what_was_discarded(self, stage: Stage) -> None:
        """Line 69: the same with DISCARD."""
        topic = stage.topic()

        async def fail(_: Message) -> None:
            raise ValueError("wrong")

        retry = RetryPolicy(attempts=1)
        await stage.consume(topic, stage.group(), fail, retry=retry, dead_letter=DISCARD)

        with pytest.raises(RemoteError, match="ValueError: wrong"):
            await stage.broker.request(Message(topic, b"o-1"), timeout=stage.patience)

    async def test_an_attempt_that_fails_is_made_again_within_the_deadline(self, stage: Stage) -> None:
        """Line 69: retries are the server's."""
        topic = stage.topic()

        async def third_time(message: Message) -> int:
            if message.attempt < 3:
                raise ValueError("not yet")
            return message.attempt

        await stage.consume(topic, stage.group(), third_time)

        assert await stage.broker.request(Message(topic, b"x"), reply=int, timeout=stage.patience) == 3

    async def test_a_retry_beyond_the_deadline_is_given_up_at_once(self, stage: Stage) -> None:
        """Line 69: nobody would wait for it."""
        topic = stage.topic()
        seen: list[int] = []

        async def fail(message: Message) -> None:
            seen.append(message.attempt)
            raise ValueError("down")

        patient = RetryPolicy(attempts=5, first=3600.0, limit=3600.0, jitter=0.0)
        await stage.consume(topic, stage.group(), fail, retry=patient)

        with pytest.raises(RemoteError, match="down"):
            await stage.broker.request(Message(topic, b"x"), timeout=stage.patience)
        assert seen == [1]

    async def test_a_request_past_its_deadline_is_acknowledged_unhandled(self, stage: Stage) -> None:
        """Line 69: it is counted, and a plain message beside it is handled."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        with pytest.raises(TimeoutError, match="no reply"):
            await stage.broker.request(Message(topic, b"late"), timeout=0.5)
        asks = {REPLY_TO: stage.name("gone"), CORRELATION_ID: "1", DEADLINE: "2001-02-03T04:05:06Z"}
        await stage.publish(topic, b"late", headers=asks)
        recorder = Recorder()
        consumer = await stage.consume(topic, group, recorder)
        await stage.publish(topic, b"plain")
        await recorder.until_done(1, stage.patience)
        await stage.until_lag(topic, group, 0)

        # On a busy machine the first was too late already to be published
        await eventually(lambda: consumer.expired in {1, 2}, stage.patience, "what was late is counted")
        assert [message.value for message in recorder.began] == [b"plain"]

    async def test_without_an_answer_there_is_a_timeout_that_leaves_nothing(self, stage: Stage) -> None:
        """Line 70: the error names the topic."""
        topic = stage.topic()
        await stage.broker.declare(topic, groups=[stage.group()])
        begun = time.monotonic()

        with pytest.raises(TimeoutError, match=topic):
            await stage.broker.request(Message(topic, b"x"), timeout=0.3)

        assert time.monotonic() - begun < stage.patience

    async def test_a_request_that_names_no_inbox_is_handled_and_holds_up_nobody(self, stage: Stage) -> None:
        """Line 70: who asks writes where the reply goes, and may write anything."""
        topic, group = stage.topic(), stage.group()
        nowhere = ["", "*", ">", "#", "a b/../c", "gr\u00fcn", "x" * 1000, stage.name("gone")]
        seen: list[bytes] = []

        async def answer(message: Message) -> str:
            seen.append(message.value)
            return "here"

        await stage.consume(topic, group, answer)
        for number, place in enumerate(nowhere):
            asks = {REPLY_TO: place, CORRELATION_ID: "1"}
            await stage.publish(topic, b"%d" % number, key=b"k", headers=asks)
        reply = await stage.broker.request(Message(topic, b"last", b"k"), reply=str, timeout=stage.patience)

        assert reply == "here"
        assert seen == [*(b"%d" % number for number in range(len(nowhere))), b"last"]
        await stage.until_lag(topic, group, 0)
        await stage.until_lag(f"{topic}-dlq", DEAD_LETTER_GROUP, 0)

    async def test_closing_the_broker_ends_open_requests(self, stage: Stage) -> None:
        """Line 70: they do not wait for their timeout."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        other = await stage.open()
        asking = asyncio.create_task(other.request(Message(topic, b"x"), timeout=60))
        await stage.until_lag(topic, group, 1)

        await other.close()

        with pytest.raises(ClosedError):
            await asking

    async def test_an_inbox_goes_with_its_broker(self, stage: Stage) -> None:
        """Line 70: nothing of it stays at the broker."""
        topic, seen = stage.topic(), list[str]()

        async def answer(message: Message) -> None:
            seen.append(message.headers[REPLY_TO])

        await stage.consume(topic, stage.group(), answer)
        other = await stage.open()
        await other.request(Message(topic, b"x"), timeout=stage.patience)
        await other.close()

        async def gone() -> bool:
            return not await stage.broker.transmission.has_topic(seen[0])

        await eventually(gone, stage.patience, "its inbox is gone")

    async def test_the_inbox_of_a_killed_process_is_removed_by_the_next_that_asks(self, stage: Stage) -> None:
        """Line 70: its name says until when it can have been used; one of a living process stays."""
        if stage.capabilities.passing_inbox or not isinstance(stage.broker.transmission.driver, Listing):
            pytest.skip("the broker removes it by itself")
        orders = Topic(stage.topic(), Order)
        dead, living = f"{REPLIES}1-{stage.name('dead')}", f"{REPLIES}ffffffff-{stage.name('living')}"
        stage.sweep(dead, living)
        await stage.broker.declare(dead, groups=["replies"])
        await stage.broker.declare(living, groups=["replies"])
        await stage.consume(orders, stage.group(), bill)

        await stage.broker.request(orders, Order("o-1", 21), timeout=stage.patience)

        async def gone() -> bool:
            return not await stage.broker.transmission.has_topic(dead)

        await eventually(gone, stage.patience, "the inbox of the dead is removed")
        assert await stage.broker.transmission.has_topic(living)

    async def test_a_request_survives_an_outage(self, stage: Stage) -> None:
        """Line 70: its inbox comes back, and the reply arrives."""
        stage.needs_outage()
        topic, asked = stage.topic(), asyncio.Event()
        go_on = asyncio.Event()

        async def answer(_: Message) -> str:
            asked.set()
            await go_on.wait()
            return "here"

        await stage.consume(topic, stage.group(), answer)
        asking = asyncio.create_task(
            stage.broker.request(Message(topic, b"x"), reply=str, timeout=4 * stage.patience)
        )
        try:
            await asyncio.wait_for(asked.wait(), stage.patience)
            async with stage.outage():
                go_on.set()
            assert await asking == "here"
        finally:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
