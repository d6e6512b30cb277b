"""What a soak will do, what is written down of it, and how it is shown."""

from itertools import islice
from pathlib import Path

from things_kit.testing.soak import Entry, Journal, Subject, judge, read, steps, write_timeline
from things_kit.testing.soak.faults import faults_of
from things_kit.testing.soak.plan import GROUPS, SHARES, fate_of
from things_kit.testing.soak.records import Follower
from things_kit.testing.soak.tally import Tally

SUBJECT = Subject(name="stone", url="stone://", faults={"flood": (lambda: None, lambda: None)})


def test_the_same_seed_has_the_same_faults_and_another_has_others() -> None:
    first, again, other = (list(islice(steps(SUBJECT, seed), 40)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_fault_that_is_possible_comes_before_any_comes_again() -> None:
    number = len(faults_of(SUBJECT))
    done = [step.strike.fault for step in islice(steps(SUBJECT, 1), number) if step.strike]
    assert sorted(done) == sorted(faults_of(SUBJECT))
    assert "flood" in done
    assert "broker killed" not in done, "there is no server"
    assert "topic deleted" in done
    assert "partitions added" not in done, "there are none"


def test_between_two_rounds_there_is_a_silence_longer_than_all_timeouts() -> None:
    number = len(faults_of(SUBJECT))
    *_, silence = islice(steps(SUBJECT, 1), number + 1)
    assert silence.idle
    assert silence.quiet == SUBJECT.quiet


def test_each_fate_meets_about_as_many_messages_as_it_should() -> None:
    fates = [fate_of(f"producer-1.1/{n}", "free") for n in range(20_000)]
    bounds = [0, *(up_to for up_to, _ in SHARES)]
    for (up_to, fate), below in zip(SHARES, bounds, strict=False):
        expected = 20 * (up_to - below)
        assert 0.5 * expected < fates.count(fate) < 1.5 * expected


def test_what_was_written_down_is_read_once_and_half_a_line_not_yet(tmp_path: Path) -> None:
    journal, follower = Journal(tmp_path, "free-1.1"), Follower(tmp_path)
    journal.add("ready")
    assert [entry.kind for entry in follower.news()] == ["ready"]
    with (tmp_path / "free-1.1.jsonl").open("ab") as file:
        file.write(b'{"kind":"ending","at":')
        file.flush()
        assert follower.news() == []
        file.write(b"1.5}\n")
    assert follower.news() == [Entry("ending", 1.5)]
    journal.close()


def test_a_group_has_recovered_once_it_handled_what_was_published_after_the_fault() -> None:
    tally = Tally()
    tally.add([Entry("publishing", 1.0, id="old"), Entry("published", 1.1, id="old")])
    tally.watch(since=2.0)
    tally.add([Entry("done", 2.5, id="old", group="free")])
    assert tally.recovered() == {}
    tally.add([Entry("publishing", 3.0, id="new"), Entry("done", 3.5, id="new", group="free")])
    assert tally.recovered() == {"free": 1.5}
    assert tally.left() == {"free": 0, "ordered": 1, "batch": 1, "far": 1, "results": 1}


def test_nobody_waits_for_what_was_on_a_topic_that_was_deleted() -> None:
    tally = Tally()
    for id_, at in (("before", 1.0), ("on it", 2.0), ("on it, confirmed late", 3.0), ("afterwards", 5.0)):
        tally.add([Entry("publishing", at, id=id_)])
    tally.add([Entry("published", 3.5, id=id_) for id_ in ("before", "on it")])
    tally.add([Entry("done", 3.6, id="on it", group="free")])
    tally.drop(1.5, 4.0)
    assert tally.left() == dict.fromkeys(GROUPS, 1)
    tally.add([Entry("published", 6.0, id=id_) for id_ in ("on it, confirmed late", "afterwards")])
    tally.add([Entry("done", 6.5, id="on it", group=group) for group in GROUPS])
    assert tally.left() == dict.fromkeys(GROUPS, 2)
    tally.add(
        [Entry("done", 7.0, id=id_, group=group) for id_ in ("before", "afterwards") for group in GROUPS]
    )
    assert tally.left() == dict.fromkeys(GROUPS, 0)


def test_a_run_is_judged_and_drawn_from_its_journals_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "soak")
    for text in ("declared", "rest before", "going"):
        journal.add("phase", text=text)
    journal.add("publishing", "producer-1.1/1")
    journal.add("published", "producer-1.1/1")
    for group in ("ordered", "batch", "far", "results"):
        journal.add("began", "producer-1.1/1", group=group, attempt=1)
        journal.add("done", "producer-1.1/1", group=group, attempt=1)
    journal.add("fault", "1", text="all <cut>")
    journal.add("over", "1")
    journal.add("seen", "1", text="3 of 3 connections given up")
    journal.add("recovered", "1", group="free", figures={"seconds": 2.5})
    journal.add("phase", text="finishing")
    journal.close()
    verdict = judge(tmp_path)
    assert {promise for promise, findings in verdict.broken.items() if findings} == {
        "nothing confirmed is lost"
    }
    assert not verdict.kept
    [line] = verdict.faults
    assert (line.times, line.seen, line.worst) == (1, 1, 2.5)
    page = write_timeline(tmp_path, "a run", verdict).read_text()
    assert "all &lt;cut&gt;" in page
    assert "was never begun" in page
    assert read(tmp_path)[-1].text == "finishing"
