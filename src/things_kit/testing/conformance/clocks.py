"""A clock that is set back: line 58."""

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from things_kit import Message, Retry
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

HOUR = 3600.0


class _Kind(type):
    """What was made by the true clock is a datetime all the same."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime.datetime)


class _LateDatetime(datetime.datetime, metaclass=_Kind):
    """A datetime that reads a clock which is an hour late."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        """An hour ago."""
        return datetime.datetime.now(tz) - datetime.timedelta(seconds=HOUR)


class _LateTime:
    """The module `time`, as a machine has it whose clock is an hour late."""

    def time(self) -> float:
        """An hour ago."""
        return time.time() - HOUR

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextmanager
def clock_set_back() -> Iterator[None]:
    """The clock that the library reads is an hour late inside of this, that of the clients' libraries is not."""
    late = _LateTime()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("things_kit.") and not name.startswith("things_kit.testing"):
                if getattr(module, "time", None) is time:
                    patch.setattr(module, "time", late)
                if getattr(module, "datetime", None) is datetime.datetime:
                    patch.setattr(module, "datetime", _LateDatetime)
        yield


class ClockSuite(Suite):
    """Clocks of machines are corrected; what waits, waits for as long as was said."""

    async def test_what_waits_comes_in_time_though_the_clock_was_set_back(self, stage: Stage) -> None:
        """Line 58: in back-off or scheduled when it happens; and so does what begins to wait afterwards."""
        topic, group = stage.topic(), stage.group()

        async def act(message: Message) -> None:
            if message.attempt == 1 and message.value.startswith(b"retried"):
                raise Retry(after=1)

        recorder = await stage.record(topic, group, act)
        producer, expected = stage.broker.producer(), set[bytes]()

        async def publish(value: bytes) -> None:
            """One that is tried again, and one for later where that is to be had, each in a second."""
            await stage.publish(topic, b"retried, " + value)
            expected.add(b"retried, " + value)
            if stage.schedules:
                await producer.publish(Message(topic, b"scheduled, " + value), after=1)
                expected.add(b"scheduled, " + value)

        def all_came() -> bool:
            return {message.value for message in recorder.done} == expected

        await stage.ready_to_schedule()
        await publish(b"early")
        await recorder.until_began(1, stage.patience)
        await eventually(lambda: not recorder.running, stage.patience)
        with clock_set_back():
            await eventually(all_came, stage.patience, "what waited has come")
            await publish(b"late")
            await eventually(all_came, stage.patience, "what began to wait has come")
            await stage.until_lag(topic, group, 0)
        assert sorted(message.value for message in recorder.done) == sorted(expected), "each of them once"

    async def test_a_lease_holds_though_the_clock_was_set_back(self, stage: Stage) -> None:
        """Line 58: what is handled, and what waits, is delivered to nobody else; what was let go of is."""
        topic, group = stage.topic(), stage.group()
        first, second = [await stage.open(**stage.target.lease_options) for _ in range(2)]
        lease = first.capabilities.lease
        if lease is not None and lease > 20:
            pytest.skip(f"a lease of {lease:g} s is too long to outwait; give lease_options")
        gate = Gate()
        slow, other = Recorder(gate), Recorder()
        await stage.consume(topic, group, slow, broker=first)
        [sent] = await stage.publish(topic, b"slow", key=b"k")
        await slow.until_began(1, stage.patience)
        with clock_set_back():
            await stage.consume(topic, group, other, broker=second)
            outwaited = time.monotonic() + 2.5 * (lease or 0.2)
            await eventually(
                lambda: other.began or time.monotonic() > outwaited, 2.5 * (lease or 0.2) + stage.patience
            )
            assert not other.began, "its lease was not kept"
            gate.open()
            await slow.until_done(1, stage.patience)
            await stage.until_lag(topic, group, 0)
        assert slow.ids == {sent.id}
