"""What handlers did and when, and whether that keeps the order that was promised."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["began", "done", "failed", "killed"]


class Event(msgspec.Struct, frozen=True):
    """One step of one handling attempt. Processes of one machine share the monotonic clock of `at`."""

    kind: Kind
    id: str
    attempt: int = 1
    worker: str = ""
    at: float = 0.0


class History:
    """The events of one or more handlers, in the order in which they happened."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: Kind, id: str, attempt: int = 1, worker: str = "") -> None:  # noqa: A002 - the message's id
        """Write down what happens now."""
        self.events.append(Event(kind, id, attempt, worker, time.monotonic()))

    def ids(self, kind: Kind) -> list[str]:
        """The ids of the events of this kind, in order."""
        return [event.id for event in self.events if event.kind == kind]

    def duplicates(self) -> dict[str, int]:
        """Ids that were handled to the end more than once."""
        return {id_: count for id_, count in Counter(self.ids("done")).items() if count > 1}


def merged(histories: Iterable[History]) -> History:
    """The histories of several workers as one, by their common clock."""
    whole = History()
    whole.events = sorted(
        (event for history in histories for event in history.events), key=lambda event: event.at
    )
    return whole


def assert_lanes(
    history: History, lanes: Mapping[object, Sequence[str]], *, attempts: int | None = None
) -> None:
    """Assert that each lane's messages were handled one after another, in order, through failures and kills.

    A message is settled when it was done once, or failed in its last attempt. No message may begin before all earlier
    ones of its lane are settled, and none while another of its lane runs.

    Raises:
        AssertionError: With the lane, the message and the events before it.
    """
    place = {id_: (lane, index) for lane, ids in lanes.items() for index, id_ in enumerate(ids)}
    settled: dict[object, set[int]] = defaultdict(set)
    running: dict[object, dict[str, str]] = defaultdict(dict)
    for number, event in enumerate(history.events):
        if event.kind == "killed":
            for of_lane in running.values():
                for id_ in [id_ for id_, worker in of_lane.items() if worker == event.worker]:
                    del of_lane[id_]
            continue
        lane, index = place[event.id]
        if event.kind == "began":
            missing = [lanes[lane][i] for i in range(index) if i not in settled[lane]]
            if running[lane] or missing:
                story = _story(history.events[: number + 1], lanes[lane])
                assert not running[lane], f"two messages of lane {lane!r} run at once: {story}"
                assert not missing, (
                    f"{event.id} of lane {lane!r} began before {missing} was finished: {story}"
                )
            running[lane][event.id] = event.worker
            continue
        running[lane].pop(event.id, None)
        if event.kind == "done" or (attempts is not None and event.attempt >= attempts):
            settled[lane].add(index)


def _story(events: Sequence[Event], ids: Sequence[str]) -> str:
    told = [event for event in events if event.id in set(ids) or event.kind == "killed"]
    return " | ".join(
        f"{event.kind} {event.id}#{event.attempt} {event.worker}".strip() for event in told[-12:]
    )
