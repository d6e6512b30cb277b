"""What runs every so often, once in the whole group of processes.

A firing is a message in a topic of its own, scheduled for its planned time; handling it schedules the next. So it is kept
by the broker, handed to one process, tried again, and ends in a dead letter like any message. What was done last is kept
there as well, as a message that is always due in a year; and where the broker keeps no order across processes, the claim
of whoever runs (see `turns`). Both have a header `kind`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from things_kit.engine.broker import Broker
from things_kit.engine.clock import steady
from things_kit.engine.consumer import BrokerConsumer
from things_kit.engine.naming import check_name
from things_kit.messaging.errors import ConfigError, UnsupportedError
from things_kit.messaging.message import Message
from things_kit.messaging.plain import plain
from things_kit.messaging.schedule import Schedule
from things_kit.patterns.plans import INSTANT, Plan, plan_of
from things_kit.patterns.turns import Turns

log = logging.getLogger("things_kit.every")

Overlap: TypeAlias = Literal["skip", "queue", "allow"]
CatchUp: TypeAlias = Literal["one", "all", "none"]

FIRINGS: Final = "every-"
"""How the names of topics begin in which firings are."""

GROUP: Final = "every"
DONE: Final = "done"
"""The `kind` of what was done last; its `schedule_id` is this and the planned time, so that an earlier one takes no later one's place."""

KEPT: Final = timedelta(days=360)
"""How far in the future that is due; every run puts it off, and so does a start when half of it is over."""

AT_ONCE: Final = 16
"""Runs at once in a process that may overlap."""

KNOWN: Final = 100
"""How many of what was done before are known, where what a killed process had may come again after later ones."""

LATE: Final = timedelta(seconds=60)
"""From which delay on a planned time was missed, where nothing is caught up."""


class Done(msgspec.Struct, omit_defaults=True):
    """What was done last; `before` are the planned times that were done before, where turns are claimed."""

    planned: datetime
    began: datetime
    ended: datetime
    before: tuple[datetime, ...] = ()

    def and_before(self, planned: datetime) -> tuple[datetime, ...]:
        """What is known as done before, with one more."""
        return (*self.before, planned)[-KNOWN:]


class Every(msgspec.Struct, frozen=True):
    """What is to be run when.

    Attributes:
        name: Its identity in all processes, over all deployments.
        plan: The planned times.
        overlap: What becomes of one whose time comes while the one before still runs.
        catch_up: Which of those are made up for that were missed while no process was there.
    """

    name: str
    plan: Plan
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"

    @property
    def topic(self) -> str:
        """Where its firings are."""
        return f"{FIRINGS}{self.name}"


def every(when: object, *, tz: str, name: str, overlap: str, catch_up: str) -> Every:
    """Check what was said. Raises ConfigError."""
    check_name("the name of what runs every so often", name)
    for word, value, known in (
        ("overlap", overlap, ("skip", "queue", "allow")),
        ("catch_up", catch_up, ("one", "all", "none")),
    ):
        if value not in known:
            raise ConfigError(f"{word} must be one of {', '.join(map(repr, known))}; it is {value!r}")
    return Every(plain(name), plan_of(when, tz), overlap, catch_up)  # type: ignore[arg-type] # as was looked at


