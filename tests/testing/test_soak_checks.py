"""What a soak says of a run: each promise, broken by hand in the journals of a run that keeps all others."""

from collections.abc import Sequence

import pytest

from things_kit.testing.soak.checks import check, explained_duplicates
from things_kit.testing.soak.faults import Strike, seen_dropping, seen_dying, seen_standing, seen_trouble
from things_kit.testing.soak.plan import GROUPS, fate_of
from things_kit.testing.soak.records import Entry, Kind
from things_kit.testing.soak.story import Story
from things_kit.testing.soak.verdict import effects

KEY = "producer-1.1/0"


def id_with(fate: str, group: str = "ordered", after: int = 0) -> str:
    """A message with which the handler of a group does this."""
    return next(
        f"producer-1.1/{n}" for n in range(after, 100_000) if fate_of(f"producer-1.1/{n}", group) == fate
    )


class Run:
    """Journals made by hand: everybody starts, and each group handles each message once, unless told otherwise."""

    def __init__(self, *, across: bool = True) -> None:
        self.entries: list[Entry] = []
        self.at = 0.0
        self.places = 0
        self.add("phase", text="declared", figures={"across": float(across)})
        for who in ("ordered-1", "ordered-2", "free-1", "batch-1", "carrier-1", "producer-1"):
            self.add("started", id=f"{who}.1")
            self.add("ready", by=f"{who}.1")

    def add(self, kind: Kind, at: float | None = None, **fields: object) -> None:
        self.at += 0.1
        self.entries.append(Entry(kind, self.at if at is None else at, **fields))  # type: ignore[arg-type]

    def publish(self, id_: str, *, key: str = KEY) -> None:
        self.places += 1
        self.add("publishing", by="producer-1.1", id=id_)
        self.add("published", by="producer-1.1", id=id_, key=key, place=self.places if key else 0)

    def handle(
        self,
        id_: str,
        group: str,
        *kinds: Kind,
        by: str = "",
        place: int = 0,
        attempt: int = 1,
        text: str = "",
        partition: int | None = None,
    ) -> None:
        by = by or {"far": "carrier-1.1"}.get(group, f"{group}-1.1")
        key = KEY if place else ""
        figures = {} if partition is None else {"partition": float(partition)}
        for kind in kinds or ("began", "done"):
            self.add(
                kind, by=by, id=id_, group=group, key=key, place=place, attempt=attempt, text=text, figures=figures
            )  # fmt: skip

    def others(self, id_: str, *, besides: str = "ordered") -> None:
        for group in GROUPS:
            if group != besides:
                self.handle(id_, group)

    def fault(
        self,
        victim: str = "",
        *,
        violent: bool = True,
        lasts: float = 1.0,
        fault: str = "kill",
        also: str = "",
    ) -> None:
        figures = {"violent": float(violent), "shadow": 0.0, "seconds": lasts} | ({also: 1.0} if also else {})
        self.add("fault", id=f"{self.at:g}", key=victim, text=fault, figures=figures)
        number = self.entries[-1].id
        self.at += lasts
        self.add("over", id=number, text=fault)

    def end(self, who: str, *, code: int = 0, killed: bool = False) -> None:
        self.add("ended", id=who, figures={"code": float(code), "killed": float(killed)})

    def broken(self) -> dict[str, Sequence[str]]:
        return {promise: findings for promise, findings in check(Story(self.entries)).items() if findings}


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_run_in_which_all_went_well_breaks_no_promise(run: Run) -> None:
    for n in range(3):
        id_ = id_with("well", after=100 * n)
        run.publish(id_)
        run.handle(id_, "ordered", place=run.places)
        run.others(id_)
    assert run.broken() == {}


def test_a_message_that_a_group_never_began_is_lost(run: Run) -> None:
    run.publish("producer-1.1/1")
    run.others("producer-1.1/1")
    assert run.broken() == {
        "nothing confirmed is lost": ["ordered: producer-1.1/1 was confirmed and was never begun"]
    }


