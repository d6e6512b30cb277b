"""Receiving over one link: what arrives, goes back, is locked for longer, or is lost."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient

from things_kit import Broker, ConfigError, Message, NobodyListens, Retry, RetryPolicy, connect
from things_kit.brokers.servicebus import receiver
from things_kit.brokers.servicebus.amqp.codec import Described, Encoded, encode
from things_kit.brokers.servicebus.amqp.links import Link
from things_kit.brokers.servicebus.client import Client
from things_kit.brokers.servicebus.wire import DATA, FIELDS, VALUE
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.testing.conformance.history import merged
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.steady import Pulse
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.servicebus import ServiceBusServer

from .common import client_of, driver_of, keyed, lag_is, publish_raw

CHAR, DECIMAL = Encoded(b"\x73\x00\x00\x00\x41"), Encoded(b"\x74\x22\x50\x00\x01")


# --- what others publish


@pytest.mark.parametrize("options", ["", "&sessions=true"], ids=["link", "sessions"])
@pytest.mark.parametrize("foreign", [CHAR, DECIMAL], ids=["char", "decimal"])
async def test_a_foreign_type_anywhere_in_a_message_stops_nobody(
    servicebus: ServiceBusServer, topic: str, foreign: Encoded, options: str
) -> None:
    """The message is handed over without what has no counterpart in Python, and the connection stays."""
    session = [None] * 10 + ["s"] if options else []
    async with connect(servicebus.url + options) as broker:
        await broker.declare(topic, groups=["billing"])
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await broker.producer().publish(Message(topic, b"before", key=b"s"))
            parts = [
                [Described(FIELDS, {"odd": foreign, "even": 2}), Described(DATA, b"in a property")],
                [Described(0x72, {"x-opt-odd": foreign}), Described(DATA, b"in an annotation")],
                [Described(VALUE, {"odd": foreign, "even": 2})],
                [Described(VALUE, [foreign])],
            ]
            described = [[Described(0x73, session), *part] if session else part for part in parts]
            await publish_raw(broker, topic, *(b"".join(map(encode, part)) for part in described))
            await broker.producer().publish(Message(topic, b"after", key=b"s"))
            lost = client_of(broker)._connection.lost  # type: ignore[union-attr]
            done = await recorder.until_done(6, 15)
            assert not lost.done()
        assert {b"before", b"in a property", b"in an annotation", b"after"} <= {each.value for each in done}
        assert next(each for each in done if each.value == b"in a property").headers["even"] == "2"


async def test_messages_of_others_are_ordinary_messages(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
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


async def test_copies_for_other_groups_are_passed_over_where_the_rules_let_them_in(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
    await broker.declare(topic)
    await driver_of(broker)._admin.client.create_subscription(
        topic, "billing"
    )  # with the rule of somebody else
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
        theirs = [Described(FIELDS, {"tk-group": "shipping"}), Described(DATA, b"not ours")]
        await publish_raw(broker, topic, b"".join(map(encode, theirs)))
        await broker.producer().publish(Message(topic, b"ours"))
        await recorder.until_done(1, 15)
        await eventually(lambda: lag_is(broker, topic, 0), 15, "both are done with")
    assert recorder.values == [b"ours"]


# --- locks


async def test_locks_are_renewed_many_at_a_time_and_one_that_is_lost_costs_no_other(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "AT_ONCE", 3)
    renewals: list[int] = []
    ask = Client.ask

    async def counted(self: Client, entity: str, operation: str, link: Link, body: dict[str, Any]) -> None:
        renewals.append(len(body["lock-tokens"]))
        await ask(self, entity, operation, link, body)

    monkeypatch.setattr(Client, "ask", counted)
    gate = Gate()
    async with connect(f"{servicebus.url}&lease=5") as broker:
        recorder = Recorder(gate)
        async with broker.consumer(topic, group="billing", handler=recorder, concurrency=6, dead_letter=None):
            await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(6)])
            await recorder.until_began(6, 15)
            await eventually(lambda: renewals.count(3) >= 8, 30, "locks are renewed beyond their first end")
            gate.open()
            await recorder.until_done(6, 15)
        assert len(recorder.done) == 6
        assert await broker.lag(topic, group="billing") == 0


async def test_a_delayed_retry_is_a_copy_for_its_group_alone(broker: Broker, topic: str) -> None:
    delayed = RetryPolicy(attempts=3, first=1.0, factor=1.0, limit=1.0, jitter=0.0, mode="delayed")
    times: list[float] = []

    async def act(message: Message) -> None:
        times.append(asyncio.get_running_loop().time())
        if message.attempt == 1:
            raise Retry(after=1.5)

    await broker.declare(topic, groups=["billing", "shipping"])
    failing, other = Recorder(act), Recorder()
    async with (
        broker.consumer(topic, group="billing", handler=failing, retry=delayed, dead_letter=None),
        broker.consumer(topic, group="shipping", handler=other, dead_letter=None),
    ):
        await broker.producer().publish(Message(topic, b"x", key=b"k", headers={"a": "ü"}, id="m-1"))
        await eventually(lambda: len(times) == 1, 15, "it fails")
        await eventually(lambda: lag_is(broker, topic, 1), 5, "the copy counts")
        await failing.until_done(1, 15)
        await eventually(lambda: lag_is(broker, topic, 0), 5, "the copy is done")
    [again] = failing.done
    assert (again.id, again.key, again.headers, again.attempt) == ("m-1", b"k", {"a": "ü"}, 2)
    assert times[1] - times[0] >= 1.4
    assert len(other.done) == 1, "another group got the copy"


# --- what should have come


@pytest.mark.parametrize("options", ["", "&sessions=true"], ids=["link", "sessions"])
async def test_what_nobody_has_though_it_is_asked_for_is_overdue_and_that_costs_no_attempt(
    servicebus: ServiceBusServer, topic: str, options: str
) -> None:
    async with connect(servicebus.url + options) as broker:
        await broker.declare(topic, groups=["billing"])
        reading = await collect(driver_of(broker), Subscription(topic=topic, group="billing"))
        try:
            assert await reading.receiver.overdue() == 0
            await broker.producer().publish(Message(topic, b"x", key=b"k"))
            assert await reading.receiver.overdue() == 1
            [delivery] = await reading.receive(1, 15)
            assert delivery.message.attempt == 1
            assert await reading.receiver.overdue() == 0, "it is held here"
            await reading.settle([delivery], [])
        finally:
            await reading.close()


# --- ends


async def test_a_subscription_that_is_deleted_under_its_consumer_is_made_anew(
    broker: Broker, topic: str
) -> None:
    recorder = Recorder()
    async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
        await broker.producer().publish(Message(topic, b"1"))
        await recorder.until_done(1, 15)
        await broker.transmission.driver.remove(topic)  # behind the engine's back

        async def again() -> bool:
            with contextlib.suppress(NobodyListens):  # until the consumer has its subscription again
                await broker.producer().publish(Message(topic, b"2"))
            return b"2" in recorder.values

        await eventually(again, 30, "what is published afterwards arrives")
        assert (await broker.health()).ok


async def test_a_topic_deleted_under_a_producer_is_declared_again_with_its_groups(
    broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    producer = broker.producer()
    await producer.publish(Message(topic, b"1"))
    await broker.transmission.driver.remove(topic)
    await producer.publish(Message(topic, b"2"))
    assert await broker.lag(topic, group="billing") == 1


async def test_what_is_missing_is_said_where_nothing_may_be_created(
    servicebus: ServiceBusServer, broker: Broker, topic: str
) -> None:
    await broker.declare(topic, groups=["billing"])
    for options in ("", "&sessions=true"):
        async with connect(f"{servicebus.url}&declare=false{options}") as plain:
            with pytest.raises(ConfigError, match="declare it first"):
                await plain.consumer(topic, group="nobody", handler=Recorder(), dead_letter=None).start()


@pytest.mark.parametrize("options", ["", "&sessions=true"], ids=["link", "sessions"])
async def test_a_subscribe_that_is_given_up_at_whatever_moment_holds_nothing(
    servicebus: ServiceBusServer, topic: str, options: str
) -> None:
    """No link that brings messages, no session that is kept, no task; and the connection stays to the others."""
    async with connect(f"{servicebus.url}&lease=5&declare=false{options}") as broker:
        async with connect(f"{servicebus.url}&lease=5{options}") as other:
            await other.declare(topic, groups=["billing"])
        await broker.health()
        connection = client_of(broker)._connection
        assert connection is not None
        before = asyncio.all_tasks()
        for turns in range(40):
            consumer = broker.consumer(topic, group="billing", handler=Recorder(), dead_letter=None)
            starting = asyncio.create_task(consumer.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait({starting})
            await consumer.stop()
        await eventually(
            lambda: (
                {task.get_name() for task in asyncio.all_tasks() - before} <= {"things_kit servicebus rights"}
            ),
            10,
            "no task is left",
        )
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await broker.producer().publish_batch(keyed(topic, 20, 5))
            await recorder.until_done(20, 4)  # less than a lock lasts
        assert client_of(broker)._connection is connection


@pytest.mark.parametrize("options", ["", "&sessions=true"], ids=["link", "sessions"])
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_stop_and_close_end_though_the_service_is_gone_or_stands_still(
    own_servicebus: ServiceBusServer, how: str, options: str
) -> None:
    topic = f"orders-{uuid4().hex[:10]}"
    broker = connect(own_servicebus.url + options)
    await broker.open()
    gate = Gate()
    recorder = Recorder(gate)
    consumer = broker.consumer(topic, group="billing", handler=recorder, dead_letter=None, drain_timeout=1.0)
    await consumer.start()
    await broker.producer().publish_batch(keyed(topic, 20, 5))
    await recorder.until_began(1, 15)
    getattr(own_servicebus, how)()
    try:
        for ending, within in ((consumer.stop, 1.0 + 5.0), (broker.close, 4.0)):
            with Pulse() as pulse:
                await ending()
            assert pulse.ran < within
    finally:
        own_servicebus.resume() if how == "pause" else own_servicebus.start()


# --- processes


@pytest.mark.parametrize("options", ["", "&mode=queue", "&sessions=true"], ids=["topic", "queue", "sessions"])
async def test_a_process_that_is_asked_to_stop_under_load_leaves_the_rest_unharmed(
    servicebus: ServiceBusServer, topic: str, options: str
) -> None:
    url = f"{servicebus.url}&lease=5{options}"
    sent: set[str | None] = set()
    async with connect(url) as broker:
        await broker.declare(topic, groups=["billing"])
        stopping, other = [
            await WorkerProcess.start(url, topic, "billing", concurrency=4, delay=0.01, max_in_flight=50)
            for _ in range(2)
        ]

        async def publish() -> None:
            while True:
                messages = keyed(topic, 40, 20)
                await broker.producer().publish_batch(messages)
                sent.update(message.id for message in messages)
                await eventually(lambda: len(other.history.ids("done")) > len(sent) / 2 - 100, 30)

        def handled() -> set[str]:
            return {*stopping.history.ids("done"), *other.history.ids("done")}

        publishing = asyncio.create_task(publish())
        try:
            await eventually(lambda: len(stopping.history.ids("done")) >= 20, 15, "it works")
            await stopping.stop()
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await eventually(lambda: handled() >= sent, 30, "the other handles the rest")
            await other.stop()
        finally:
            publishing.cancel()
            for worker in (stopping, other):
                await worker.kill()
        whole = merged([stopping.history, other.history])
        assert whole.duplicates() == {}
        assert set(stopping.history.ids("began")) == set(stopping.history.ids("done"))
        await broker.remove(topic)
