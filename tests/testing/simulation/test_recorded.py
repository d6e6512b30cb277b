"""What real servers have done is possible in their models: recordings of connections that broke, leases that ended, partitions that moved, servers that were killed.

A recording is possible if the model, told of the same publishes, settlements and losses at the same times, may hand each
message to the same receiver at the same moment with the same number of the attempt, and has nothing left at the end. An
acknowledgement may be lost with a connection that breaks right after it; partitions may be anybody's, if all have equally many.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from tests.testing.simulation.recording import FOLDER, SERVERS, Event, Recording
from things_kit import Message
from things_kit.engine.driver import Delivery, Release, Subscription, Which
from things_kit.engine.inbox import ConsumerInbox
from things_kit.testing.simulation.loop import NothingLeft, SimulationLoop
from things_kit.testing.simulation.models import model
from things_kit.testing.simulation.models.log import LogGroup, LogReceiver
from things_kit.testing.simulation.models.receivers import QueueReceiver
from things_kit.testing.simulation.models.server import ModelDriver, Server
from things_kit.testing.simulation.plan import Chance, Plan
from things_kit.testing.simulation.process import SimulatedProcess

SOONER = 0.9
"""How much of a lease has to be over for the real broker's to have ended, which began a moment before we heard of it."""


ON_ITS_WAY = 0.1
"""Seconds within which an acknowledgement may not have arrived yet."""


class NoInbox(ConsumerInbox):
    """Nothing is put into it: what is handed out is asked for one by one."""

    def __init__(self, in_hand: Callable[[], Iterable[Delivery]]) -> None:
        """It has no consumer."""
        self._in_hand = in_hand
        self.let = asyncio.Event()

    async def let_go(self, which: Which) -> None:
        """When it was recorded that it does."""
        while any(which(each) for each in self._in_hand()):
            self.let.clear()
            await self.let.wait()

    def fail(self, error: Exception) -> None:
        """It is known."""


