"""What `simulate` finds, refuses, and says of it."""

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples.simulation import Billing, Careful
from hypothesis import given, settings
from hypothesis import strategies as st

from things_kit import Batch, ConfigError, Message, Retry, Topic
from things_kit.engine.broker import Broker
from things_kit.testing import Fault, Faults, SimulationFailed, World, reached, simulate
from things_kit.testing.simulation.models import MODELS
from things_kit.testing.simulation.search import Simulation

Handler = Callable[[Message], Any]


def published(count: int = 8) -> list[Message]:
    """Messages of three keys."""
    return [Message("orders", f"{n}".encode(), key=f"k{n % 3}".encode()) for n in range(count)]


class Shop(World):
    """One group, whose handler a test gives."""

    concurrency = 4

    async def handle(self, message: Message) -> None:
        """Nothing."""

    def consumers(self, broker: Broker) -> list[Any]:
        return [broker.consumer("orders", group="billing", handler=self.handle, concurrency=self.concurrency)]

    async def workload(self, producer: Any) -> None:
        await producer.publish_batch(published())


class Ledger(Shop):
    """Charges once for each message, or so it thinks."""

    async def setup(self) -> None:
        self.charged: Counter[str] = Counter()

    def eventually(self) -> None:
        self.history.nothing_lost()


class Naive(Ledger):
    """Reads, waits, writes, and notes nothing that a second delivery could see."""

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.01)
        self.charged[message.id or ""] += 1

    def always(self) -> None:
        twice = [id_ for id_, count in self.charged.items() if count > 1]
        assert not twice, "charged twice"


class Idempotent(Naive):
    """Knows what it has done."""

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.01)
        if message.id not in self.charged:
            self.charged[message.id or ""] += 1

    def eventually(self) -> None:
        self.history.nothing_lost()
        self.history.effect_once(self.charged)
        assert set(self.charged) == self.history.published("orders")


class Undying(Idempotent):
    """The default's faults stay below the attempts of a message: those of a right handler have no dead letter."""

    def eventually(self) -> None:
        super().eventually()
        assert not self.history.dead_letters


@pytest.mark.parametrize("broker", MODELS)
def test_a_right_handler_passes_on_every_model(broker: str) -> None:
    report = simulate(Undying, seeds=30, broker=broker)
    assert (report.check, report.histories) == (None, 30)
    assert report.happened["crash"] > 5
    assert report.never_fired == []


@pytest.mark.parametrize(("broker", "seed"), [("postgres", 274), ("rabbitmq", 202)])
def test_lost_connections_and_crashes_together_stay_below_the_attempts(broker: str, seed: int) -> None:
    faults = Faults.all().for_broker(broker, MODELS[broker][0].impossible)
    Simulation(Undying, broker, 2, faults).search([seed], 1, ())


@pytest.mark.parametrize("broker", MODELS)
def test_a_handler_that_is_not_idempotent_is_shown_in_a_short_history(broker: str) -> None:
    with pytest.raises(SimulationFailed, match="charged twice") as raised:
        simulate(Naive, seeds=60, broker=broker)
    report = raised.value.report
    assert report.check == "always"
    assert len(report.history) <= 12
    assert len({row.message for row in report.history if row.what == "published"}) <= 2
    assert f"--things-kit-seed={report.seed}" in report.replay
    assert report.replay in str(report)
    assert "AssertionError: charged twice" in str(report)


@pytest.mark.parametrize("broker", MODELS)
def test_the_double_charge_of_the_example_is_told_in_a_few_lines(broker: str) -> None:
    with pytest.raises(SimulationFailed, match="an order was charged twice") as raised:
        simulate(Billing, seeds=100, broker=broker)
    assert len(raised.value.report.history) <= 10
    assert len({row.message for row in raised.value.report.history if row.what == "published"}) <= 2
    simulate(Careful, seeds=20, broker=broker)


def test_the_double_charge_on_kafka_takes_six_lines() -> None:
    with pytest.raises(SimulationFailed) as raised:
        simulate(Billing, seeds=100, broker="kafka")
    assert len(raised.value.report.history) <= 6


def test_published_messages_are_equal_to_whatever_names_them() -> None:
    counts = Topic("counts", int, key=str)

    class Named(World):
        def consumers(self, broker: Broker) -> list[Any]:
            async def handle(number: int) -> None:
                """Nothing."""

            return [broker.consumer(counts, group="g", handler=handle)]

        async def workload(self, producer: Any) -> None:
            await producer.publish_batch(counts.messages([1, 2, 3]))

        def eventually(self) -> None:
            sent = self.history.published(counts)
            assert sent == {1, 2, 3}
            assert sent == ["3", "1", "2"]
            assert sent == [b"1", b"2", b"3"]
            assert sent == set(sent.ids)
            assert sent == list(sent)
            assert sent != {1, 2}
            assert sent != [1, 2, 2]
            assert sent != []
            assert [m.value for m in self.history.handled(key="2")] == [b"2"]
            assert self.history.times_handled(sent.ids[0]) == 1

    simulate(Named, seeds=1, faults=Faults.none())