def test_a_message_whose_handling_never_ended_is_lost(run: Run) -> None:
    run.publish("producer-1.1/1")
    run.others("producer-1.1/1")
    run.handle("producer-1.1/1", "ordered", "began")
    assert run.broken() == {
        "nothing confirmed is lost": ["ordered: producer-1.1/1 was confirmed and was only begun"]
    }


def test_what_was_never_confirmed_is_not_lost(run: Run) -> None:
    run.add("publishing", by="producer-1.1", id="producer-1.1/1")
    run.add("unpublished", by="producer-1.1", id="producer-1.1/1", text="BrokerUnavailable: away")
    assert run.broken() == {}


def test_what_was_on_a_topic_that_was_deleted_is_gone_and_what_came_before_and_afterwards_is_not(
    run: Run,
) -> None:
    before, on_it, afterwards = (f"producer-1.1/{n}" for n in range(3))
    for id_ in (before, afterwards):
        run.publish(id_)
        run.others(id_, besides="batch")
    run.fault(fault="topic deleted", also="drops")
    run.add("publishing", run.at - 1.0, by="producer-1.1", id=on_it)
    run.add("published", by="producer-1.1", id=on_it)
    assert run.broken()["nothing confirmed is lost"] == [
        f"batch: {id_} was confirmed and was never begun" for id_ in (before, afterwards)
    ]


def test_a_message_that_was_in_hand_when_its_topic_was_deleted_holds_back_nobody(run: Run) -> None:
    first, second = id_with("well"), id_with("well", after=60)
    for id_ in (first, second):
        run.add("publishing", by="producer-1.1", id=id_)
    run.handle(first, "ordered", "began", place=1)
    run.entries.insert(0, Entry("fault", 0.0, id="x", text="topic deleted", figures={"drops": 1.0}))
    run.add("over", id="x")
    for id_ in (first, second):
        run.add("published", by="producer-1.1", id=id_)
    run.handle(second, "ordered", place=2, by="ordered-2.1")
    run.handle(first, "ordered", "done", place=1)
    assert run.broken() == {}


def two_of_a_key(run: Run) -> tuple[str, str]:
    ids = id_with("well"), id_with("well", after=60)
    for id_ in ids:
        run.publish(id_)
        run.others(id_)
    return ids


def test_a_later_message_of_a_key_that_began_before_an_earlier_one_was_done(run: Run) -> None:
    first, second = two_of_a_key(run)
    run.handle(second, "ordered", place=2)
    run.handle(first, "ordered", place=1, by="ordered-2.1")
    assert run.broken() == {
        "keys keep their order": [f"ordered: {KEY}: {second} began before {first} was settled"]
    }


def test_an_earlier_message_that_waits_for_its_next_attempt_must_not_be_overtaken(run: Run) -> None:
    first, second = two_of_a_key(run)
    run.handle(first, "ordered", "began", "failed", place=1, text="Planted")
    run.handle(second, "ordered", place=2)
    run.handle(first, "ordered", place=1, attempt=2)
    assert list(run.broken()) == ["keys keep their order"]


def test_a_rejected_message_holds_back_nobody(run: Run) -> None:
    first, second = id_with("rejected"), id_with("well")
    for id_ in (first, second):
        run.publish(id_)
        run.others(id_)
    run.handle(first, "ordered", "began", "failed", place=1, text="Reject")
    run.handle(second, "ordered", place=2)
    run.add("buried", by="clerk-1.1", id=first, group="ordered", text="things_kit.Reject")
    run.handle(first, "ordered", place=1)
    assert run.broken() == {}


@pytest.mark.parametrize(("added", "broken"), [(True, False), (False, True)], ids=["added", "not added"])
def test_a_key_whose_partition_changes_as_some_are_added_has_no_order_between_the_two(
    run: Run, added: bool, broken: bool
) -> None:
    first, second = id_with("well"), id_with("well", after=60)
    run.publish(first)
    if added:
        run.fault(fault="partitions added", also="moves keys")
        run.at += 100.0  # who publishes hears of them much later
    run.publish(second)
    run.handle(first, "ordered", "began", place=1, partition=0)
    run.handle(second, "ordered", place=2, by="ordered-2.1", partition=7)
    run.handle(first, "ordered", "done", place=1)
    for id_ in (first, second):
        run.others(id_)
    assert bool(run.broken()) is broken


