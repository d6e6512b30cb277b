"""The thread that owns a consumer: what it brings, and what becomes of it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from queue import SimpleQueue

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError, KafkaException

from things_kit.brokers.kafka.thread import ReceivingThread
from things_kit.engine.collected import Collected
from things_kit.engine.driver import ConnectionLost, Delivery, Subscription
from things_kit.messaging.message import Message
from things_kit.testing.conformance.waiting import eventually


class Client:
    """A consumer that can only be closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.failure: Exception | None = None

    def close(self) -> None:
        self.closed.set()
        if self.failure is not None:
            raise self.failure


class Thread(ReceivingThread):
    """Brings or raises what it is told to."""

    def __init__(self) -> None:
        self.inbox = Collected()
        super().__init__(Subscription(topic="orders", group="billing", inbox=self.inbox))
        self.client = self._consumer = Client()
        self.brings: SimpleQueue[bytes | Exception] = SimpleQueue()
        self.fetching = threading.Event()
        self.fetching.set()
        self.thread.start()

    def _begin(self) -> None:
        pass

    def _turn(self) -> None:
        self._wanted.wait(0.01)
        self.fetching.wait(10)
        while not self.brings.empty():
            what = self.brings.get()
            if isinstance(what, Exception):
                raise what
            self._put([Delivery(Message("orders", what))])


@pytest.fixture
async def thread() -> AsyncIterator[Thread]:
    thread = Thread()
    yield thread
    await thread.close()
    await asyncio.to_thread(thread.thread.join, 10)
    assert thread.client.closed.is_set()


async def test_what_is_under_way_is_in_the_inbox_when_it_has_become_quiet(thread: Thread) -> None:
    """Else the client takes it for received, and it comes only after a restart."""
    thread.fetching.clear()
    thread.brings.put(b"1")
    quiescing = asyncio.create_task(thread.quiesce())
    await eventually(lambda: thread._quiet)
    assert not quiescing.done()
    thread.fetching.set()
    await quiescing
    assert [each.message.value for each in thread.inbox.waiting] == [b"1"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KafkaException(KafkaError(KafkaError._TRANSPORT)), "receiving from 'orders'"),
        (ConnectionLost("the topic was removed"), "the topic was removed"),
    ],
)
async def test_whoever_waits_is_told_why_it_has_ended(thread: Thread, error: Exception, says: str) -> None:
    thread.brings.put(error)
    with pytest.raises(ConnectionLost, match=says):
        await thread.inbox.arrival(10)
    assert thread.failure is not None


async def test_a_fault_of_ours_is_no_outage(thread: Thread) -> None:
    thread.brings.put(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        await thread.inbox.arrival(10)


async def test_what_is_closed_ends_without_a_failure_for_the_engine(thread: Thread) -> None:
    await thread.close()
    assert isinstance(thread.failure, ConnectionLost)
    await thread.inbox.arrival(0)  # raises what it was told


async def test_what_is_raised_while_the_client_closes_ends_the_thread_as_ever(thread: Thread) -> None:
    """Partitions that are assigned just then are asked for, and the broker may be slow to say where the group is."""
    thread.client.failure = ConnectionLost("asking where the group is")
    await thread.close()
    await asyncio.to_thread(thread.thread.join, 10)
    assert thread._ended.is_set()
    assert thread.failure is not None