def test_nothing_goes_wrong_without_faults() -> None:
    report = simulate(Naive, seeds=20, faults=Faults.none())
    assert (report.happened, report.check) == ({}, None)


def test_the_same_seed_has_the_same_history_whatever_the_order_of_sets() -> None:
    program = (
        "from tests.testing.simulation.test_simulate import Idempotent, simulate\n"
        "print([simulate(Idempotent, seeds=s, broker=b).hash for b in ('kafka', 'rabbitmq', 'sqlite') for s in (5, 20)])"
    )
    hashes = set()
    for seed in ("0", "1", "77"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        hashes.add(run.stdout)
    assert len(hashes) == 1


def test_one_seed_alone_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SimulationFailed) as raised:
        simulate(Naive, seeds=60)
    monkeypatch.setenv("THINGS_KIT_SEED", str(raised.value.report.seed))
    with pytest.raises(SimulationFailed) as again:
        simulate(Naive, seeds=60, sometimes=["never"])
    assert again.value.report.histories == 1
    assert again.value.report.hash == raised.value.report.hash
    monkeypatch.setenv("THINGS_KIT_SEED", str(10_000))
    assert simulate(Idempotent, sometimes=["never"]).histories == 1


def test_with_workers_the_lowest_failing_seed_is_reported() -> None:
    with pytest.raises(SimulationFailed) as alone:
        simulate(Naive, seeds=100)
    with pytest.raises(SimulationFailed) as together:
        simulate(Naive, seeds=100, workers=2)
    assert alone.value.report.seed == together.value.report.seed


class Marking(Shop):
    """Marks what it sees."""

    async def handle(self, message: Message) -> None:
        if message.attempt == 1:
            raise Retry(after=60)
        reached("retried")


def test_a_point_of_interest_must_be_reached() -> None:
    simulate(Marking, seeds=3, sometimes=["retried"], broker="sqlite")
    reached("outside of a simulation it does nothing")
    with pytest.raises(SimulationFailed, match="never reached in 3 histories: dead"):
        simulate(Marking, seeds=3, sometimes=["retried", "dead"], broker="sqlite")


class Batched(Ledger):
    """Takes lists, in a plain function."""

    def consumers(self, broker: Broker) -> list[Any]:
        def handle(messages: list[Message]) -> None:
            for message in messages:
                self.charged[message.id or ""] = 1

        return [broker.consumer("orders", group="billing", handler=handle, batch=Batch(size=3, wait=1))]


@pytest.mark.parametrize("broker", ["kafka", "sqlite", "pubsub"])
def test_batches_and_plain_functions(broker: str) -> None:
    simulate(Batched, seeds=30, broker=broker)


class Dying(Shop):
    """A poisoned message ends in its dead letter."""

    async def handle(self, message: Message) -> None:
        if message.value == b"3":
            raise ValueError("poison")

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert {letter.value for letter in self.history.dead_letters} == {b"3"}


@pytest.mark.parametrize("broker", ["kafka", "rabbitmq", "redis"])
def test_dead_letters_are_not_lost(broker: str) -> None:
    simulate(Dying, seeds=20, broker=broker)


class Losing(Shop):
    """Forgets to fail."""

    def eventually(self) -> None:
        self.history.at_most(0)


def test_a_check_at_the_end_fails_with_its_sentence() -> None:
    with pytest.raises(SimulationFailed, match=r"billing handled .* 1 times"):
        simulate(Losing, seeds=1, faults=Faults.none())


# --- what goes wrong in the world itself


class Broken(Shop):
    """Raises where it is told to."""

    where = "setup"

    async def setup(self) -> None:
        if self.where == "setup":
            raise RuntimeError("no database")

    def consumers(self, broker: Broker) -> list[Any]:
        if self.where == "consumers":
            raise RuntimeError("no database")
        return super().consumers(broker)

    async def workload(self, producer: Any) -> None:
        if self.where == "workload":
            raise RuntimeError("no database")


@pytest.mark.parametrize("where", ["setup", "consumers", "workload"])
def test_what_the_world_raises_fails_at_once(where: str) -> None:
    with pytest.raises(SimulationFailed, match="RuntimeError: no database") as raised:
        simulate(type("Here", (Broken,), {"where": where}), seeds=5, faults=Faults.none())
    assert raised.value.report.check == where


class Waiting(Shop):
    """Never ends."""

    async def handle(self, message: Message) -> None:
        await asyncio.Event().wait()