class Player:
    """Does with a model what was done with the server."""

    def __init__(self, recording: Recording) -> None:
        traits, group = model(recording.broker)
        if recording.lease is not None:
            capabilities = msgspec.structs.replace(traits.capabilities, lease=recording.lease * SOONER)
            traits = msgspec.structs.replace(traits, capabilities=capabilities)
        traits = msgspec.structs.replace(traits, session=recording.lease or traits.session)
        self._chance = Chance(Plan(seed=0, processes=1), {})
        self._server = Server(traits, group, self._chance, lambda *_: None)
        self._group: Any = self._server.group(self._server.topic("orders"), "g", earliest=True)
        # As in the recorder, all are in one
        self._process = SimulatedProcess(1, 0, 0.0, self._chance.stream(""))
        self._parties: dict[str, tuple[ModelDriver, QueueReceiver | LogReceiver]] = {}
        self._inboxes: dict[str, NoInbox] = {}
        self._held: dict[tuple[str, str], Delivery] = {}

    async def play(self, events: list[Event]) -> None:
        """Raise AssertionError at the first event that is not possible."""
        deeds: dict[str, Callable[[Event], Awaitable[None] | None]] = {
            "published": self._publish,
            "joins": self._join,
            "delivered": self._deliver,
            "acknowledged": self._acknowledge,
            "given back": self._give_back,
            "let go": self._let_go,
            "left": self._leave,
            "lost": self._lose,
            "killed": self._kill,
        }
        loop = asyncio.get_running_loop()
        for number, event in enumerate(events):
            if event.what == "acknowledged" and was_lost(event, events[number:]):
                self._say_unheard(event)
                continue
            await asyncio.sleep(max(0.0, event.at - loop.time()))
            if (doing := deeds[event.what](event)) is not None:
                await doing
        await asyncio.sleep(1)  # the last is committed
        assert self._group.lag() == 0, "the model has messages left"

    def _publish(self, event: Event) -> None:
        message = Message("orders", b"", key=event.key.encode(), id=event.id, partition=event.partition)
        assert self._server.append(message) is None

    def _join(self, event: Event) -> None:
        driver = self._server.driver(self._process)
        inbox = NoInbox(lambda: [held for (who, _), held in self._held.items() if who == event.who])
        self._inboxes[event.who] = inbox
        receiver = self._group.join(driver, Subscription(topic="orders", group="g", inbox=inbox))
        self._parties[event.who] = driver, receiver

    async def _deliver(self, event: Event) -> None:
        receiver = self._parties[event.who][1]
        if isinstance(self._group, LogGroup):
            await self._move(event.id, receiver)
        delivery = self._group.take_one(receiver, event.id)
        assert delivery is not None, f"{event.id} cannot be had by {event.who} at {event.at:g} s"
        assert delivery.message.attempt == event.attempt, (
            f"{event.id} came to {event.who} as attempt {event.attempt}; the model has {delivery.message.attempt}"
        )
        self._held[event.who, event.id] = delivery

    async def _move(self, id: str, receiver: Any) -> None:  # noqa: A002 - the message's id
        """Have the partition of this message be this receiver's, in exchange for another of which it has nothing in hand."""
        (partition,) = {each.partition for each in self._group.topic.log if each.id == id}
        in_hand = {
            held.token[0] for (who, _), held in self._held.items() if self._parties[who][1] is receiver
        }
        wanted = self._group.wanted
        if wanted[partition] is not receiver:
            others = [each for each, member in wanted.items() if member is receiver and each not in in_hand]
            self._group.exchange(partition, *others[:1])
        for _ in range(50):
            await asyncio.sleep(0)

    def _acknowledge(self, event: Event) -> Awaitable[None] | None:
        return self._settle(event, self._held.pop((event.who, event.id)), back=False)

    def _give_back(self, event: Event) -> Awaitable[None] | None:
        return self._settle(event, self._held.pop((event.who, event.id)), back=True)

    def _settle(self, event: Event, delivery: Delivery, *, back: bool) -> Awaitable[None] | None:
        receiver, release = self._parties[event.who][1], Release(delivery, attempt=event.attempt)
        self._inboxes[event.who].let.set()
        if isinstance(receiver, QueueReceiver):  # at once: its own way takes a moment
            token = delivery.token
            self._group.settle(receiver, [] if back else [token], [(token, release)] if back else [])
            return None
        return receiver.settle([] if back else [delivery], [release] if back else [])

    def _say_unheard(self, event: Event) -> None:
        delivery, receiver = self._held.pop((event.who, event.id)), self._parties[event.who][1]
        if isinstance(receiver, QueueReceiver):
            self._group.disown(receiver, [delivery.token])

    def _let_go(self, event: Event) -> None:
        del self._held[event.who, event.id]
        self._inboxes[event.who].let.set()

    def _leave(self, event: Event) -> Awaitable[None]:
        return self._parties[event.who][1].close()

    def _lose(self, event: Event) -> None:
        self._server.disconnect(self._parties[event.who][0], dead=True)

    def _kill(self, event: Event) -> None:
        self._server.lose_connections(forgetting=self._server.traits.forgets)


def was_lost(acknowledgement: Event, then: list[Event]) -> bool:
    """Whether its connection broke right after it, and the message came again."""
    ends = acknowledgement.at + ON_ITS_WAY
    broke = any(
        each.at <= ends and (each.what == "killed" or (each.what, each.who) == ("lost", acknowledgement.who))
        for each in then
    )
    return broke and any((each.what, each.id) == ("delivered", acknowledgement.id) for each in then)


def is_possible(recording: Recording) -> None:
    """Raise AssertionError where its model could not have done this."""
    loop = SimulationLoop(lambda count: 0)  # type: ignore[abstract] # the rest is not to be had
    playing = loop.create_task(Player(recording).play(recording.events))
    with suppress(NothingLeft):
        loop.run(playing.done)
    playing.result()


def recorded(name: str) -> Recording:
    """What this server has done."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Recording)


@pytest.mark.parametrize("name", SERVERS)
def test_what_a_server_has_done_its_model_may_do(name: str) -> None:
    is_possible(recorded(name))


@pytest.mark.parametrize("name", SERVERS)
def test_a_delivery_too_many_is_not_possible(name: str) -> None:
    recording = recorded(name)
    last = recording.events[-1]
    recording.events.append(msgspec.structs.replace(last, what="delivered", attempt=2))
    with pytest.raises(AssertionError, match=f"{last.id} cannot be had by {last.who}"):
        is_possible(recording)


@pytest.mark.parametrize("name", [name for name in SERVERS if model(name)[0].counts])
def test_an_attempt_that_was_not_counted_is_not_possible(name: str) -> None:
    recording = recorded(name)
    number, again = next((n, e) for n, e in enumerate(recording.events) if e.attempt == 2)
    recording.events[number] = msgspec.structs.replace(again, attempt=1)
    with pytest.raises(AssertionError, match="as attempt 1; the model has 2"):
        is_possible(recording)
