"""Whatever order messages finish in, only what is finished is committed, and nothing finished comes again."""

import base64
import string
import zlib
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit.engine.offsets import LIMIT, Offsets, Range, decode, encode

logs = st.lists(st.integers(0, 3), min_size=1, max_size=200).map(
    lambda gaps: [sum(gaps[: n + 1]) + n for n in range(len(gaps))]
)
"""The offsets of a partition's messages: ascending, with holes where compaction or transactions left them."""

ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), max_size=60)
"""Alternating lengths: so many unfinished, so many finished."""


def as_ranges(committed: int, lengths: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    offset = committed
    for unfinished, finished in lengths:
        start, offset = offset + unfinished, offset + unfinished + finished
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], offset)
        else:
            found.append((start, offset))
    return found


def metadata_of(packed: bytes) -> str:
    return "tk2:" + base64.b64encode(zlib.compress(packed)).decode()


def handed_out(log: Iterable[int], offsets: Offsets) -> list[int]:
    """What a consumer that goes on from a commit hands out of a log."""
    start = offsets.end or 0
    return [offset for offset in log if offset >= start and offsets.receive(offset)]


def test_nothing_is_committed_before_anything_is_known() -> None:
    assert Offsets().mark() is None


def test_a_place_without_work_is_committed_as_it_is() -> None:
    assert Offsets(7).mark() == (7, "")


def test_the_commit_stays_before_the_first_unfinished() -> None:
    offsets = Offsets()
    for offset in range(10, 15):
        assert offsets.receive(offset)
    for offset in (11, 12, 14):
        offsets.finish(offset)
    assert offsets.committable == 10
    offsets.finish(10)
    assert offsets.committable == 13
    offsets.finish(13)
    assert offsets.mark() == (15, "")


def test_a_commit_beyond_which_nothing_is_finished_needs_no_metadata() -> None:
    offsets = Offsets()
    for offset in (5, 6, 7):
        offsets.receive(offset)
    assert offsets.mark() == (5, "")


@given(logs, st.data())
def test_many_at_once_are_received_as_one_by_one(log: list[int], data: st.DataObject) -> None:
    one_by_one, at_once = Offsets(), Offsets()
    while log:
        count = data.draw(st.integers(1, len(log)))
        run, log = log[:count], log[count:]
        assert all(map(one_by_one.receive, run))
        assert at_once.receive_all(run)
        for offset in data.draw(st.sets(st.sampled_from(run))):
            one_by_one.finish(offset)
            at_once.finish(offset)
        assert at_once.mark() == one_by_one.mark()


def test_many_at_once_are_not_received_while_any_may_have_been_finished_before() -> None:
    offsets = Offsets(5, [(6, 8)])
    assert not offsets.receive_all([5, 6, 7, 8])
    assert (offsets.end, list(offsets.unfinished)) == (5, [])


def test_a_hole_in_the_log_holds_nothing_back() -> None:
    offsets = Offsets(0)
    for offset in (0, 5, 6):
        offsets.receive(offset)
    offsets.finish(0)
    assert offsets.committable == 5


def test_what_is_no_message_is_passed_over_and_never_gone_back_to() -> None:
    offsets = Offsets(5, ahead=[(6, 8), (12, 14)])
    offsets.skip(9)
    assert offsets.mark() == (9, encode(9, [(12, 14)]))
    offsets.skip(7)
    assert offsets.committable == 9
    assert handed_out(range(9, 16), offsets) == [9, 10, 11, 14, 15]


def test_finishing_twice_and_finishing_strangers_is_harmless() -> None:
    offsets = Offsets(0)
    offsets.receive(0)
    for offset in (0, 0, 99):
        offsets.finish(offset)
    assert offsets.mark() == (1, "")


def test_a_log_that_begins_anew_is_followed() -> None:
    offsets = Offsets(100)
    assert offsets.receive(0)
    assert offsets.committable == 0