def test_a_history_that_does_not_come_to_rest_fails() -> None:
    with pytest.raises(SimulationFailed, match="does not come to rest: 8 of orders for billing"):
        simulate(Waiting, seeds=1, faults=Faults.none(), broker="sqlite")


class Unsteady(Shop):
    """Takes as long as the number of its process says, which is another each time."""

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(os.getpid() / 1000)
        raise ValueError("poison")

    def eventually(self) -> None:
        assert not self.history.dead_letters


def test_a_failing_seed_that_does_not_repeat_fails_as_that() -> None:
    with pytest.raises(SimulationFailed, match="not deterministic: seed 0 gave two histories") as raised:
        simulate(Unsteady, seeds=1, faults=Faults.none())
    assert raised.value.report.check == "repeating"


def test_an_asynchronous_check_is_refused() -> None:
    class Asking(Shop):
        async def eventually(self) -> None:  # type: ignore[override]
            pass

    with pytest.raises(SimulationFailed, match="eventually must be a plain function"):
        simulate(Asking, seeds=1, faults=Faults.none())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": 0}, "seeds must be a whole number from 1; it is 0"),
        ({"processes": True}, "processes must be a whole number from 1; it is True"),
        ({"workers": 1.5}, "workers must be a whole number from 1"),
        ({"broker": "kafak"}, "there is no model of a broker 'kafak'; there are: kafka, rabbitmq"),
        ({"faults": "crash"}, "faults must be Faults; it is 'crash'"),
        ({"broker": ["kafka"]}, "there is no model of a broker"),
        ({"sometimes": "retried"}, "sometimes must be a list of names"),
        ({"sometimes": 3}, "sometimes must be a list of names"),
        ({"sometimes": [3]}, "sometimes must be a list of names"),
        (
            {"broker": "sqlite", "faults": Faults.only("rebalance")},
            "sqlite cannot have the fault 'rebalance'",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        simulate(Shop, **arguments)


@pytest.mark.parametrize("world", [dict, World, Shop(), lambda: 3])
def test_what_is_no_world_is_refused(world: Any) -> None:
    with pytest.raises(ConfigError, match="world must be a World class, or a function that makes one; it"):
        simulate(world, seeds=1)


def test_wrong_faults_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no fault 'crahs'; there are: crash, stop"):
        Faults.only("crahs")
    with pytest.raises(ConfigError, match=r"probability must be from 0 to 1; it is 2"):
        Fault(probability=2, budget=1)
    with pytest.raises(ConfigError, match="budget must be a whole number from 0; it is -1"):
        Fault(probability=1, budget=-1)
    with pytest.raises(ConfigError, match="must be a Fault; it is 3"):
        Faults(crash=3)  # type: ignore[arg-type]


def test_a_budget_bounds_a_fault_in_each_history() -> None:
    report = simulate(
        Idempotent, seeds=10, faults=Faults(slow_handler=Fault(probability=1.0, budget=2)), broker="nats"
    )
    assert report.happened == {"slow_handler": 20}
    assert report.never_fired == []


def test_a_fault_that_never_happened_is_said() -> None:
    report = simulate(Idempotent, seeds=2, faults=Faults(crash=Fault(probability=0.0, budget=2)))
    assert report.never_fired == ["crash"]
    assert "never happened: crash" in str(report)


def test_the_page_shows_a_column_for_each_process(tmp_path: Path) -> None:
    with pytest.raises(SimulationFailed) as raised:
        simulate(Naive, seeds=60)
    page = tmp_path / "history.html"
    raised.value.report.html(page)
    text = page.read_text()
    assert "<th>process 1</th>" in text
    assert "charged twice" in text
    assert f"again: {raised.value.report.replay}" in text
    assert "<br>never happened: " in text
    assert re.search(r'<tr class="fault">.*(crashes|breaks)', text)
    assert "http" not in text


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 9), max_size=3))
def none_above_six(numbers: list[int]) -> None:
    class Drawn(World):
        async def setup(self) -> None:
            self.seen = set[int]()

        def consumers(self, broker: Broker) -> list[Any]:
            async def handle(message: Message) -> None:
                self.seen.add(int(message.value))

            return [broker.consumer("numbers", group="g", handler=handle)]

        async def workload(self, producer: Any) -> None:
            await producer.publish_batch([Message("numbers", b"%d" % number) for number in numbers])

        def eventually(self) -> None:
            assert self.seen == set(numbers)
            assert max(self.seen, default=0) < 7, f"{numbers} of the workload"

    simulate(Drawn, seeds=1, broker="redis")


def test_hypothesis_draws_the_workload_and_makes_it_simple() -> None:
    with pytest.raises(SimulationFailed, match=r"AssertionError: \[7\] of the workload"):
        none_above_six()
