"""What the driver for SQS and SNS does beyond the conformance suite, on an emulator of them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

pytest.importorskip("aiobotocore")

from things_kit import (
    Broker,
    ConfigError,
    Message,
    NobodyListens,
    PublishError,
    Retry,
    RetryPolicy,
    UnsupportedError,
    connect,
)
from things_kit.brokers.sqs import admin as admin_module
from things_kit.brokers.sqs import queue as queue_module
from things_kit.brokers.sqs import receiver as receiver_module
from things_kit.brokers.sqs import wire as wire_module
from things_kit.engine import watch
from things_kit.engine.collected import collect
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.driver import ConnectionLost, Delivery, Later, Release, Subscription
from things_kit.engine.facts import Question
from things_kit.engine.reasons import reason_of
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own
from things_kit.testing.servers.process import free_ports
from things_kit.testing.servers.sqs import SQSServer

own_sqs = own(SQSServer)

pytestmark = pytest.mark.usefixtures("credentials")

ONCE = RetryPolicy(attempts=1)


def driver(broker: Broker) -> Any:
    return broker._driver


async def queue(broker: Broker, topic: str, group: str = "billing") -> Any:
    return await driver(broker)._admin.queue_url(topic, group)


@asynccontextmanager
async def receiving(
    broker: Broker, topic: str, **options: Any
) -> AsyncIterator[tuple[Any, Callable[[], Awaitable[list[Delivery]]]]]:
    receiver = await collect(driver(broker), Subscription(topic=topic, group="billing", **options))

    async def some() -> list[Delivery]:
        return list(await receiver.receive(100, 10.0))

    try:
        yield receiver, some
    finally:
        await receiver.close()


class Handled:
    def __init__(self, fails: int = 0) -> None:
        self.messages: list[Message] = []
        self.fails = fails

    async def handle(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) <= self.fails:
            raise ValueError("as planned")

    async def until(self, count: int) -> list[Message]:
        await eventually(lambda: len(self.messages) >= count, 15, f"{count} are handled")
        return self.messages


class TestFifo:
    async def test_another_value_of_the_same_id_arrives_as_well(self, broker: Broker, topic: str) -> None:
        topic += ".fifo"
        handled = Handled()
        async with broker.consumer(topic, group="billing", handler=handled):
            producer = broker.producer()
            for value in (b"x", b"y", b"y"):
                await producer.publish(Message(topic, value, key=b"k", id="o-1"))
            assert [m.value for m in await handled.until(3)] == [b"x", b"y", b"y"]

    async def test_the_same_id_is_handled_once_where_that_is_asked_for(
        self, sqs: SQSServer, topic: str
    ) -> None:
        topic += ".fifo"
        handled = Handled()
        async with (
            connect(f"{sqs.url}&grace=0&deduplicate=id") as broker,
            broker.consumer(topic, group="billing", handler=handled),
        ):
            twice = Message(topic, b"x", key=b"k", id="o-1")
            producer = broker.producer()
            for message in (twice, twice, Message(topic, b"y", key=b"k", id="o-2")):
                await producer.publish(message)
            assert [m.id for m in await handled.until(2)] == ["o-1", "o-2"]

    @pytest.mark.parametrize("known_by", ["publish", "id"])
    async def test_a_replay_and_a_second_dead_letter_are_no_duplicates(
        self, sqs: SQSServer, topic: str, known_by: str
    ) -> None:
        topic += ".fifo"
        dead = topic.replace(".fifo", "-dlq.fifo")
        handled = Handled(fails=2)
        async with (
            connect(f"{sqs.url}&grace=0&deduplicate={known_by}") as broker,
            broker.consumer(topic, group="billing", handler=handled, retry=ONCE),
        ):
            await broker.producer().publish(Message(topic, b"x", key=b"k", id="o-1"))
            for count in (1, 2):
                await handled.until(count)
                await _until_lag(broker, dead, "dead-letters", 1)
                assert await broker.replay(dead) == 1
            assert [m.id for m in await handled.until(3)] == ["o-1"] * 3
            await _until_lag(broker, topic, "billing", 0)

    async def test_a_replay_to_another_topic_gets_there(self, broker: Broker, topic: str) -> None:
        topic += ".fifo"
        dead = topic.replace(".fifo", "-dlq.fifo")
        handled = Handled(fails=1)
        async with broker.consumer(topic, group="billing", handler=handled, retry=ONCE):
            await broker.producer().publish(Message(topic, b"x", key=b"k", id="o-1"))
            await _until_lag(broker, dead, "dead-letters", 1)
            assert await broker.replay(dead, to=topic) == 1
            await handled.until(2)

    async def test_messages_without_a_key_wait_for_nobody(self, broker: Broker, topic: str) -> None:
        topic += ".fifo"
        await broker.declare(topic, groups=["billing"])
        await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(20)])
        async with receiving(broker, topic) as (_, some):
            got = await some()
            assert len({delivery.message.id for delivery in got}) == len(got)
            assert all(delivery.message.key is None for delivery in got)
            got += await some()
            assert len(got) == 20

    async def test_a_message_put_aside_lets_its_key_go_on(self, broker: Broker, topic: str) -> None:
        topic += ".fifo"
        seen: list[tuple[bytes, int]] = []

        async def handle(message: Message) -> None:
            seen.append((message.value, message.attempt))
            if message.value == b"1" and message.attempt == 1:
                raise Retry(after=1.2)

        policy = RetryPolicy(attempts=3, mode="delayed")
        async with broker.consumer(topic, group="billing", handler=handle, retry=policy):
            producer = broker.producer()
            for value in (b"1", b"2"):
                await producer.publish(Message(topic, value, key=b"k"))
            await eventually(lambda: len(seen) == 3, 15)
        assert seen == [(b"1", 1), (b"2", 1), (b"1", 2)]


class TestQueues:
    async def test_a_topic_is_a_queue(self, sqs: SQSServer, topic: str) -> None:
        handled = Handled(fails=1)
        async with connect(f"{sqs.url}&mode=queue&grace=0") as broker:
            await broker.declare(topic, groups=["billing"])
            await broker.producer().publish(Message(topic, b"x", key=b"k", headers={"type": "order"}))
            assert await broker.lag(topic, group="billing") == 1
            async with broker.consumer(topic, group="billing", handler=handled, retry=ONCE):
                await _until_lag(broker, f"{topic}-dlq", "dead-letters", 1)
                assert await broker.replay(f"{topic}-dlq") == 1
                [first, second] = await handled.until(2)
                await _until_lag(broker, topic, "billing", 0)
            assert (second.value, second.key, second.id) == (b"x", b"k", first.id)
            await broker.remove(topic)
            await broker.remove(f"{topic}-dlq")

    async def test_a_queue_has_one_group(self, sqs: SQSServer, topic: str) -> None:
        async with (
            connect(f"{sqs.url}&mode=queue&grace=0") as first,
            connect(f"{sqs.url}&mode=queue&grace=0") as second,
        ):
            await first.declare(topic, groups=["billing"])
            for broker in (first, second):
                with pytest.raises(UnsupportedError, match=r"has one group; that of .* is 'billing'"):
                    await broker.declare(topic, groups=["shipping"])
            with pytest.raises(UnsupportedError, match="a consumer needs its name"):
                await second.consumer(topic, group=None, handler=Handled()).start()
            await first.remove(topic)


async def lag_is(broker: Broker, topic: str, expected: int) -> bool:
    return await broker.lag(topic, group="billing") == expected


class TestWaiting:
    async def test_a_delay_is_kept_by_the_broker_with_the_attempt(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing"])
        await broker.producer().publish(Message(topic, b"x", id="o-1", headers={"a": "b"}))
        async with receiving(broker, topic) as (receiver, some):
            [delivery] = await some()
            began = time.monotonic()
            await receiver.settle([], [Release(delivery, delay=1.0, attempt=2)])
            assert await broker.lag(topic, group="billing") == 1
            [again] = await some() or await some()
            assert time.monotonic() - began >= 0.9
            assert (again.message.id, again.message.attempt, again.message.headers) == ("o-1", 2, {"a": "b"})
            await receiver.settle([again], [])
        assert await broker.lag(topic, group="billing") == 0

    async def test_what_waits_longer_than_sqs_can_is_hidden_again_and_again(
        self, broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue_module, "MOST_DELAYED", 1)
        for module in (queue_module, receiver_module, wire_module):
            monkeypatch.setattr(module, "LONGEST_HIDDEN", 1)
        await self.waits(broker, topic)

    async def test_what_waits_for_long_is_sent_anew_before_its_retention_ends(
        self, broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue_module, "MOST_DELAYED", 1)
        monkeypatch.setattr(receiver_module, "LONGEST_HIDDEN", 1)
        monkeypatch.setattr(receiver_module, "FRESH", 0)
        await self.waits(broker, topic)

    async def waits(self, broker: Broker, topic: str) -> None:
        """A message that is put aside for 2.5 s comes as its second attempt then, and no sooner."""
        times: list[float] = []
        seen: list[Message] = []

        async def handle(message: Message) -> None:
            seen.append(message)
            times.append(time.monotonic())
            if len(seen) == 1:
                raise Retry(after=2.5)

        policy = RetryPolicy(mode="delayed")
        async with broker.consumer(topic, group="billing", handler=handle, retry=policy):
            await broker.producer().publish(Message(topic, b"x", key=b"k", id="o-1"))
            await eventually(lambda: len(seen) == 2, 20)
            await eventually(lambda: lag_is(broker, topic, 0), 10)
        assert [(m.id, m.attempt, m.key) for m in seen] == [("o-1", 1, b"k"), ("o-1", 2, b"k")]
        assert times[1] - times[0] >= 2.4

    async def test_what_cannot_be_sent_again_is_hidden(
        self, broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await broker.declare(topic, groups=["billing"])
        await broker.producer().publish(Message(topic, b"x"))
        async with receiving(broker, topic) as (receiver, some):
            [delivery] = await some()
            large = Message(topic, b"\xff" * 300_000, timestamp=delivery.message.timestamp, id="large")
            delivery.message = large
            await receiver.settle([], [Release(delivery, delay=0.0, attempt=5)])
            [again] = await some()
            assert again.message.attempt == 5, "this process remembers"


class TestReceiving:
    async def test_what_comes_after_a_call_was_cancelled_is_handed_out_by_the_next(
        self, broker: Broker, topic: str
    ) -> None:
        await broker.declare(topic, groups=["billing"])
        async with receiving(broker, topic) as (receiver, some):
            waiting = asyncio.ensure_future(some())
            await eventually(lambda: receiver.receiver._wave is not None, 5)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await broker.producer().publish(Message(topic, b"x"))
            [delivery] = await some()
            assert delivery.message.value == b"x"

    async def test_what_comes_after_a_receiver_closed_goes_to_the_next(
        self, broker: Broker, topic: str
    ) -> None:
        await broker.declare(topic, groups=["billing"])
        async with receiving(broker, topic) as (receiver, some):
            waiting = asyncio.ensure_future(some())
            await eventually(lambda: receiver.receiver._wave is not None, 5)
            waiting.cancel()
        under_way = list(driver(broker)._lingering)
        await broker.producer().publish(Message(topic, b"x"))
        assert len(under_way) == 1, "nobody waits for what the poll brings"
        await asyncio.wait(under_way)
        async with receiving(broker, topic) as (_, some):
            [delivery] = await some() or await some()
            assert delivery.message.value == b"x"

    async def test_what_was_not_settled_goes_back_on_close(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing"])
        await broker.producer().publish(Message(topic, b"x"))
        for _ in range(2):
            async with receiving(broker, topic) as (_, some):
                [delivery] = await some() or await some()
                assert (delivery.message.value, delivery.message.attempt) == (b"x", 1)

    async def test_what_a_dead_process_was_handed_counts(
        self, sqs: SQSServer, broker: Broker, topic: str
    ) -> None:
        await broker.declare(topic, groups=["billing"])
        await broker.producer().publish(Message(topic, b"x"))
        async with connect(f"{sqs.url}&grace=0&lease=1") as dies:
            dead = await collect(driver(dies), Subscription(topic=topic, group="billing"))
            assert len(await dead.receive(1, 10.0)) == 1
            async with receiving(broker, topic) as (_, some):
                [delivery] = await some() or await some()
                assert delivery.message.attempt == 2

    async def test_a_mark_travels_on_a_copy_to_the_group_alone(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing", "shipping"])
        message = Message(topic, b"x", key=b"k", id="o-1", timestamp=datetime.now(UTC))
        copy = Later(message, "billing", datetime.now(UTC), attempt=6, suspect=6)
        assert await driver(broker).send_later([copy]) == [None]
        async with receiving(broker, topic) as (_, some):
            [delivery] = await some()
            assert (delivery.message.id, delivery.message.key) == ("o-1", b"k")
            assert (delivery.message.attempt, delivery.suspect) == (6, 6)
        assert await broker.lag(topic, group="shipping") == 0

    async def test_a_removed_queue_is_made_anew(self, broker: Broker, topic: str) -> None:
        handled = Handled()
        async with broker.consumer(topic, group="billing", handler=handled) as consumer:
            await driver(broker)._admin.delete_queue(await queue(broker, topic))
            await eventually(lambda: consumer.health().reason is not None, 15, "the loss is noticed")
            await eventually(lambda: consumer.health().reason is None, 15, "it receives again")
            await broker.producer().publish(Message(topic, b"x"))
            await handled.until(1)

    async def test_an_ephemeral_queue_is_removed_with_its_consumer(self, broker: Broker, topic: str) -> None:
        async with broker.consumer(topic, group=None, handler=Handled()):
            assert len([each async for each in driver(broker)._admin.subscriptions(topic)]) == 1
        assert [each async for each in driver(broker)._admin.subscriptions(topic)] == []

    async def test_what_a_dead_consumer_left_is_removed_by_the_next(
        self, broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admin_module, "DEAD", -1.0)
        admin = driver(broker)._admin
        left = await admin.declare_ephemeral(topic)  # and nobody receives
        await broker.declare(topic, groups=["billing"])
        monkeypatch.setattr(admin_module, "DEAD", 0.0)
        monkeypatch.setattr(admin_module.Admin, "is_dead", _dead_is(left.rpartition("/")[2]))
        async with broker.consumer(topic, group=None, handler=Handled()):
            queues = {name async for _, name in admin.subscriptions(topic)}
            assert left.rpartition("/")[2] not in queues
            assert f"{topic}_-_billing" in queues
            assert len(queues) == 2


def _dead_is(dead: str) -> Callable[[Any, str], Awaitable[bool]]:
    async def is_dead(_: Any, queue: str) -> bool:
        return queue == dead

    return is_dead


class TestDeclaring:
    async def test_a_queue_lets_its_topic_send(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing"])
        asked = driver(broker)._clients.sqs.get_queue_attributes(
            QueueUrl=await queue(broker, topic), AttributeNames=["All"]
        )
        attributes = (await asked)["Attributes"]
        [statement] = json.loads(attributes["Policy"])["Statement"]
        arn = await driver(broker)._admin.topic_arn(topic)
        assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": arn}}
        assert attributes["MessageRetentionPeriod"] == "1209600"

    async def test_a_queue_of_others_is_adopted(self, broker: Broker, topic: str) -> None:
        client = driver(broker)._clients.sqs
        made = await client.create_queue(
            QueueName=f"{topic}_-_billing",
            Attributes={"MessageRetentionPeriod": "60", "VisibilityTimeout": "1"},
        )
        await broker.declare(topic, groups=["billing"])
        await broker.declare(topic, groups=["billing"])
        asked = await client.get_queue_attributes(QueueUrl=made["QueueUrl"], AttributeNames=["All"])
        assert asked["Attributes"]["MessageRetentionPeriod"] == "60"
        assert len(json.loads(asked["Attributes"]["Policy"])["Statement"]) == 1

    async def test_options_are_attributes_of_what_is_created(self, sqs: SQSServer, topic: str) -> None:
        async with connect(f"{sqs.url}&queue.MessageRetentionPeriod=3600&topic.DisplayName=Orders") as broker:
            await broker.declare(topic, groups=["billing"])
            asked = driver(broker)._clients.sqs.get_queue_attributes(
                QueueUrl=await queue(broker, topic), AttributeNames=["All"]
            )
            assert (await asked)["Attributes"]["MessageRetentionPeriod"] == "3600"
            arn = await driver(broker)._admin.topic_arn(topic)
            found = await driver(broker)._clients.sns.get_topic_attributes(TopicArn=arn)
            assert found["Attributes"]["DisplayName"] == "Orders"

    @pytest.mark.parametrize("account", ["", "&account=000000000000"])
    async def test_without_declaring_topics_and_queues_are_found(
        self, sqs: SQSServer, broker: Broker, topic: str, account: str
    ) -> None:
        async with connect(f"{sqs.url}&declare=false&grace=0{account}") as careful:
            with pytest.raises(NobodyListens, match="declare one"):
                await careful.producer().publish(Message(topic, b"x"))
            with pytest.raises(ConfigError, match="declare it first"):
                await careful.consumer(topic, group="billing", handler=Handled(), dead_letter=None).start()
            await broker.declare(topic, groups=["billing"])
            handled = Handled()
            async with careful.consumer(topic, group="billing", handler=handled, dead_letter=None):
                await careful.producer().publish(Message(topic, b"x"))
                await handled.until(1)

    async def test_removing_leaves_the_queues_of_others(self, broker: Broker, topic: str) -> None:
        clients, admin = driver(broker)._clients, driver(broker)._admin
        await broker.declare(topic, groups=["billing", "x" * 100])
        arn = await admin.topic_arn(topic)
        other = (await clients.sqs.create_queue(QueueName=f"{topic}-audit"))["QueueUrl"]
        await clients.sns.subscribe(
            TopicArn=arn, Protocol="sqs", Endpoint=arn.replace(":sns:", ":sqs:") + "-audit"
        )
        await broker.remove(topic)
        assert await admin.topic_arn(topic) is None
        left = (await clients.sqs.list_queues(QueueNamePrefix=topic[:40])).get("QueueUrls", [])
        assert left == [other]
        await clients.sqs.delete_queue(QueueUrl=other)

    async def test_a_group_is_removed_alone(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing", "shipping"])
        for _ in range(2):
            await driver(broker).remove(topic, "billing")
        queues = [name async for _, name in driver(broker)._admin.subscriptions(topic)]
        assert queues == [f"{topic}_-_shipping"]
        assert await driver(broker)._admin._url_of(f"{topic}_-_billing") is None

    async def test_the_group_of_a_queue_is_the_queue(self, sqs: SQSServer, topic: str) -> None:
        async with connect(f"{sqs.url}&mode=queue&grace=0") as broker:
            with pytest.raises(UnsupportedError, match="remove the topic"):
                await driver(broker).remove(topic, "billing")

    async def test_a_replay_for_a_group_that_is_gone_says_so(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["shipping"])
        with pytest.raises(PublishError, match=r"'billing' .* has no queue"):
            await broker.producer().publish(Message(topic, b"x", headers={"replay-group": "billing"}))


class TestDoctor:
    async def test_all_is_well(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing"])
        await broker.declare(f"{topic}-dlq", groups=["dead-letters"])
        found = await diagnose(broker, Question(topic=topic, group="billing"))
        assert {finding.level for finding in found} == {"ok"}, found

    async def test_a_topic_without_groups_keeps_nothing(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic)
        found = await diagnose(broker, Question(topic=topic, group="billing"))
        said = {(finding.level, finding.subject) for finding in found}
        assert ("warning", f"topic {topic}") in said
        assert ("error", "group billing") in said

    async def test_a_missing_topic_is_told(self, broker: Broker, topic: str) -> None:
        found = await diagnose(broker, Question(topic=topic))
        assert any("There is no such topic" in finding.what for finding in found)

    async def test_a_subscription_that_wraps_messages_is_an_error(self, broker: Broker, topic: str) -> None:
        await broker.declare(topic, groups=["billing"])
        [(subscription, _)] = [pair async for pair in driver(broker)._admin.subscriptions(topic)]
        await driver(broker)._clients.sns.set_subscription_attributes(
            SubscriptionArn=subscription, AttributeName="RawMessageDelivery", AttributeValue="false"
        )
        found = await diagnose(broker, Question(topic=topic, group="billing"))
        assert any(finding.level == "error" and "not raw" in finding.what for finding in found)


async def test_a_killed_server_is_made_anew(own_sqs: SQSServer, topic: str) -> None:
    """The emulator forgets all that it had; consumers and producers go on with topics and queues made anew."""
    handled = Handled()
    async with (
        connect(f"{own_sqs.url}&grace=0") as broker,
        broker.consumer(topic, group="billing", handler=handled),
    ):
        producer = broker.producer()
        await producer.publish(Message(topic, b"before"))
        await handled.until(1)
        await asyncio.to_thread(own_sqs.kill)
        await asyncio.to_thread(own_sqs.start)

        async def subscribed() -> bool:
            return bool([each async for each in driver(broker)._admin.subscriptions(topic)])

        await eventually(subscribed, 30, "the consumer has made its queue anew")
        await producer.publish(Message(topic, b"after"))
        await handled.until(2)


async def _until_lag(broker: Broker, topic: str, group: str, expected: int) -> None:
    async def reached() -> bool:
        return await broker.lag(topic, group=group) == expected

    await eventually(reached, 15, f"the lag of {topic} is {expected}")


class TestTopicsThatAreRemoved:
    """A topic takes its subscriptions along, and SNS confirms and drops what nobody is subscribed to."""

    async def test_what_is_published_afterwards_in_this_process_arrives(
        self, sqs: SQSServer, broker: Broker, topic: str
    ) -> None:
        handled = Handled()
        async with broker.consumer(topic, group="billing", handler=handled):
            producer = broker.producer()
            await producer.publish(Message(topic, b"before"))
            await handled.until(1)
            await _delete_at_sns(sqs, broker, topic)
            await producer.publish(Message(topic, b"after"))
            assert [m.value for m in await handled.until(2)] == [b"before", b"after"]

    async def test_so_it_does_where_the_queues_went_as_well(
        self, sqs: SQSServer, broker: Broker, topic: str
    ) -> None:
        handled = Handled()
        async with (
            broker.consumer(topic, group="billing", handler=handled),
            connect(f"{sqs.url}&grace=0") as other,
        ):
            producer = broker.producer()
            await producer.publish(Message(topic, b"before"))
            await handled.until(1)
            await other.remove(topic)
            await _until_published(producer, Message(topic, b"after"))
            assert [m.value for m in await handled.until(2)] == [b"before", b"after"]

    async def test_the_consumers_of_other_processes_subscribe_again(
        self, sqs: SQSServer, broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "IDLE", 0.5)
        monkeypatch.setattr(watch, "LOOK", 0.2)
        handled = Handled()
        async with (
            broker.consumer(topic, group="billing", handler=handled),
            connect(f"{sqs.url}&grace=0") as other,
        ):
            producer = other.producer()
            await producer.publish(Message(topic, b"before"))
            await _delete_at_sns(sqs, broker, topic)
            await _until_published(producer, Message(topic, b"after"))
            assert [m.value for m in await handled.until(2)] == [b"before", b"after"]

    async def test_nothing_is_confirmed_that_nobody_gets(
        self, sqs: SQSServer, broker: Broker, topic: str
    ) -> None:
        await broker.declare(topic, groups=["billing"])
        async with connect(f"{sqs.url}&grace=0") as other:
            producer = other.producer()
            await producer.publish(Message(topic, b"before"))
            await _delete_at_sns(sqs, broker, topic)
            with pytest.raises(NobodyListens):
                await producer.publish(Message(topic, b"after"))

    async def test_a_queue_alone_keeps_what_comes(self, sqs: SQSServer, topic: str) -> None:
        async with connect(f"{sqs.url}&mode=queue&grace=0") as broker:
            await broker.producer().publish(Message(topic, b"x"))
            assert await broker.lag(topic, group="billing") == 1
            await broker.remove(topic)


async def _delete_at_sns(sqs: SQSServer, broker: Broker, topic: str) -> None:
    arn = await driver(broker)._admin.topic_arn(topic)
    async with connect(f"{sqs.url}&grace=0") as somebody:
        await driver(somebody)._clients.sns.delete_topic(TopicArn=arn)


async def _until_published(producer: Any, message: Message) -> None:
    async def published() -> bool:
        try:
            await producer.publish(message)
        except NobodyListens:
            return False
        return True

    await eventually(published, 15, "somebody listens")


async def test_a_broker_that_is_not_there_is_found_out_at_the_first_attempt() -> None:
    (port,) = free_ports(1)
    away = driver(connect(f"sqs://us-east-1?endpoint=http://127.0.0.1:{port}"))
    attempts: list[int] = []
    await away._clients.open()
    try:
        away._clients.sqs.meta.events.register("before-send.sqs.ListQueues", lambda **_: attempts.append(1))
        with pytest.raises(ConnectionLost) as raised:
            await away.ping()
    finally:
        await away.close()
    assert reason_of(raised.value).endswith("(connection refused)")
    assert len(attempts) == 1
