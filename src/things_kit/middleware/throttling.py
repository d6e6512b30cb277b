"""At most so many attempts begin in any interval; the others wait at the head of their key, and occupy no worker."""

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import Final, Literal

from things_kit.messaging.consumer import Bound
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import Handle, HandleBatch, WrapsHandling
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import Later
from things_kit.messaging.policy import Seconds, seconds

log = logging.getLogger("things_kit.throttle")


def throttle(
    rate: int, per: Seconds = timedelta(seconds=1), key: Callable[[Message], Hashable] | None = None
) -> "Throttle":
    """In any interval `per` at most `rate` attempts begin in this process, for each value of `key(message)` if given.

    One object is one limit: used for two consumers, they share it. Of a batch each message counts.

    Raises:
        ConfigError: An argument is not what it should be.
    """
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
        raise ConfigError(f"throttle's rate must be a whole number from 1; it is {rate!r}")
    length = seconds(per, "throttle's per")
    if not length:
        raise ConfigError("throttle's per must be more than 0 seconds")
    if key is not None and not callable(key):
        raise ConfigError(f"throttle's key must be a function of the message; it is {key!r}")
    return Throttle(rate, length, key)


class Throttle(WrapsHandling):
    """The middleware that `throttle` makes.

    Attributes:
        state: "throttling" while anything waits for its turn, else "free".
    """

    name: Final = "throttle"

    def __init__(self, rate: int, per: float, key: Callable[[Message], Hashable] | None) -> None:
        self.state: Literal["free", "throttling"] = "free"
        self._rate = rate
        self._per = per
        self._key = key
        self._limits: OrderedDict[Hashable, _Limit] = OrderedDict()
        self._last = 0.0  # when the last of those that wait may begin

    def bind(self, consumer: Bound) -> None:
        """Raise ConfigError where a batch could never begin."""
        if consumer.batch is not None and consumer.batch.size > self._rate:
            raise ConfigError(
                f"a batch of {consumer.batch.size} messages would never begin under throttle({self._rate}): "
                "let Batch.size be at most the rate"
            )

    def __call__(self, handle: Handle) -> Handle:
        """Around the handling of one message."""

        async def throttled(message: Message) -> None:
            self._begin_or_wait((message,))
            await handle(message)

        return throttled

    def handle_batch(self, handle: HandleBatch) -> HandleBatch:
        """Around the handling of a list: all of it begins, or all of it waits."""

        async def throttled(messages: list[Message]) -> None:
            self._begin_or_wait(messages)
            await handle(messages)

        return throttled

    def _begin_or_wait(self, messages: Sequence[Message]) -> None:
        """Note that these begin. Raises Later where that would be too many."""
        now, key = asyncio.get_running_loop().time(), self._key
        self._drop_idle(now)
        counts = Counter(None if key is None else key(message) for message in messages)
        limits = [(self._limit(of), count) for of, count in counts.items()]
        if all(limit.has_room(now, count) for limit, count in limits):
            for limit, count in limits:
                limit.begin(now, count)
        else:
            wait = max(limit.promise(now, count) for limit, count in limits if not limit.has_room(now, count))
            self._throttles_until(now + wait)
            raise Later(wait)

    def _throttles_until(self, when: float) -> None:
        """Something waits: say so once, until nothing does any more."""
        self._last = max(self._last, when)
        if self.state == "free":
            self.state = "throttling"
            log.info("the throttle holds messages back: %d began within %.3g s", self._rate, self._per)
            asyncio.get_running_loop().call_at(self._last, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if self._last > loop.time():
            loop.call_at(self._last, self._look)
        else:
            self.state = "free"
            log.info("the throttle is free: nothing waits any more")

    def _limit(self, of: Hashable) -> "_Limit":
        limit = self._limits.get(of)
        if limit is None:
            limit = self._limits[of] = _Limit(self._rate, self._per)
        else:
            self._limits.move_to_end(of)
        return limit

    def _drop_idle(self, now: float) -> None:
        """Forget a value of the key that has not been seen for long: there may be any number of them."""
        while self._limits:
            of, limit = next(iter(self._limits.items()))
            if not limit.is_idle(now):
                return
            del self._limits[of]


class _Limit:
    """When the last attempts began, and what was promised to those that wait.

    Each is promised another moment, so that they do not all come back for the one place that becomes free.
    """

    def __init__(self, rate: int, per: float) -> None:
        self._rate = rate
        self._per = per
        self._begun: deque[float] = deque()
        self._promised: deque[float] = deque()

    def has_room(self, now: float, count: int) -> bool:
        """Whether so many may begin now."""
        while self._begun and self._begun[0] + self._per <= now:
            self._begun.popleft()
        return len(self._begun) + count <= self._rate

    def begin(self, now: float, count: int) -> None:
        """So many begin."""
        self._begun.extend([now] * count)

    def promise(self, now: float, count: int) -> float:
        """In how many seconds so many could begin, if all who wait come back when they were told to."""
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        taken = [*self._begun, *self._promised]
        when = taken[len(taken) + count - self._rate - 1] + self._per
        self._promised.extend([when] * count)
        return when - now

    def is_idle(self, now: float) -> bool:
        """Whether nothing of it matters any more."""
        last = max(self._begun[-1] if self._begun else 0.0, self._promised[-1] if self._promised else 0.0)
        return last + self._per <= now
