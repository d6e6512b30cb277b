"""The clock that other processes read too, when somebody sets it."""

import pytest

from things_kit.engine import clock
from things_kit.engine.clock import SLEW, steady

HOUR = 3600.0
NOON = 1_800_000_000.0


class Time:
    """The module `time` of a machine, whose clock may be set."""

    def __init__(self) -> None:
        self.up = 500.0
        self.set = 0.0

    def time(self) -> float:
        """What the machine's clock shows."""
        return NOON + self.up + self.set

    def monotonic(self) -> float:
        """Since it was switched on."""
        return self.up


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    monkeypatch.setattr(clock, "_last", (time.up, NOON))
    return time


def test_it_is_the_clock_of_the_machine(machine: Time) -> None:
    machine.up += 10.0
    assert steady() == machine.time()


def test_set_forward_it_is_followed_at_once(machine: Time) -> None:
    machine.set = HOUR
    assert steady() == machine.time()


def test_set_back_what_waits_for_a_minute_waits_little_longer(machine: Time) -> None:
    due = steady() + 60.0
    machine.set = -HOUR
    machine.up += 60.0
    assert steady() < due
    machine.up += 60.0 * SLEW / (1 - SLEW)
    assert steady() == pytest.approx(due)


def test_set_back_it_never_goes_back_and_is_right_again_after_a_while(machine: Time) -> None:
    before = steady()
    machine.set = -HOUR
    for _ in range(int(HOUR / SLEW / 60)):
        machine.up += 60.0
        now = steady()
        assert now > before
        before = now
    assert before == pytest.approx(machine.time())


def test_set_forward_by_mistake_and_back_it_is_right_again_after_a_while(machine: Time) -> None:
    machine.set = HOUR
    steady()
    machine.set = 0.0
    machine.up += HOUR
    assert steady() > machine.time()
    machine.up += HOUR / SLEW
    assert steady() == machine.time()
