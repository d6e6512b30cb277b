"""Attempts by what a queue counts: everything that comes back, failures alone (RabbitMQ 4.3), or nothing."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("pika")

from pika.spec import Basic

from things_kit import Message
from things_kit.brokers.rabbitmq.counting import HELD, Counts, counts_of
from things_kit.brokers.rabbitmq.receiver import RabbitMQReceiver, Source
from things_kit.brokers.rabbitmq.wire import COUNT, Letter, Unpacker, pack, pack_again
from things_kit.engine.collected import Collected, Collecting
from things_kit.engine.driver import Delivery, Later, Release, Subscription
from things_kit.testing.conformance.waiting import eventually

EACH: tuple[Counts, ...] = ("returns", "failures", "nothing")


class Entry:
    """A message in the queue."""

    def __init__(self, letter: Letter) -> None:
        self.letter = letter
        self.count = 0
        self.returned = False


class Queue:
    """A queue and the only channel to it; it counts as it is told to."""

    error: Exception | None = None
    on_delivery: Callable[..., None]
    on_cancel: Callable[..., None]

    def __init__(self, counts: Counts, *messages: Message) -> None:
        self.counts = counts
        self.name = f"q-{uuid4().hex}"  # what is given back to one is remembered for the whole process
        self.copies: list[Later] = []
        self._ready = deque(Entry(pack(message, "", False, "q")) for message in messages)
        self._out: dict[int, Entry] = {}
        self._tag = self._prefetch = 0
        self._consumer = ""

    def on_lost(self, _listener: Callable[[Exception], object]) -> None:
        """It never is."""

    async def ask(self, *methods: Any) -> Any:
        for method in methods:
            if isinstance(method, Basic.Qos):
                self._prefetch = method.prefetch_count
            elif isinstance(method, Basic.Consume):
                self._consumer = method.consumer_tag
                self._deliver()
            elif isinstance(method, Basic.Cancel):
                self._consumer = ""

    def tell(self, method: Any) -> None:
        told = [tag for tag in self._out if tag <= method.delivery_tag] if self._multiple(method) else []
        for tag in told or [method.delivery_tag]:
            entry = self._out.pop(tag)
            if not isinstance(method, Basic.Ack):
                failed = isinstance(method, Basic.Reject)
                self._return(entry, self.counts == "returns" or (self.counts == "failures" and failed))
        self._deliver()

    @staticmethod
    def _multiple(method: Any) -> bool:
        return not isinstance(method, Basic.Reject) and bool(method.multiple)

    async def close(self) -> None:
        """All that was held comes back, and a queue that counts takes it for the end of who held it."""
        for entry in self._out.values():
            self._return(entry, self.counts != "nothing")
        self._out, self._consumer = {}, ""

    def _return(self, entry: Entry, counted: bool) -> None:
        entry.count, entry.returned = entry.count + counted, True
        self._ready.append(entry)

    def _deliver(self) -> None:
        while self._consumer and self._ready and len(self._out) < self._prefetch:
            self._tag += 1
            entry = self._out[self._tag] = self._ready.popleft()
            properties = entry.letter.properties
            if entry.returned and self.counts != "nothing":
                properties.headers = {**(properties.headers or {}), COUNT: entry.count}
            method = Basic.Deliver(self._consumer, self._tag, entry.returned, "", "q")
            self.on_delivery(method, properties, entry.letter.body)

    async def send_later(self, copies: Sequence[Later]) -> list[None]:
        self.copies.extend(copies)
        for each in copies:
            self._ready.append(Entry(pack_again(each.message, "q", 0.0, each.attempt, each.suspect)))
        return [None] * len(copies)

    async def look(self, _queue: str) -> None:
        """There is nobody else."""


def consuming(queue: Queue, process: str) -> Collecting:
    """A receiver in a process of this name: another one knows nothing of what was given back."""
    place = ((process,), "/", queue.name)
    inbox = Collected()
    subscription = Subscription(topic="t", group="g", inbox=inbox)
    source = Source(queue.name, place, True, queue.counts, False, {}, queue.look, print, {})
    channel: Any = queue
    receiver = RabbitMQReceiver(
        channel,
        source,
        subscription,
        Unpacker("t", queue.name, None, place, queue.counts),
        channel,
        queue.send_later,
    )
    return Collecting(receiver, inbox)


async def taken(receiver: Collecting, count: int) -> list[Delivery]:
    found: list[Delivery] = []

    async def enough() -> bool:
        found.extend(await receiver.receive(count - len(found), 0.1))
        return len(found) == count

    await eventually(enough, 20)
    return found


async def stopped(receiver: Collecting, *released: Release) -> None:
    await receiver.receiver.quiesce()
    await receiver.settle([], list(released))
    await receiver.close()


def seen(deliveries: Sequence[Delivery]) -> list[tuple[bytes, int]]:
    return [(each.message.value, each.message.attempt) for each in deliveries]


@pytest.mark.parametrize("counts", EACH)
async def test_a_failure_before_a_stop_is_an_attempt_for_the_next_process(counts: Counts) -> None:
    """As a copy where the queue counts nothing."""
    queue = Queue(counts, Message("t", b"x", id="1"))
    first = consuming(queue, "one")
    [delivery] = await taken(first, 1)
    await stopped(first, Release(delivery, attempt=2))
    second = consuming(queue, "another")
    assert seen(await taken(second, 1)) == [(b"x", 2)]
    assert [copy.attempt for copy in queue.copies] == ([2] if counts == "nothing" else [])
    await second.close()


@pytest.mark.parametrize("counts", EACH)
async def test_what_comes_back_unbegun_is_no_attempt_for_the_same_process(counts: Counts) -> None:
    queue = Queue(counts, Message("t", b"x", id="1"))
    for _ in range(3):
        receiver = consuming(queue, "the same")
        [delivery] = await taken(receiver, 1)
        assert delivery.message.attempt == 1
        await stopped(receiver, Release(delivery))
    assert not queue.copies


async def test_where_failures_alone_are_counted_what_comes_back_unbegun_is_no_attempt_for_anybody() -> None:
    queue = Queue("failures", Message("t", b"x", id="1"))
    for process in ("one", "another", "a third"):
        receiver = consuming(queue, process)
        [delivery] = await taken(receiver, 1)
        assert delivery.message.attempt == 1
        await stopped(receiver, Release(delivery))


@pytest.mark.parametrize("counts", EACH)
async def test_what_failed_and_what_waited_behind_it_come_back_in_their_order(counts: Counts) -> None:
    """Though the broker is told of the one in another way than of the others."""
    queue = Queue(counts, *(Message("t", b"%d" % n, key=b"k", id=str(n)) for n in range(4)))
    receiver = consuming(queue, "one")
    deliveries = await taken(receiver, 4)
    failed = deliveries[1]
    await receiver.settle(
        [], [Release(each, attempt=2 if each is failed else 1) for each in deliveries[::-1]]
    )
    assert seen(await taken(receiver, 4)) == [(b"0", 1), (b"1", 2), (b"2", 1), (b"3", 1)]
    await receiver.close()


@pytest.mark.parametrize(
    ("version", "kind", "counts"),
    [
        ((3, 10), "quorum", "returns"),
        ((4, 2), "quorum", "returns"),
        ((4, 3), "quorum", "failures"),
        ((5, 0), None, "failures"),
        ((), None, "returns"),
        ((4, 3), "classic", "nothing"),
        ((3, 10), "stream", "nothing"),
    ],
)
def test_what_a_queue_counts_is_a_matter_of_its_type_and_its_server(
    version: tuple[int, ...], kind: str | None, counts: str
) -> None:
    assert counts_of(version, kind) == counts


@pytest.mark.parametrize(
    ("counts", "told"),
    [("returns", [None, 1, 2]), ("failures", [1, 2, 3]), ("failures", [None, 1, 2])],
    ids=[
        "the group's count alone",
        "one that goes on from the last queue's",
        "a copy that nobody had been handed",
    ],
)
def test_what_comes_out_of_a_lost_receivers_queue_is_counted_once(
    counts: Counts, told: Sequence[int | None]
) -> None:
    """Servers from 4.3 on carry a queue's count to the next one."""
    letter = pack_again(Message("t", b"x", id="1"), "q", 0.0, 1, mark=1)
    unpacker = Unpacker("t", "q", None, ((), "/", uuid4().hex), counts)
    attempts = []
    for count in told:
        headers: dict[str, Any] = {"x-death": [{"queue": f"{HELD}1.q"}]}
        if count is not None:
            headers[COUNT] = count
        letter.properties.headers = {**(letter.properties.headers or {}), **headers}
        method = Basic.Deliver("c", 1, count is not None, "", "q")
        attempts.append(unpacker.unpack(method, letter.properties, b"x").message.attempt)
    assert attempts == ([2, 2, 3] if told[0] is None and counts == "failures" else [2, 3, 4])