def test_messages_of_one_partition_keep_their_order_though_some_were_added(run: Run) -> None:
    run.fault(fault="partitions added", also="moves keys")
    first, second = two_of_a_key(run)
    run.handle(second, "ordered", place=2, partition=7)
    run.handle(first, "ordered", place=1, partition=7)
    assert list(run.broken()) == ["keys keep their order"]


def test_results_come_in_the_order_of_what_they_are_made_of(run: Run) -> None:
    first, second = id_with("well"), id_with("well", after=60)
    for place, id_ in enumerate((first, second), 1):
        run.publish(id_)
        for group in GROUPS:
            if group != "results":
                run.handle(id_, group, place=place if group == "ordered" else 0)
    run.handle(second, "results", place=2)
    run.handle(first, "results", place=1)
    assert run.broken() == {
        "keys keep their order": [f"results: {KEY}: {second} began before {first} was begun"]
    }


def test_where_order_holds_within_a_process_others_may_overtake() -> None:
    run = Run(across=False)
    first, second = two_of_a_key(run)
    run.handle(second, "ordered", place=2)
    run.handle(first, "ordered", place=1, by="ordered-2.1")
    assert run.broken() == {}


def test_where_order_holds_within_a_process_it_must_hold_there() -> None:
    run = Run(across=False)
    first, second = two_of_a_key(run)
    run.handle(second, "ordered", place=2)
    run.handle(first, "ordered", place=1)
    assert run.broken() == {
        "keys keep their order": [
            f"ordered: {KEY}: ordered-1.1 began {first} after ordered-1.1 had begun {second}"
        ]
    }


def test_members_that_come_and_go_explain_an_order_within_a_process() -> None:
    run = Run(across=False)
    first, second = two_of_a_key(run)
    run.handle(second, "ordered", place=2)
    run.add("told", id="ordered-2.1")
    run.end("ordered-2.1")
    run.handle(first, "ordered", place=1)
    assert run.broken() == {}


def test_where_what_is_given_back_keeps_its_place_the_lives_of_an_only_member_are_one() -> None:
    run = Run(across=False)
    run.add("phase", text="declared", figures={"gives back in order": 1.0})
    first, second = id_with("well", "batch"), id_with("well", "batch", after=60)
    for id_ in (first, second):
        run.publish(id_)
        run.others(id_, besides="batch")
    run.add("told", id="batch-1.1")
    run.end("batch-1.1")
    run.handle(second, "batch", place=2, by="batch-1.2")
    run.handle(first, "batch", place=1, by="batch-1.2")
    assert list(run.broken()) == ["keys keep their order"]


def test_two_messages_of_a_key_in_two_handlers_at_once(run: Run) -> None:
    first, second = two_of_a_key(run)
    run.handle(first, "ordered", "began", place=1)
    run.handle(second, "ordered", "began", place=2, by="ordered-2.1")
    run.handle(first, "ordered", "done", place=1)
    run.handle(second, "ordered", "done", place=2, by="ordered-2.1")
    assert set(run.broken()) == {"keys keep their order", "no two of a key at once"}


def test_a_frozen_process_explains_two_at_once_but_not_their_order(run: Run) -> None:
    first, second = two_of_a_key(run)
    run.handle(first, "ordered", "began", place=1)
    run.fault("ordered-1", fault="freeze")
    run.handle(first, "ordered", place=1, by="ordered-2.1")
    run.handle(second, "ordered", place=2, by="ordered-2.1")
    run.handle(first, "ordered", "done", place=1)
    assert run.broken() == {}


def test_a_message_that_comes_again_though_it_was_done(run: Run) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered")
    run.handle(id_, "ordered", by="ordered-2.1")
    [finding] = run.broken()["nothing comes again without a cause"]
    assert finding.startswith(f"ordered: {id_} came to ordered-2.1 though ordered-1.1 was done")


