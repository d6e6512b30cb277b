"""Every move of a delivery's state is held against the table of legal moves, while any test of the engine runs."""

import traceback
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import settings

from things_kit.engine.driver import Delivery
from things_kit.engine.state import State

MOVES: Final[dict[State, frozenset[State]]] = {
    State.READY: frozenset({State.QUEUED, State.GATHERED, State.HANDLING, State.SETTLING, State.LEAVING, State.ASIDE,
                            State.LEAVING_ASIDE, State.BACKING_OFF, State.DONE}),
    State.QUEUED: frozenset({State.READY, State.GATHERED, State.SETTLING, State.DONE}),
    State.GATHERED: frozenset({State.READY, State.QUEUED, State.HANDLING, State.SETTLING, State.GONE}),
    State.HANDLING: frozenset({State.READY, State.QUEUED, State.BACKING_OFF, State.ASIDE, State.LEAVING,
                               State.LEAVING_ASIDE, State.SETTLING, State.GONE}),
    State.BACKING_OFF: frozenset({State.READY, State.SETTLING, State.DONE}),
    State.ASIDE: frozenset({State.READY, State.QUEUED, State.LEAVING, State.SETTLING, State.DONE}),
    State.LEAVING: frozenset({State.READY, State.HANDLING, State.QUEUED, State.BACKING_OFF, State.ASIDE,
                              State.LEAVING_ASIDE, State.SETTLING, State.GONE}),
    State.LEAVING_ASIDE: frozenset({State.ASIDE, State.SETTLING, State.DONE}),
    State.SETTLING: frozenset({State.GONE, State.DONE}),
    State.GONE: frozenset({State.DONE}),
    State.DONE: frozenset(),
}  # fmt: skip
"""Which state may follow which."""

settings.register_profile("engine", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("engine")


@pytest.fixture(autouse=True)
def illegal_moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What moved as the table does not allow; a test that expects some takes them out of the list."""
    slot: Any = Delivery.__dict__["state"]
    found: list[str] = []

    def write(delivery: Delivery, new: State) -> None:
        old = slot.__get__(delivery)
        if new not in MOVES[old]:
            where = "".join(traceback.format_stack(limit=4)[:-1])
            found.append(f"{old.name} -> {new.name} of {delivery.message.value!r}, by\n{where}")
        slot.__set__(delivery, new)

    monkeypatch.setattr(Delivery, "state", property(slot.__get__, write))
    yield found
    assert not found, "\n".join(found)
