from collections import deque
from itertools import count
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from things_kit import Message
from things_kit.engine.driver import Delivery
from things_kit.engine.lanes import Lanes


def delivery(value: str, key: str | None = None, partition: int | None = None) -> Delivery:
    return Delivery(Message("t", value.encode(), None if key is None else key.encode(), partition=partition))


class Fixture:
    def __init__(self, ordering: str = "key") -> None:
        self.ready: deque[Delivery] = deque()
        self.lanes = Lanes(ordering, self.ready)  # type: ignore[arg-type]
        self.inbox: Any = None

    def admit(self, *deliveries: Delivery) -> list[Delivery]:
        return self.lanes.admit(deliveries, self.inbox)

    @property
    def values(self) -> list[bytes]:
        return [each.message.value for each in self.ready]


@pytest.fixture
def lanes() -> Fixture:
    return Fixture()


def test_one_of_a_lane_is_ready_at_a_time(lanes: Fixture) -> None:
    first, second, third = delivery("1", "k"), delivery("2", "k"), delivery("3", "k")
    assert lanes.admit(first, second, third, delivery("x", "other")) == []
    assert lanes.values == [b"1", b"x"]
    lanes.ready.popleft()
    lanes.lanes.advance(first)
    assert lanes.values == [b"x", b"2"]


def test_without_a_key_all_are_ready(lanes: Fixture) -> None:
    lanes.admit(delivery("1"), delivery("2"))
    assert lanes.values == [b"1", b"2"]


def test_an_empty_key_is_a_key(lanes: Fixture) -> None:
    lanes.admit(delivery("1", ""), delivery("2", ""))
    assert lanes.values == [b"1"]


def test_a_partition_is_a_lane() -> None:
    lanes = Fixture("partition")
    lanes.admit(delivery("1", "a", 0), delivery("2", "b", 0), delivery("3", "c", 1))
    assert lanes.values == [b"1", b"3"]


def test_the_whole_topic_is_a_lane_where_there_are_no_partitions() -> None:
    lanes = Fixture("partition")
    lanes.admit(delivery("1", "a"), delivery("2"))
    assert lanes.values == [b"1"]


def test_nothing_is_a_lane_without_order() -> None:
    lanes = Fixture("none")
    lanes.admit(delivery("1", "a", 0), delivery("2", "a", 0))
    assert lanes.values == [b"1", b"2"]


def test_what_arrives_of_a_parked_lane_goes_back(lanes: Fixture) -> None:
    head, behind, late = delivery("1", "k"), delivery("2", "k"), delivery("3", "k")
    lanes.admit(head, behind)
    lanes.ready.popleft()
    assert lanes.lanes.park(head) == [behind]
    assert lanes.admit(late, delivery("x", "other")) == [late]
    lanes.lanes.unpark([b"k"])
    assert lanes.admit(late) == []
    assert lanes.values == [b"x", b"3"]


def test_unparking_a_lane_that_is_in_use_changes_nothing(lanes: Fixture) -> None:
    lanes.admit(delivery("1", "k"))
    lanes.lanes.unpark([b"k", b"never", None])
    lanes.admit(delivery("2", "k"))
    assert lanes.values == [b"1"]


def test_a_delivery_without_lane_parks_nothing(lanes: Fixture) -> None:
    head = delivery("1")
    lanes.admit(head, delivery("2"))
    assert lanes.lanes.park(head) == []


def test_taking_more_gives_those_behind_in_order_and_frees_the_lane_once(lanes: Fixture) -> None:
    all_of_it = [delivery(str(n), "k") for n in range(5)]
    lanes.admit(*all_of_it)
    head = lanes.ready.popleft()
    assert lanes.lanes.take_more(head, 2) == all_of_it[1:3]
    lanes.lanes.advance(all_of_it[0])
    lanes.lanes.advance(all_of_it[2])
    assert lanes.values == []
    lanes.lanes.advance(all_of_it[1])
    assert lanes.values == [b"3"]


def test_what_is_put_behind_comes_before_what_was_queued(lanes: Fixture) -> None:
    all_of_it = [delivery(str(n), "k") for n in range(5)]
    lanes.admit(*all_of_it)
    head = lanes.ready.popleft()
    taken = lanes.lanes.take_more(head, 2)
    lanes.lanes.put_behind(taken)
    order = []
    while True:
        lanes.lanes.advance(head)
        if not lanes.ready:
            break
        head = lanes.ready.popleft()
        order.append(head.message.value)
    assert order == [b"1", b"2", b"3", b"4"]


def test_dropping_a_head_that_was_only_ready_lets_its_lane_go_on(lanes: Fixture) -> None:
    first, second = delivery("1", "k"), delivery("2", "k")
    lanes.admit(first, second)
    lanes.lanes.drop(lambda each: each is first)
    assert lanes.values == [b"2"]


def test_dropping_what_is_queued_leaves_the_head(lanes: Fixture) -> None:
    first, second, third = delivery("1", "k"), delivery("2", "k"), delivery("3", "k")
    lanes.admit(first, second, third)
    lanes.lanes.drop(lambda each: each is second)
    lanes.ready.popleft()
    lanes.lanes.advance(first)
    assert lanes.values == [b"3"]