def test_a_message_that_comes_to_another_while_its_handler_runs(run: Run) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered", "began")
    run.handle(id_, "ordered", by="ordered-2.1")
    run.handle(id_, "ordered", "done")
    assert list(run.broken()) == ["nothing comes again without a cause"]


@pytest.mark.parametrize("victim", ["ordered-1", ""])
def test_a_fault_of_that_time_and_place_explains_a_duplicate(run: Run, victim: str) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered")
    run.fault(victim)
    run.handle(id_, "ordered", by="ordered-2.1")
    assert run.broken() == {}
    assert explained_duplicates(Story(run.entries)) == {"ordered": 1}


def test_who_failed_while_it_was_frozen_explains_that_a_dead_letter_was_brought_back_twice(run: Run) -> None:
    id_ = id_with("rejected")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered", "began", "failed", text="Reject")
    run.fault("ordered-1", fault="freeze")
    run.handle(id_, "ordered", "began", "failed", by="ordered-2.1", text="Reject")
    for _ in range(2):
        run.add("buried", by="clerk-1.1", id=id_, group="ordered", text="Reject")
        run.handle(id_, "ordered", by="ordered-2.1")
    assert run.broken() == {}


@pytest.mark.parametrize(("seconds", "is_explained"), [(9.0, True), (7.0, False)])
def test_a_partition_that_moves_waits_for_its_handlers_no_longer_than_they_may_drain(
    run: Run, seconds: float, is_explained: bool
) -> None:
    run.add("phase", text="declared", figures={"whole group": 1.0})
    id_ = id_with("outlasts a lease")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered", "began")
    run.add("started", id="ordered-3.1")
    run.add("ready", by="ordered-3.1")
    run.at += seconds
    run.handle(id_, "ordered", "began", by="ordered-3.1")
    run.handle(id_, "ordered", "done")
    run.handle(id_, "ordered", "done", by="ordered-3.1")
    assert (run.broken() == {}) == is_explained


def test_a_fault_of_another_process_explains_nothing(run: Run) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered")
    run.fault("free-1")
    run.handle(id_, "ordered", by="ordered-2.1")
    assert list(run.broken()) == ["nothing comes again without a cause"]


def test_a_gentle_fault_explains_nothing(run: Run) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered")
    run.fault("ordered-1", violent=False, fault="restart")
    run.handle(id_, "ordered", by="ordered-2.1")
    assert list(run.broken()) == ["nothing comes again without a cause"]


def test_an_outage_while_a_message_was_published_explains_that_it_is_there_twice(run: Run) -> None:
    id_ = id_with("well")
    run.add("publishing", by="producer-1.1", id=id_)
    run.fault(fault="broker killed")
    run.add("published", by="producer-1.1", id=id_)
    run.others(id_)
    run.handle(id_, "ordered")
    run.handle(id_, "ordered", by="ordered-2.1")
    assert run.broken() == {}


def test_a_dead_letter_of_a_message_that_went_well_has_no_cause(run: Run) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered")
    run.add("buried", by="clerk-1.1", id=id_, group="ordered", text="builtins.ValueError")
    assert list(run.broken()) == ["dead letters have a cause"]


def test_a_message_that_is_said_to_have_killed_its_process_must_have_been_with_one_that_died(
    run: Run,
) -> None:
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered", "began")
    run.fault("ordered-1")
    run.end("ordered-1.1", code=-9, killed=True)
    run.add("buried", by="clerk-1.1", id=id_, group="ordered", text="ProcessDied")
    run.handle(id_, "ordered", by="ordered-2.1")
    assert run.broken() == {}


@pytest.mark.parametrize("attempts", [(2, 2), (1, 3)], ids=["the first is not 1", "one is left out"])
def test_attempts_that_jump(run: Run, attempts: tuple[int, int]) -> None:
    id_ = id_with("fails once")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered", "began", "failed", attempt=attempts[0], text="Planted")
    run.handle(id_, "ordered", attempt=attempts[1], by="ordered-2.1")
    assert list(run.broken()) == ["attempts neither jump nor go back"]


