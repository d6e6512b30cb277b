"""What real servers have done is possible in their models: recordings of connections that broke, leases that ended, servers that were killed.

A recording is possible if the model, told of the same publishes, settlements and losses at the same times, may hand each
message to the same receiver at the same moment with the same number of the attempt, and has nothing left at the end. An
acknowledgement may be lost with a connection that breaks right after it.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from tests.testing.simulation.recording import FOLDER, SERVERS, Event, Recording
from things_kit import Message
from things_kit.engine.driver import Delivery, Release, Subscription
from things_kit.engine.inbox import ConsumerInbox
from things_kit.testing.simulation.loop import NothingLeft, SimulationLoop
from things_kit.testing.simulation.models import model
from things_kit.testing.simulation.models.queue import QueueReceiver
from things_kit.testing.simulation.models.server import ModelDriver, Server
from things_kit.testing.simulation.plan import Chance, Plan
from things_kit.testing.simulation.process import SimulatedProcess

SOONER = 0.9
"""How much of a lease has to be over for the real broker's to have ended, which began a moment before we heard of it."""


ON_ITS_WAY = 0.1
"""Seconds within which an acknowledgement may not have arrived yet."""


class NoInbox(ConsumerInbox):
    """Nothing is put into it: what is handed out is asked for one by one."""

    def __init__(self) -> None:
        """It has no consumer."""

    def fail(self, error: Exception) -> None:
        """It is known."""


class Player:
    """Does with a model what was done with the server."""

    def __init__(self, recording: Recording) -> None:
        traits, group = model(recording.broker)
        if recording.lease is not None:
            capabilities = msgspec.structs.replace(traits.capabilities, lease=recording.lease * SOONER)
            traits = msgspec.structs.replace(traits, capabilities=capabilities)
        self._chance = Chance(Plan(seed=0, processes=1), {})
        self._server = Server(traits, group, self._chance, lambda *_: None)
        self._group: Any = self._server.group(self._server.topic("orders"), "g", earliest=True)
        self._parties: dict[str, tuple[ModelDriver, QueueReceiver]] = {}
        self._held: dict[tuple[str, str], Delivery] = {}

    async def play(self, events: list[Event]) -> None:
        """Raise AssertionError at the first event that is not possible."""
        deeds: dict[str, Callable[[Event], None]] = {
            "published": self._publish,
            "joins": self._join,
            "delivered": self._deliver,
            "acknowledged": self._acknowledge,
            "given back": self._give_back,
            "lost": self._lose,
            "killed": self._kill,
        }
        loop = asyncio.get_running_loop()
        for number, event in enumerate(events):
            if event.what == "acknowledged" and was_lost(event, events[number:]):
                continue
            await asyncio.sleep(max(0.0, event.at - loop.time()))
            deeds[event.what](event)
        assert self._group.lag() == 0, "the model has messages left"

    def _publish(self, event: Event) -> None:
        assert self._server.append(Message("orders", b"", key=event.key.encode(), id=event.id)) is None

    def _join(self, event: Event) -> None:
        driver = self._server.driver(
            SimulatedProcess(len(self._parties) + 1, 0, 0.0, self._chance.stream(""))
        )
        receiver = self._group.join(driver, Subscription(topic="orders", group="g", inbox=NoInbox()))
        self._parties[event.who] = driver, receiver

    def _deliver(self, event: Event) -> None:
        delivery = self._group.take_one(self._parties[event.who][1], event.id)
        assert delivery is not None, f"{event.id} cannot be had by {event.who} at {event.at:g} s"
        assert delivery.message.attempt == event.attempt, (
            f"{event.id} came to {event.who} as attempt {event.attempt}; the model has {delivery.message.attempt}"
        )
        self._held[event.who, event.id] = delivery

    def _acknowledge(self, event: Event) -> None:
        token = self._held.pop((event.who, event.id)).token
        self._group.settle(self._parties[event.who][1], [token], [])

    def _give_back(self, event: Event) -> None:
        delivery = self._held.pop((event.who, event.id))
        release = Release(delivery, attempt=event.attempt)
        self._group.settle(self._parties[event.who][1], [], [(delivery.token, release)])

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


@pytest.mark.parametrize("name", SERVERS)
def test_an_attempt_that_was_not_counted_is_not_possible(name: str) -> None:
    recording = recorded(name)
    number, again = next((n, e) for n, e in enumerate(recording.events) if e.attempt == 2)
    recording.events[number] = msgspec.structs.replace(again, attempt=1)
    with pytest.raises(AssertionError, match="as attempt 1; the model has 2"):
        is_possible(recording)
