"""What is published at once: several pages are on their way, in order, and each result is its own message's."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("nats")

from tests.engine.scenario import virtual
from things_kit.brokers.nats.connection import Answers, Outgoing
from things_kit.brokers.nats.publishing import AT_ONCE, PAGES, Row, exchanged, pages
from things_kit.engine.driver import ConnectionLost

ROUND_TRIP = 0.1


class Connection:
    """To a server that answers every page a round trip after it was sent; `lost`: it goes with that page."""

    def __init__(self, lost: int | None = None) -> None:
        self.sent: list[Answers] = []
        self.most = 0
        self._underway: set[str] = set()
        self._lost = lost

    async def begin(self, outgoing: Sequence[Outgoing]) -> Answers:
        answers = Answers(f"{len(self.sent)}", outgoing)
        self.sent.append(answers)
        self._underway.add(answers.token)
        self.most = max(self.most, len(self._underway))
        asyncio.get_running_loop().call_later(ROUND_TRIP, answers.progress.set)
        return answers

    async def answered(self, answers: Answers) -> list[Any]:
        try:
            await answers.progress.wait()
            if int(answers.token) == self._lost:
                raise ConnectionLost("the cable was cut")
        finally:
            self.forget(answers)
        return [subject for subject, _, _ in answers.outgoing]

    def forget(self, answers: Answers) -> None:
        self._underway.discard(answers.token)

    @property
    def waits(self) -> bool:
        return bool(self._underway)


def rows(count: int) -> list[Row]:
    return [(n, (f"s{n}", b"", None), 10) for n in range(count)]


async def exchange(connection: Any, count: int) -> list[Any]:
    return [
        (index, came)
        async for page, answers in exchanged(connection, pages(rows(count)))
        for (index, _, _), came in zip(page, answers, strict=True)
    ]


@virtual
async def test_a_large_batch_does_not_take_a_round_trip_for_each_page() -> None:
    connection, began = Connection(), asyncio.get_running_loop().time()
    found = await exchange(connection, 16 * AT_ONCE)
    assert found == [(n, f"s{n}") for n in range(16 * AT_ONCE)]
    assert connection.most == PAGES
    assert asyncio.get_running_loop().time() - began <= 3.5 * ROUND_TRIP
    assert not connection.waits


@virtual
async def test_where_the_connection_is_lost_nobody_waits_for_the_pages_behind_it() -> None:
    connection = Connection(lost=2)
    with pytest.raises(ConnectionLost):
        await exchange(connection, 6 * AT_ONCE)
    assert len(connection.sent) == 6
    assert not connection.waits
    await asyncio.sleep(ROUND_TRIP)