def test_where_what_is_given_back_counts_a_member_that_ends_explains_a_jump(run: Run) -> None:
    run.add("phase", text="declared", figures={"counts given back": 1.0})
    id_ = id_with("well")
    run.publish(id_)
    run.others(id_)
    run.add("told", id="ordered-2.1")
    run.end("ordered-2.1")
    run.handle(id_, "ordered", attempt=2)
    assert run.broken() == {}


@pytest.mark.parametrize(("last", "broken"), [(3, False), (5, True)], ids=["goes on", "jumps"])
def test_two_lives_of_a_message_that_a_fault_has_left_take_turns_and_each_counts(
    run: Run, last: int, broken: bool
) -> None:
    """Of the one a dead letter was brought back when the other went on (RabbitMQ, frozen for long)."""
    id_ = id_with("hopeless")
    run.publish(id_)
    run.others(id_)
    for attempt in (1, 1, 2, 2, 3):
        run.handle(id_, "ordered", "began", "failed", attempt=attempt, text="Planted", by="ordered-1.1")
        if attempt == 1:
            run.fault("ordered-1")
    run.add("buried", by="clerk-1.1", id=id_, group="ordered", text="x.Planted")
    run.handle(id_, "ordered", by="ordered-2.1")
    run.handle(id_, "ordered", "began", "failed", attempt=last, text="Planted", by="ordered-2.1")
    run.add("buried", by="clerk-1.1", id=id_, group="ordered", text="x.Planted")
    run.handle(id_, "ordered", by="ordered-2.1")
    assert ("attempts neither jump nor go back" in run.broken()) is broken


def test_what_a_fault_has_brought_again_has_gone_on_from_no_failure_of_its_own(run: Run) -> None:
    """A retry that was read twice as its broker was killed, and the message once more beside it (Kafka)."""
    id_ = id_with("hopeless", "free")
    run.publish(id_)
    run.others(id_, besides="free")
    for attempt in (1, 2, 3):
        run.handle(id_, "free", "began", "failed", attempt=attempt, text="Planted")
    run.fault(fault="broker killed")
    for attempt in (3, 1):
        run.handle(id_, "free", "began", "failed", attempt=attempt, text="Planted")
    run.add("buried", by="clerk-1.1", id=id_, group="free", text="x.Planted")
    run.at += 30.0
    run.handle(id_, "free", "began", "failed", attempt=2, text="Planted")
    run.handle(id_, "free")
    run.handle(id_, "free", "began", "failed", attempt=3, text="Planted")
    assert "attempts neither jump nor go back" not in run.broken()


def test_a_failure_that_is_not_counted(run: Run) -> None:
    id_ = id_with("fails once")
    run.publish(id_)
    run.others(id_)
    run.handle(id_, "ordered", "began", "failed", text="Planted")
    run.handle(id_, "ordered")
    assert list(run.broken()) == ["attempts neither jump nor go back"]


def result_of(run: Run, id_: str, *names: str) -> None:
    run.publish(id_)
    run.others(id_, besides="results")
    for name in names:
        run.handle(id_, "results", text=name)


def test_a_result_that_is_lost(run: Run) -> None:
    id_ = id_with("well")
    result_of(run, id_)
    assert run.broken() == {
        "nothing confirmed is lost": [f"results: {id_} was confirmed and was never begun"]
    }


def test_a_result_that_comes_again_under_another_id(run: Run) -> None:
    id_ = id_with("well")
    result_of(run, id_, "r-1", "r-2")
    assert run.broken()["results keep their id"] == [f"the result of {id_} came under 2 ids: r-1, r-2"]


@pytest.mark.parametrize("victim", ["ordered-1", "results-1", "free-1"])
def test_a_result_comes_again_only_because_of_who_published_or_who_handled_it(run: Run, victim: str) -> None:
    id_ = id_with("well")
    result_of(run, id_, "r-1")
    run.fault(victim)
    run.handle(id_, "results", text="r-1")
    assert bool(run.broken()) is (victim == "free-1")