def test_dropping_keeps_only_the_lanes_of_what_is_busy_closed(lanes: Fixture) -> None:
    first, other = delivery("1", "k"), delivery("x", "other")
    lanes.admit(first, delivery("2", "k"), other)
    lanes.ready.popleft()
    lanes.lanes.drop(lambda each: each is not first)
    lanes.admit(delivery("1 again", "k"), delivery("x again", "other"))
    assert lanes.values == [b"x again"]
    lanes.lanes.advance(first)
    assert lanes.values == [b"x again", b"1 again"]


def test_dropping_all_but_several_busy_of_a_lane_frees_it_with_the_last(lanes: Fixture) -> None:
    all_of_it = [delivery(str(n), "k") for n in range(2)]
    lanes.admit(*all_of_it)
    lanes.lanes.take_more(lanes.ready.popleft(), 5)
    lanes.lanes.drop(lambda each: each not in all_of_it)
    lanes.admit(delivery("0 again", "k"), delivery("1 again", "k"))
    for each in all_of_it:
        lanes.lanes.advance(each)
    assert lanes.values == [b"0 again"]


class LanesMachine(RuleBasedStateMachine):
    """Deliveries of three lanes through all that can happen to them, against a list of what must come next."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: deque[Delivery] = deque()
        self.lanes = Lanes("key", self.ready)
        self.numbers = count()
        self.busy: list[list[Delivery]] = []  # groups of one lane that are handled together
        self.lost: list[list[Delivery]] = []  # the same, whose connection is gone: they can only end
        self.expected: dict[bytes, list[Delivery]] = {b"a": [], b"b": [], b"c": []}
        self.parked: set[bytes] = set()

    def lane(self, each: Delivery) -> bytes:
        assert each.message.key is not None
        return each.message.key

    @rule(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
    def arrive(self, keys: list[str]) -> None:
        arrived = [delivery(str(next(self.numbers)), key) for key in keys]
        strays = self.lanes.admit(arrived, cast("Any", None))
        assert strays == [each for each in arrived if self.lane(each) in self.parked]
        for each in arrived:
            if each not in strays:
                self.expected[self.lane(each)].append(each)

    @precondition(lambda self: self.ready)
    @rule(room=st.integers(0, 3))
    def take(self, room: int) -> None:
        head = self.ready.popleft()
        group = [head, *self.lanes.take_more(head, room)]
        expected = self.expected[self.lane(head)]
        assert group == expected[: len(group)]
        assert len(group) == min(len(expected), room + 1)
        del expected[: len(group)]
        self.busy.append(group)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        group = self.busy.pop(data.draw(st.integers(0, len(self.busy) - 1)))
        for each in data.draw(st.permutations(group)):
            self.lanes.advance(each)

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def finish_lost(self, data: st.DataObject) -> None:
        group = self.lost.pop(data.draw(st.integers(0, len(self.lost) - 1)))
        for each in data.draw(st.permutations(group)):
            self.lanes.advance(each)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def fail_together(self, data: st.DataObject) -> None:
        """The first goes first again, at once; the others behind it."""
        group = self.busy.pop(data.draw(st.integers(0, len(self.busy) - 1)))
        if len(group) > 1:
            self.lanes.put_behind(group[1:])
        self.ready.append(group[0])
        self.expected[self.lane(group[0])][:0] = group

    @precondition(lambda self: any(len(group) == 1 for group in self.busy))
    @rule()
    def park(self) -> None:
        (head,) = group = next(group for group in self.busy if len(group) == 1)
        self.busy.remove(group)
        assert self.lanes.park(head) == self.expected[self.lane(head)]
        self.expected[self.lane(head)].clear()
        self.parked.add(self.lane(head))

    @rule()
    def unpark(self) -> None:
        self.lanes.unpark(self.parked)
        self.parked.clear()

    @rule(parity=st.integers(0, 1))
    def drop(self, parity: int) -> None:
        self.lanes.drop(lambda each: int(each.message.value) % 2 == parity)
        for expected in self.expected.values():
            expected[:] = [each for each in expected if int(each.message.value) % 2 != parity]

    @rule()
    def lose(self) -> None:
        self.lost += self.busy
        self.busy = []
        kept = {each for group in self.lost for each in group}
        self.lanes.drop(lambda each: each not in kept)
        self.lanes.unpark(self.parked)
        for expected in self.expected.values():
            expected.clear()
        self.parked.clear()

    @invariant()
    def of_a_lane_one_is_ready_or_one_group_is_busy(self) -> None:
        begun = [*self.busy, *self.lost]
        open_lanes = [self.lane(group[0]) for group in begun] + [self.lane(each) for each in self.ready]
        assert len(open_lanes) == len(set(open_lanes))

    @invariant()
    def what_waits_waits_for_something(self) -> None:
        begun = [*self.busy, *self.lost]
        open_lanes = {self.lane(group[0]) for group in begun} | {self.lane(each) for each in self.ready}
        assert {lane for lane, expected in self.expected.items() if expected} <= open_lanes


LanesMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLanes = LanesMachine.TestCase
