"""Faults that are planted into the engine are found: a simulation that passes them would prove nothing."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.testing.simulation.test_worlds import Buried, Deployed, Engine, InPlace, PutAside, Replayed
from things_kit import Message
from things_kit.engine import pump, replay
from things_kit.engine.copies import Copies
from things_kit.engine.driver import Delivery, Release
from things_kit.engine.inbox import ConsumerInbox
from things_kit.engine.pump import Pump
from things_kit.testing import Faults, SimulationFailed, simulate

SEEDS = 200


def acknowledges_early(patch: pytest.MonkeyPatch) -> None:
    """When it arrives, not when it is handled."""
    put = ConsumerInbox.put

    def putting(self: ConsumerInbox, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        refused = put(self, deliveries)
        if deliveries and not refused:
            self.early = asyncio.ensure_future(self.receiver.settle(deliveries, []))  # type: ignore[attr-defined]
        return refused

    patch.setattr(ConsumerInbox, "put", putting)


def forgets_leases(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        await asyncio.Event().wait()

    patch.setattr(pump, "keep_leases", nothing)


def drops_at_a_rebalance(patch: pytest.MonkeyPatch) -> None:
    """What has not begun when a partition leaves counts as done."""

    async def dropping(self: Pump, inbox: ConsumerInbox, which: Any) -> None:
        await inbox.receiver.settle([each for each in inbox.held if which(each)], [])
        inbox.forget(which)

    patch.setattr(Pump, "let_go", dropping)


def counts_attempts_twice(patch: pytest.MonkeyPatch) -> None:
    release = ConsumerInbox.release

    def counting(self: ConsumerInbox, back: Release) -> None:
        release(self, Release(back.delivery, back.delay, back.attempt + 1, back.aside))

    patch.setattr(ConsumerInbox, "release", counting)


def loses_retry_copies(patch: pytest.MonkeyPatch) -> None:
    """It takes them for sent."""

    def losing(self: Copies, send: Any, group: str, shortest: float) -> None:
        async def lose(copies: Sequence[Any]) -> list[None]:
            return [None] * len(copies)

        made(self, lose, group, shortest)

    made = Copies.__init__
    patch.setattr(Copies, "__init__", losing)


def releases_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    """What came last goes back first."""
    release = ConsumerInbox.release

    def releasing(self: ConsumerInbox, back: Release) -> None:
        release(self, back)
        self._released.sort(key=lambda each: each.delivery.message.offset or 0, reverse=True)

    patch.setattr(ConsumerInbox, "release", releasing)


def skips_a_replay(patch: pytest.MonkeyPatch) -> None:
    """The last dead letter of those that it reads at once is taken for brought back."""
    bring_back = replay._bring_back

    async def skipping(producer: Any, reading: Any, chosen: list[Delivery], to: str | None) -> int:
        count = await bring_back(producer, reading, chosen[:-1], to)
        if chosen:
            await reading.acknowledge(chosen[-1:])
        return count

    patch.setattr(replay, "_bring_back", skipping)


class OnceEach(Engine):
    """Without a fault of the broker nothing is handled twice, however slow the handler."""

    def eventually(self) -> None:
        super().eventually()
        self.history.at_most(1)


class Counted(InPlace):
    """Attempts are counted one by one."""

    async def handle(self, message: Message) -> None:
        assert message.attempt <= 2
        await super().handle(message)

    def eventually(self) -> None:
        assert max(each.message.attempt for each in self.history.handlings) == 2


FOUND = [
    (acknowledges_early, Engine, "sqlite", Faults.only("crash")),
    (acknowledges_early, Engine, "kafka", Faults.only("crash")),
    (acknowledges_early, Buried, "nats", Faults.only("crash", "outage")),
    (forgets_leases, OnceEach, "redis", Faults.only("slow_handler")),
    (drops_at_a_rebalance, Engine, "kafka", Faults.only("rebalance", "slow_handler")),
    (counts_attempts_twice, Counted, "sqlite", Faults.none()),
    (loses_retry_copies, PutAside, "rabbitmq", Faults.none()),
    (releases_in_the_wrong_order, Deployed, "nats", Deployed.stops),
    (skips_a_replay, Replayed, "redis", Faults.none()),
]


@pytest.mark.parametrize(("mutant", "world", "broker", "faults"), FOUND)
def test_a_planted_fault_is_found(
    mutant: Any, world: type[Engine], broker: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(world, seeds=10, broker=broker, processes=world.processes, faults=faults)
    mutant(monkeypatch)
    with pytest.raises(SimulationFailed) as raised:
        simulate(world, seeds=SEEDS, broker=broker, processes=world.processes, faults=faults)
    print(f"{mutant.__name__} on {broker}: found by history {raised.value.report.histories}")