def test_each_handling_of_a_message_has_its_result(run: Run) -> None:
    id_ = id_with("well")
    result_of(run, id_)
    run.fault("ordered-1")
    run.handle(id_, "ordered", by="ordered-2.1")
    run.at += 60.0
    for _ in range(2):
        run.handle(id_, "results", text="r-1")
    assert run.broken() == {}


def test_what_lags_at_the_end(run: Run) -> None:
    run.add("lag", by="clerk-1.1", group="free", figures={"lag": 5.0})
    run.add("phase", text="finishing")
    run.add("lag", by="clerk-1.1", group="free", figures={"lag": 2.0})
    run.add("lag", by="clerk-1.1", group="ordered", figures={"lag": 0.0})
    assert run.broken() == {"lag returns to 0": ["free: a lag of 2 is left"]}


def test_a_group_that_does_not_recover(run: Run) -> None:
    run.fault(fault="broker killed")
    number = run.entries[-1].id
    run.add("recovered", id=number, group="free", figures={"seconds": 3.0})
    run.add("recovered", id=number, group="batch", figures={"seconds": -1.0})
    assert run.broken() == {
        "each group recovers within 60 s": ["batch: no success within 60 s after broker killed"]
    }


def test_a_member_that_gets_nothing_while_others_have_work(run: Run) -> None:
    for n in range(900):
        id_ = f"producer-1.1/{n}"
        run.publish(id_, key="")
        for group in GROUPS:
            run.handle(id_, group)
    [finding] = run.broken()["no member stands still"]
    assert finding.startswith("ordered-2.1 got nothing for")


def test_no_member_is_to_blame_for_the_time_in_which_the_broker_was_away(run: Run) -> None:
    """A busy machine took 75 seconds to have it back, and one member had its first message a little after the others."""
    run.handle("x", "ordered", by="ordered-2.1")
    run.fault(fault="broker killed", lasts=75.0)
    for n in range(210):
        run.handle(f"producer-1.1/{n}", "ordered")
    run.handle("y", "ordered", by="ordered-2.1")
    assert "no member stands still" not in run.broken()


def test_a_process_that_has_more_tasks_at_rest_than_before(run: Run) -> None:
    for phase, tasks in (("rest before", 5.0), ("going", 9.0), ("rest after", 30.0), ("ending", 30.0)):
        run.add("phase", text=phase)
        for _ in range(3):
            run.add("pulse", by="free-1.1", figures={"tasks": tasks, "megabytes": 50.0})
    assert run.broken() == {"no process grows": ["free-1.1 has 30 tasks at rest, 5 before"]}


def test_a_process_whose_memory_grows(run: Run) -> None:
    run.add("phase", text="rest before")
    for n in range(2000):
        run.add("pulse", by="free-1.1", figures={"megabytes": 50.0 + n * 0.1})
    run.add("phase", text="rest after")
    run.add("pulse", by="free-1.1", figures={"megabytes": 250.0})
    run.add("phase", text="ending")
    [finding] = run.broken()["no process grows"]
    assert "MB at the end" in finding


@pytest.mark.parametrize(
    "text",
    ["ERROR things_kit: it broke\nTraceback (most recent call last):\nKeyError: 1", "STDERR: coroutine 'x' was never awaited"],
)  # fmt: skip
def test_an_error_that_nobody_planned(run: Run, text: str) -> None:
    run.add("said", by="free-1.1", text=text)
    assert list(run.broken()) == ["no error is left over"]


def test_an_error_of_a_handler_that_was_to_fail_is_none(run: Run) -> None:
    run.add(
        "said", by="free-1.1", text="ERROR it failed\nTraceback (most recent call last):\nPlanted: always"
    )
    assert run.broken() == {}


def test_a_process_that_ends_too_late(run: Run) -> None:
    run.add("told", id="free-1.1")
    run.at += 18.0
    run.end("free-1.1")
    assert run.broken() == {
        "told to end, processes do so in time": ["free-1.1 took 18.1 s to end; 17 s are promised"]
    }


