"""Every move of a delivery's state is held against the table of legal moves, while any test of the engine runs."""

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from things_kit.engine.driver import Delivery
from things_kit.engine.state import MOVES, State


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
