"""One consumer after another: each has the prefetch that the credit of its time asks for.

RabbitMQ reads a prefetch when a consumer begins, so another credit is another consumer. What is on its way to one that is
cancelled goes back as if it had failed, and out of order (tried on 3.10). So one is cancelled when it has all that it may
have: nothing can be on its way then. Where that does not come by itself, acknowledgements wait for a moment.

What the last consumer has not settled is beside what the next may have, up to `max_in_flight`.

What a receiver held when it left is at the head of the queue, and each that leaves puts what it held behind what else came back (tried on 3.10). So the
first consumer of the next receiver has room for all of it at once: else one more lost connection would turn the order around.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from pika.spec import Basic

from things_kit.brokers.rabbitmq.amqp.channel import Channel

FILL: Final = 0.5
"""Seconds that acknowledgements wait for a consumer to have all that it may have: where it has not by then, it goes on as it was."""

MOST: Final = 65_535
"""What AMQP can count of messages that are handed out."""

QUIET: Final = 0.05
"""Seconds without a message after which nothing is on its way."""

STUCK: Final = 0.1
"""Seconds in which nothing moves, after which what is held is taken for what waits behind its key."""


class Consumers:
    """The consumers of one queue on one channel, of which there is one at a time, or none.

    Attributes:
        settling: Set while the broker may be told of deliveries.

    Args:
        channel: Whose consumers they are.
        queue: Of what.
        arguments: Those of each consumer.
        most: What may be held at once, of all of them.
        before: How many messages a receiver before us may have held.
        steady: Whether the credit is `most` all the time: a single active consumer would pass on its place.
    """

    def __init__(
        self,
        channel: Channel,
        queue: str,
        arguments: Mapping[str, Any],
        most: int,
        *,
        before: int = 0,
        steady: bool,
    ) -> None:
        self.settling = asyncio.Event()
        self.settling.set()
        self._channel = channel
        self._queue = queue
        self._arguments = arguments
        self._most = min(most, MOST)
        self._before = min(before, self._most)  # until there is a consumer
        self._steady = steady
        self._target = 0
        self._prefetch = 0  # of the consumer that there is; 0: there is none
        self._number = 0
        self._since = 0  # the last delivery tag before it began
        self._latest = 0
        self._own = 0  # its unsettled deliveries
        self._held = 0  # and those of all
        self._woken = asyncio.Event()
        self._arrived = asyncio.Event()
        self._ending = False
        self._untried = False  # to fill the consumer, since the credit was said

    @property
    def tag(self) -> str:
        """The consumer's."""
        return f"things-kit-{self._number:09}"

    @property
    def ended(self) -> bool:
        """Whether there is no consumer and will be none."""
        return self._ending and self._prefetch == 0

    @property
    def handed(self) -> int:
        """How many messages the broker may have handed to us, or be about to, that are not settled."""
        return max(self._before, self._held + max(0, self._prefetch - self._own))

    @property
    def _full(self) -> bool:
        return self._own >= self._prefetch

    def credit(self, window: int) -> None:
        """From now on so many messages may be held."""
        if not self._ending:
            self._target = min(window, self._most) if not self._steady or window == 0 else self._most
            self._untried = True
            self._woken.set()
            self._arrived.set()

    def finish(self) -> None:
        """Have no consumer any more; `run` returns when there is none."""
        self._ending, self._target = True, 0
        self._woken.set()
        self._arrived.set()

    def arrived(self, tag: int) -> None:
        """A delivery has come."""
        self._latest = tag
        self._own += 1
        self._held += 1
        self._arrived.set()
        if self._full:
            self._changed()

    def settled(self, tag: int, *, stays: bool = False) -> None:
        """The broker has been told of a delivery; `stays`: a copy is held in its place."""
        self._held -= not stays
        self._own -= tag > self._since
        self._changed()

    def copy_settled(self) -> None:
        """The same of a copy, which is of none of these consumers."""
        self._held -= 1
        self._changed()

    def _changed(self) -> None:
        if self._target != self._prefetch:
            self._woken.set()

    # --- following the credit

    async def run(self) -> None:
        """Have the consumer that the credit asks for, until `finish`. Raises what closes the channel."""
        stuck = False
        while not self.ended:
            wanted = self._wanted(stuck)
            if wanted == self._prefetch and not await self._fills():
                stuck = not await self._happens()
                continue
            stuck = False
            if self._prefetch:
                await self._end()
                # What waited for this is acknowledged first, so that the next may have as much
                await asyncio.sleep(0)
            else:
                await self._begin(wanted)

    def _wanted(self, stuck: bool) -> int:
        """The prefetch that is to be; 0 for no consumer, and anything else than there is for another one."""
        target, now = self._target, self._prefetch
        possible = max(0, min(target, self._most - self._held))
        if target == 0:
            return 0
        if now == 0:
            return max(possible, self._before) if self._held <= target else 0
        if target == now or self._steady or not self._full:
            return now
        return target if target < now or possible > now or (stuck and possible) else now

    async def _happens(self) -> bool:
        """Wait until something may have changed; whether it has, where all stands still with more credit than is used."""
        waits = self._prefetch and self._full and self._target > self._prefetch
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STUCK if waits else None):
                await self._woken.wait()
        happened = self._woken.is_set()
        self._woken.clear()
        return happened

    async def _fills(self) -> bool:
        """Whether the consumer has all that it may have, once acknowledgements wait, where another is to have far more."""
        if not self._untried or self._steady or self._full or not self._may_be_far_more:
            return False
        self._untried = False
        self.settling.clear()
        filled = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FILL):
                    while not self._full and self._may_be_far_more:
                        self._arrived.clear()
                        await self._arrived.wait()
            filled = self._full and self._may_be_far_more
        finally:
            if not filled:  # else they wait until it has ended
                self.settling.set()
        return filled

    @property
    def _may_be_far_more(self) -> bool:
        """Than the consumer that there is may have."""
        more = self._target >= 2 * self._prefetch or self._target == self._most
        return 0 < self._prefetch < self._target and more

    async def _begin(self, prefetch: int) -> None:
        self._number += 1
        self._prefetch, self._since, self._own, self._before = prefetch, self._latest, 0, 0
        consume = Basic.Consume(queue=self._queue, consumer_tag=self.tag, arguments=dict(self._arguments))
        await self._channel.ask(Basic.Qos(prefetch_count=prefetch), consume)

    async def _end(self) -> None:
        self.settling.clear()
        try:
            while not self._full:
                self._arrived.clear()
                try:
                    async with asyncio.timeout(QUIET):
                        await self._arrived.wait()
                except TimeoutError:
                    break
            await self._channel.ask(Basic.Cancel(consumer_tag=self.tag))  # what still comes is handed out
            self._prefetch = 0
        finally:
            self.settling.set()
