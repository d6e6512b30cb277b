"""Stops calling a dependency that is down, and tries it with one message at a time."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Literal

from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import Handle, HandleBatch, WrapsHandling
from things_kit.messaging.message import Message
from things_kit.messaging.outcomes import BatchError, Later
from things_kit.messaging.policy import Seconds, seconds

log = logging.getLogger("things_kit.circuit_breaker")


def circuit_breaker(
    failures: int = 5,
    reset: Seconds = timedelta(seconds=30),
    on: type[Exception] | tuple[type[Exception], ...] = (OSError,),
) -> "CircuitBreaker":
    """After so many failures in a row, of two messages at least, nothing is begun for `reset` seconds.

    Then one message at a time is tried, each of another key where there is one, until one succeeds. The failure that opens
    it, and those of such tries, are no attempts: these messages go back as by `Later`. One object is one breaker.

    Args:
        failures: How many in a row open it.
        reset: Seconds until it is tried again.
        on: The exceptions that count; any other answer of the handler ends the row.

    Raises:
        ConfigError: An argument is not what it should be.
    """
    if isinstance(failures, bool) or not isinstance(failures, int) or failures < 1:
        raise ConfigError(f"circuit_breaker's failures must be a whole number from 1; it is {failures!r}")
    wait = seconds(reset, "circuit_breaker's reset")
    if not wait:
        raise ConfigError("circuit_breaker's reset must be more than 0 seconds")
    kinds = on if isinstance(on, tuple) else (on,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise ConfigError(f"circuit_breaker's on must be exception types; it is {on!r}")
    return CircuitBreaker(failures, wait, kinds)


class CircuitBreaker(WrapsHandling):
    """The middleware that `circuit_breaker` makes.

    Attributes:
        state: "closed" as long as all is well, "open" while nothing is begun, "half-open" while one message is tried.
    """

    name: Final = "circuit_breaker"

    def __init__(self, failures: int, reset: float, on: tuple[type[Exception], ...]) -> None:
        self.state: Literal["closed", "open", "half-open"] = "closed"
        self._most = failures
        self._reset = reset
        self._on = on
        self._row = 0
        self._of: set[str | None] = set()
        self._until = 0.0
        self._tried: bytes | None = None
        self._passed_over = False

    def __call__(self, handle: Handle) -> Handle:
        """Around the handling of one message."""

        async def guarded(message: Message) -> None:
            probe = self._begin(message)
            try:
                await handle(message)
            except self._on as error:
                if self._failed((message,), error, probe=probe):
                    raise Later(self._reset) from error
                raise
            except Later:  # nothing was called, so nothing is known
                self._unknown(probe=probe)
                raise
            except Exception:
                self._answered(probe=probe)
                raise
            except BaseException:  # it was cancelled
                self._unknown(probe=probe)
                raise
            else:
                self._answered(probe=probe)

        return guarded

    def handle_batch(self, handle: HandleBatch) -> HandleBatch:
        """Around the handling of a list, which counts as one call."""

        async def guarded(messages: list[Message]) -> None:
            probe = self._begin(messages[0])
            try:
                await handle(messages)
            except BatchError as failed:
                known = failed.moved(range(len(messages)))
                down = {
                    index: error
                    for index, error in (known.errors if known is not None else {}).items()
                    if isinstance(error, self._on)
                }
                if not down:
                    self._answered(probe=probe)
                    raise
                if not self._failed(
                    [messages[index] for index in down], next(iter(down.values())), probe=probe
                ):
                    raise
                later = {index: Later(self._reset) for index in down}
                raise BatchError({**failed.errors, **later}) from failed
            except self._on as error:
                if self._failed(messages, error, probe=probe):
                    raise Later(self._reset) from error
                raise
            except Later:
                self._unknown(probe=probe)
                raise
            except Exception:
                self._answered(probe=probe)
                raise
            except BaseException:
                self._unknown(probe=probe)
                raise
            else:
                self._answered(probe=probe)

        return guarded

    def _begin(self, message: Message) -> bool:
        """Whether it is one that tries. Raises Later where nothing is to be begun."""
        if self.state == "closed":
            return False
        now = asyncio.get_running_loop().time()
        if self.state == "half-open" or now < self._until:
            raise Later(max(self._until - now, min(self._reset, 1.0)))
        if message.key is not None and message.key == self._tried and not self._passed_over:
            self._passed_over = True  # it may be this key's own fault; if no other comes, it is tried again
            raise Later(min(self._reset, 1.0))
        self.state, self._tried, self._passed_over = "half-open", message.key, False
        log.info("the circuit breaker is half-open: one message is tried")
        return True

    def _failed(self, messages: Sequence[Message], error: BaseException, *, probe: bool) -> bool:
        """Whether it is open by this failure, which is no attempt then."""
        if probe:
            self._open()
            log.info("the circuit breaker stays open: %r; tried again in %.3g s", error, self._reset)
            return True
        if self.state != "closed":
            return False  # it had begun before
        self._row += 1
        self._of |= {message.id for message in messages}
        if self._row < self._most or len(self._of) < 2:
            return False
        self._open()
        log.warning(
            "the circuit breaker opens after %d failures in a row, the last %r; tried again in %.3g s",
            self._row, error, self._reset,
        )  # fmt: skip
        return True

    def _open(self) -> None:
        self.state = "open"
        self._until = asyncio.get_running_loop().time() + self._reset

    def _answered(self, *, probe: bool) -> None:
        """What is called is there."""
        if probe:
            self.state = "closed"
            log.warning("the circuit breaker closes: a message was handled")
        if self.state == "closed":
            self._row = 0
            self._of.clear()

    def _unknown(self, *, probe: bool) -> None:
        if probe:
            self.state = "open"  # and its time is over, so the next one tries
            log.info("the circuit breaker stays open: what was tried did not come to an answer")
