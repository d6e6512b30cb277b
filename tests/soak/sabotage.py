"""Faults planted into the library, each in the processes of a soak alone, through what a driver and the engine say to each other."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from things_kit.engine.broker import Broker
from things_kit.engine.driver import Delivery
from things_kit.messaging.message import Message
from things_kit.messaging.policy import RetryPolicy
from things_kit.testing.soak.plan import Plan, results_of

DROPPED_ONE_IN = 1000
HANGS_AT = 150
DIES_AT = 100
TWICE_ONE_IN = 25
PARTITIONS = 6
"""Of a topic as it is declared."""

_kept: set[asyncio.Task[Any]] = set()


def acknowledge_early(plan: Plan) -> None:
    """What arrives is acknowledged at once, before its handler has begun."""

    async def nothing(acknowledged: Sequence[Delivery], released: Sequence[object]) -> None:
        return

    def tamper(receiver: Any) -> Callable[[Sequence[Delivery]], Sequence[Delivery]]:
        settle, receiver.settle = receiver.settle, nothing

        def arrived(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            _in_background(settle(list(deliveries), []))
            return deliveries

        return arrived

    if plan.role in {"ordered", "free"}:
        _on_arrival(tamper)


def drop_some(plan: Plan) -> None:
    """One in a thousand never reaches its handler, and is acknowledged."""
    number = 0

    def tamper(receiver: Any) -> Callable[[Sequence[Delivery]], Sequence[Delivery]]:
        def arrived(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
            nonlocal number
            kept = []
            for delivery in deliveries:
                number += 1
                if number % DROPPED_ONE_IN:
                    kept.append(delivery)
                else:
                    _in_background(receiver.settle([delivery], []))
            return kept

        return arrived

    if plan.role in {"ordered", "free"}:
        _on_arrival(tamper)


def hang_one_worker(plan: Plan) -> None:
    """One worker never calls its handler, nor ends."""
    begun = 0

    def wrapped(handle: Callable[[Message], Coroutine[Any, Any, None]]) -> Any:
        async def hung(message: Message) -> None:
            nonlocal begun
            begun += 1
            if begun == HANGS_AT:
                await asyncio.Event().wait()
            await handle(message)

        return hung

    if plan.name.startswith("ordered-1."):
        _on_consumers(lambda settings: settings.update(handler=wrapped(settings["handler"])))


def forget_leases(plan: Plan) -> None:
    """No lease is ever renewed."""

    async def nothing(deliveries: Sequence[Delivery]) -> None:
        return

    _on_receivers(lambda receiver: setattr(receiver, "extend", nothing))


def release_in_the_wrong_order(plan: Plan) -> None:
    """What goes back goes back from its end."""

    def tamper(receiver: Any) -> None:
        settle = receiver.settle

        async def reversed_(acknowledged: Sequence[Delivery], released: Sequence[Any]) -> None:
            await settle(acknowledged, list(reversed(released)))

        receiver.settle = reversed_

    if plan.role == "batch":
        _on_receivers(tamper)


def reorder_after_a_retry(plan: Plan) -> None:
    """A key goes on while one of its messages waits for its next attempt."""
    delayed = RetryPolicy(attempts=3, first=0.2, mode="delayed")
    if plan.role == "ordered":
        _on_consumers(lambda settings: settings.update(retry=delayed))


def lose_the_last_batch(plan: Plan) -> None:
    """What a stopping consumer has not begun is acknowledged in place of going back."""

    def tamper(receiver: Any) -> None:
        settle, quiesce = receiver.settle, receiver.quiesce
        stopping = False

        async def quiesced() -> None:
            nonlocal stopping
            stopping = True
            await quiesce()

        async def losing(acknowledged: Sequence[Delivery], released: Sequence[Any]) -> None:
            if stopping:
                acknowledged, released = [*acknowledged, *(each.delivery for each in released)], []
            await settle(acknowledged, released)

        receiver.settle, receiver.quiesce = losing, quiesced

    if plan.role == "ordered":
        _on_receivers(tamper)


def resend_twice(plan: Plan) -> None:
    """Some requests are sent twice."""
    number = 0

    def tamper(driver: Any) -> None:
        send = driver.send

        async def twice(messages: Sequence[Message]) -> Sequence[Exception | None]:
            nonlocal number
            number += 1
            if number % TWICE_ONE_IN == 0:
                await send(messages)
            found: Sequence[Exception | None] = await send(messages)
            return found

        driver.send = twice

    if plan.role == "producer":
        _on_drivers(tamper)


def leak_a_task(plan: Plan) -> None:
    """Each reconnect leaves a task that never ends."""
    _on_receivers(lambda receiver: _in_background(asyncio.Event().wait()))


def die_silently(plan: Plan) -> None:
    """After a while one member asks for nothing any more, and says that nothing is overdue."""
    number = 0

    def tamper(receiver: Any) -> None:
        fetch = receiver.fetch

        async def less_and_less(limit: int, wait: float) -> None:
            nonlocal number
            number += 1
            await (fetch(limit, wait) if number < DIES_AT else asyncio.sleep(wait or 0.01))

        async def nothing() -> int | None:
            return None

        receiver.fetch, receiver.overdue = less_and_less, nothing

    if plan.name.startswith("ordered-2."):
        _on_receivers(tamper)


def end_silently(plan: Plan) -> None:
    """After a while one member ends, as if it had been told to."""
    begun = 0

    def wrapped(handle: Callable[[Message], Coroutine[Any, Any, None]]) -> Any:
        async def ending(message: Message) -> None:
            nonlocal begun
            begun += 1
            if begun == DIES_AT:
                os._exit(0)
            await handle(message)

        return ending

    if plan.name.startswith("free-2."):
        _on_consumers(lambda settings: settings.update(handler=wrapped(settings["handler"])))


def lose_results(plan: Plan) -> None:
    """Some of what handlers return is said to be confirmed, and never sent."""
    number = 0

    def tamper(driver: Any) -> None:
        send = driver.send

        async def losing(messages: Sequence[Message]) -> Sequence[Exception | None]:
            nonlocal number
            number += 1
            if messages[0].topic == results_of(plan.topic) and number % TWICE_ONE_IN == 0:
                return [None] * len(messages)
            found: Sequence[Exception | None] = await send(messages)
            return found

        driver.send = losing

    if plan.role == "ordered":
        _on_drivers(tamper)


def name_results_anew(plan: Plan) -> None:
    """Whatever a handler returns has an id of its own, so that one that comes twice cannot be told."""

    def tamper(driver: Any) -> None:
        send = driver.send

        async def renaming(messages: Sequence[Message]) -> Sequence[Exception | None]:
            renamed = [
                each.replace(id=uuid4().hex) if each.topic == results_of(plan.topic) else each
                for each in messages
            ]
            found: Sequence[Exception | None] = await send(renamed)
            return found

        driver.send = renaming

    if plan.role == "ordered":
        _on_drivers(tamper)


def never_return_to_a_topic(plan: Plan) -> None:
    """Once its receiver has been lost, a consumer asks the next for nothing, and says that nothing is overdue."""
    number = 0

    def tamper(receiver: Any) -> None:
        nonlocal number
        number += 1

        async def nothing(limit: int, wait: float) -> None:
            await asyncio.sleep(wait or 0.01)

        async def none() -> int | None:
            return None

        if number > 1:
            receiver.fetch, receiver.overdue = nothing, none

    if plan.role == "batch":
        _on_receivers(tamper)


def ignore_new_partitions(plan: Plan) -> None:
    """Nobody of a group looks at what comes from partitions that were added."""

    def tamper(receiver: Any) -> Callable[[Sequence[Delivery]], Sequence[Delivery]]:
        return lambda deliveries: [each for each in deliveries if (each.message.partition or 0) < PARTITIONS]

    if plan.role == "free":
        _on_arrival(tamper)


# --- where it is planted


def _in_background(work: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.ensure_future(work)
    _kept.add(task)
    task.add_done_callback(_kept.discard)


def _on_drivers(tamper: Callable[[Any], None]) -> None:
    init = Broker.__init__

    def tampered(self: Broker, driver: Any, url: Any) -> None:
        tamper(driver)
        init(self, driver, url)

    Broker.__init__ = tampered  # type: ignore[method-assign]


def _on_receivers(tamper: Callable[[Any], None]) -> None:
    def on_driver(driver: Any) -> None:
        subscribe = driver.subscribe

        async def tampered(subscription: Any) -> Any:
            receiver = await subscribe(subscription)
            tamper(receiver)
            return receiver

        driver.subscribe = tampered

    _on_drivers(on_driver)


class _Inbox:
    """What arrives goes through other hands before it is put into the inbox."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox
        self.arrived: Callable[[Sequence[Delivery]], Sequence[Delivery]] = lambda deliveries: deliveries

    def put(self, deliveries: Sequence[Delivery]) -> Any:
        return self._inbox.put(self.arrived(deliveries))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inbox, name)


def _on_arrival(tamper: Callable[[Any], Callable[[Sequence[Delivery]], Sequence[Delivery]]]) -> None:
    def on_driver(driver: Any) -> None:
        subscribe = driver.subscribe

        async def tampered(subscription: Any) -> Any:
            inbox = _Inbox(subscription.inbox)
            receiver = await subscribe(msgspec.structs.replace(subscription, inbox=inbox))
            inbox.arrived = tamper(receiver)
            return receiver

        driver.subscribe = tampered

    _on_drivers(on_driver)


def _on_consumers(change: Callable[[dict[str, Any]], None]) -> None:
    consumer = Broker.consumer

    def tampered(self: Broker, topics: Any, **settings: Any) -> Any:
        change(settings)
        return consumer(self, topics, **settings)

    Broker.consumer = tampered  # type: ignore[method-assign, assignment]