class Periodic:
    """Fires one function on one broker, for as long as it is started; any number of processes may have the same."""

    def __init__(
        self, broker: Broker, spec: Every, call: Callable[[datetime], Awaitable[Any]], **arguments: Any
    ) -> None:
        """Make it; nothing is asked of the broker yet.

        Args:
            broker: Where the firings are kept.
            spec: What and when.
            call: Called with the planned time.
            arguments: Those of a consumer: `retry`, `dead_letter`, `timeout`.
        """
        self._broker = broker
        self._spec = spec
        self._call = call
        self._producer = broker.producer()
        self._turns: Turns | None = None
        self.consumer: BrokerConsumer = broker.consumer(
            spec.topic,
            group=GROUP,
            handler=self._handle,
            concurrency=AT_ONCE if spec.overlap == "allow" else 1,
            **arguments,
        )

    async def start(self) -> None:
        """See that the next firing is scheduled, and begin.

        Raises:
            UnsupportedError: The broker cannot keep messages by a name until later.
        """
        capabilities, where = self._broker.capabilities, self._broker.url.display
        if not (capabilities.schedule_ids and capabilities.schedules):
            raise UnsupportedError(
                f"every needs a broker that names what it keeps until later, which {where} does not"
            )
        if not capabilities.lanes and self._spec.overlap != "allow":
            self._turns = Turns(self._broker, self._producer, self._spec.topic)
        await self._broker.declare(self._spec.topic, groups=[GROUP])
        await self._begin()
        await self.consumer.start()

    async def _begin(self) -> None:
        """Schedule the first firing, or the next, where none is to come; then take back what an older version has planned.

        In this order, as whoever dies in between must leave one.
        """
        spec, now = self._spec, _now()
        done, pending = await self._kept()
        last = done[-1] if done else None
        stale = [each for each in pending if spec.plan.following(each.due - INSTANT) != each.due]
        if len(stale) == len(pending) and (stale or not await self._broker.lag(spec.topic, group=GROUP)):
            await self._schedule(spec.plan.following(now if last is None or stale else last.planned))
        for each in stale:
            if each.schedule_id is not None:
                await self._broker.cancel(spec.topic, each.schedule_id)
        if (
            last is not None and now - last.ended > KEPT / 2
        ):  # not sooner: somebody may just have written a newer one
            await self._remember(last, done)

    async def _handle(self, message: Message) -> None:
        if "kind" in message.headers:
            return  # nothing has run for a year, or somebody was killed who did
        planned = msgspec.json.decode(message.value, type=datetime)
        async with self._turn(planned):
            await self._fire(planned, message.attempt)

    def _turn(self, planned: datetime) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._turns is None else self._turns.turn(planned)

    async def _fire(self, planned: datetime, attempt: int) -> None:
        now = _now()
        done, pending = await self._kept()
        last = done[-1] if done else None
        if last is not None and (planned == last.planned or planned in last.before):
            return  # whoever did it died, or lost the broker, before it could say so
        if attempt == 1:
            if self._spec.overlap != "allow" and last is not None and planned < last.planned:
                return  # it was there twice
            instead = self._instead(planned, last, now)
            if instead is not None:
                await self._schedule(instead)
                return
        newest = last is None or planned > last.planned
        if newest or not any(each.due > planned for each in pending):  # else it would begin a second chain
            await self._schedule(self._spec.plan.following(planned))
        await self._call(planned)
        if last is None or planned > last.planned:
            before = () if last is None or self._turns is None else last.and_before(last.planned)
            await self._remember(Done(planned, now, _now(), before), done)
        elif self._turns is not None:
            await self._remember(msgspec.structs.replace(last, before=last.and_before(planned)), done)

    def _instead(self, planned: datetime, last: Done | None, now: datetime) -> datetime | None:
        """The planned time that is to follow at once, where this one is left out; None where it runs."""
        spec = self._spec
        if spec.overlap != "allow" and last is not None and last.began <= planned < last.ended:
            if spec.overlap == "queue":
                return None
            log.info(
                "%s: the run planned for %s is left out, as the one before took until then",
                spec.name,
                planned,
            )
            return spec.plan.following(last.ended - INSTANT)
        if spec.catch_up == "one" and (latest := spec.plan.latest(now)) > planned:
            log.info(
                "%s: planned times from %s on were missed; the latest is made up for", spec.name, planned
            )
            return latest
        if spec.catch_up == "none" and now - planned > LATE:
            log.info("%s: planned times from %s on were missed", spec.name, planned)
            return spec.plan.following(now)
        return None

    async def _kept(self) -> tuple[list[Done], list[Schedule]]:
        """What was done, the last at the end, and what is scheduled."""
        found = await self._broker.schedules(self._spec.topic, limit=1000)
        done = [
            msgspec.json.decode(each.message.value, type=Done)
            for each in found
            if each.message.headers.get("kind") == DONE
        ]
        done.sort(key=lambda each: each.planned)
        return done, [each for each in found if "kind" not in each.message.headers]

    async def _schedule(self, planned: datetime) -> None:
        """Of the same time there is one, whoever schedules it."""
        laned = self._spec.overlap != "allow" and self._turns is None
        key = self._spec.name.encode() if laned else None
        message = Message(self._spec.topic, msgspec.json.encode(planned), key)
        await self._producer.publish(message, at=planned, schedule_id=planned.isoformat())

    async def _remember(self, last: Done, known: Sequence[Done] = ()) -> None:
        """Keep what was done last, and forget what is known to have been done before.

        Whoever stood still since it looked adds what is not the last any more, and takes nothing back.
        """
        message = Message(self._spec.topic, msgspec.json.encode(last), headers={"kind": DONE})
        await self._producer.publish(message, at=_now() + KEPT, schedule_id=_name_of(last))
        for each in known:
            if each.planned < last.planned:
                await self._broker.cancel(self._spec.topic, _name_of(each))

    async def stop(self) -> None:
        """Let what runs finish, as a consumer does."""
        await self.consumer.stop()
        await self._producer.close()

    async def __aenter__(self) -> "Periodic":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.stop())


def _name_of(done: Done) -> str:
    return f"{DONE}-{done.planned.isoformat()}"


def _now() -> datetime:
    return datetime.fromtimestamp(steady(), UTC)