@given(log=logs, data=st.data())
def test_a_restart_hands_out_exactly_what_was_not_finished(log: list[int], data: st.DataObject) -> None:
    received = data.draw(st.integers(0, len(log)))
    finished = data.draw(st.sets(st.sampled_from(log[:received]))) if received else set()
    first = Offsets(log[0])
    for offset in log[:received]:
        first.receive(offset)
    for offset in data.draw(st.permutations(sorted(finished))):
        first.finish(offset)
    mark = first.mark()
    assert mark is not None
    assert handed_out(log, Offsets.restored(*mark)) == [offset for offset in log if offset not in finished]


@given(log=logs, data=st.data())
def test_restart_upon_restart_forgets_nothing_and_never_goes_back(
    log: list[int], data: st.DataObject
) -> None:
    finished: set[int] = set()
    mark = (log[0], "")
    for _ in range(data.draw(st.integers(1, 6))):
        offsets = Offsets.restored(*mark)
        todo = [offset for offset in log if offset >= mark[0]]
        out = [offset for offset in todo[: data.draw(st.integers(0, len(todo)))] if offsets.receive(offset)]
        assert not finished & set(out), "what was finished is handed out again"
        for offset in data.draw(st.sets(st.sampled_from(out))) if out else ():
            offsets.finish(offset)
            finished.add(offset)
        following = offsets.mark()
        assert following is not None
        assert following[0] >= mark[0], "the commit goes back"
        mark = following
    assert handed_out(log, Offsets.restored(*mark)) == [offset for offset in log if offset not in finished]


@given(committed=st.integers(0, 2**60), lengths=ranges)
def test_metadata_says_what_it_was_told(committed: int, lengths: list[Range]) -> None:
    told = as_ranges(committed, lengths)
    text = encode(committed, told, limit=10**6)
    assert text.isascii()
    assert decode(committed, text) == told


@given(committed=st.integers(0, 2**40), lengths=ranges, limit=st.integers(0, 200))
def test_metadata_that_does_not_fit_keeps_the_lowest(
    committed: int, lengths: list[Range], limit: int
) -> None:
    told = as_ranges(committed, lengths)
    text = encode(committed, told, limit)
    assert len(text) <= limit
    kept = decode(committed, text)
    assert kept == told[: len(kept)]


def test_one_stuck_key_of_sixteen_fits_for_as_long_as_a_thousand_wait() -> None:
    offsets = Offsets(0)
    for offset in range(16_000):
        offsets.receive(offset)
        if offset % 16:
            offsets.finish(offset)
    mark = offsets.mark()
    assert mark is not None
    assert len(mark[1]) < LIMIT
    assert handed_out(range(16_000), Offsets.restored(*mark)) == list(range(0, 16_000, 16))


@given(
    metadata=st.none()
    | st.text()
    | st.text(string.printable).map(lambda text: "tk2:" + text)
    | st.binary().map(metadata_of)
    | st.lists(st.integers(0, 2**64 - 1)).map(lambda numbers: metadata_of(msgspec.msgpack.encode(numbers)))
)
def test_metadata_of_strangers_is_passed_over(metadata: str | None) -> None:
    for start, stop in decode(5, metadata):
        assert 5 <= start < stop


@pytest.mark.parametrize(
    "metadata", ["", "consumer-1@host", "tk2:", "tk2:????", "tk2:AAAA", "tk2:eJybdP4/FDACADo8CVs="]
)
def test_metadata_that_says_nothing(metadata: str) -> None:
    assert decode(5, metadata) == []


def test_metadata_that_would_unpack_to_more_than_a_mebibyte_is_not_unpacked() -> None:
    """It is none of ours, and a few hundred bytes can unpack to what fills the memory."""
    numbers = [1] * 2_000_000
    bomb = metadata_of(msgspec.msgpack.encode(numbers))
    assert len(bomb) < 4096
    assert decode(5, bomb) == []