def test_a_process_that_ends_by_itself(run: Run) -> None:
    run.end("free-1.1", code=1)
    assert run.broken() == {"no process ends by itself": ["free-1.1 ended by itself with exit code 1"]}


def test_a_process_that_is_started_while_the_broker_is_away_may_fail_to_start(run: Run) -> None:
    run.add("started", id="ordered-3.2")
    run.fault(fault="broker killed")
    run.end("ordered-3.2", code=1)
    assert run.broken() == {}


def test_what_such_a_process_says_of_it_is_no_error(run: Run) -> None:
    said = "STDERR ordered-3.2: Traceback (most recent call last):\nBrokerUnavailable: away"
    for number, name in enumerate(("ordered-3.2", "free-1.1")):
        run.add("started", id="ordered-3.2")
        run.fault(fault="broker killed")
        run.end("ordered-3.2", code=1)
        run.add("said", by="soak", id=name, text=said)
        assert bool(run.broken().get("no error is left over")) is bool(number)


def test_a_value_that_has_changed(run: Run) -> None:
    run.add("spoiled", by="free-1.1", id="producer-1.1/1", group="free")
    assert list(run.broken()) == ["values arrive unchanged"]


# --- whether a fault had an effect


def test_a_kill_counts_when_the_victim_has_ended_by_a_signal() -> None:
    ended = Entry("ended", 5.0, id="free-1.2", figures={"code": -9.0})
    strike = Strike("kill", "free-1")
    assert seen_dying([ended], strike, (4.0, 6.0)) == "free-1.2 ended by signal 9"
    assert not seen_dying([ended], strike, (6.0, 8.0))
    assert not seen_dying([ended], Strike("kill", "free-2"), (4.0, 6.0))


def test_where_the_fault_of_a_member_is_one_of_its_whole_group_its_effect_is_still_its_own(run: Run) -> None:
    """On Kafka no kill of a member was ever seen."""
    run.add("phase", text="declared", figures={"whole group": 1.0})
    run.add("fault", id="1", key="free-1", text="kill")
    run.end("free-1.1", code=-9, killed=True)
    run.add("over", id="1")
    story = Story(run.entries)
    assert effects(story) == {"1": "free-1.1 ended by signal 9"}
    assert story.cause(0.0, run.at, "free-2.1") is not None


def test_a_freeze_counts_when_the_pulse_stood_still() -> None:
    pulses = [Entry("pulse", at, by="free-1.1") for at in (1.0, 1.5, 9.0, 9.5)]
    strike = Strike("freeze", "free-1", 7.0)
    assert seen_standing(pulses, strike, (1.6, 8.6)) == "free-1.1 had no pulse for 7.5 s"
    assert not seen_standing([pulses[0], pulses[1], Entry("pulse", 2.0, by="free-1.1")], strike, (1.6, 8.6))


def test_an_outage_counts_when_somebody_noticed() -> None:
    strike = Strike("broker killed", seconds=3.0)
    slow = [Entry("publishing", 10.0, id="m"), Entry("published", 14.0, id="m")]
    assert seen_trouble(slow, strike, (11.0, 14.0)) == "a publish took 4.0 s"
    assert seen_trouble([Entry("ill", 12.0, by="free-1.1", text="away")], strike, (11.0, 14.0))
    planned = Entry("said", 12.0, by="free-1.1", text="ERROR a message failed: Planted('always')")
    assert not seen_trouble([planned], strike, (11.0, 14.0))


def test_a_topic_was_deleted_when_something_that_was_confirmed_is_never_handled() -> None:
    strike, span = Strike("topic deleted", seconds=2.0), (4.0, 9.0)
    confirmed = [Entry("published", 5.0, id="m"), Entry("published", 10.0, id="later")]
    handled = [Entry("done", 6.0, id="m", group=group) for group in GROUPS]
    assert not seen_dropping([*confirmed, *handled], strike, span)
    assert seen_dropping([*confirmed, *handled[1:]], strike, span) == f"never handled: {GROUPS[0]} 1"
