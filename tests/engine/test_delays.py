import asyncio

from tests.engine.scenario import virtual
from things_kit import Message
from things_kit.engine.delays import Delays
from things_kit.engine.driver import Delivery


def delivery(value: str) -> Delivery:
    return Delivery(Message("t", value.encode()))


class Due:
    def __init__(self) -> None:
        self.seen: list[tuple[float, bytes]] = []
        self.delays = Delays(
            lambda each: self.seen.append((asyncio.get_running_loop().time(), each.message.value))
        )


@virtual
async def test_each_is_due_at_its_time_however_they_were_held() -> None:
    due = Due()
    for value, wait in (("c", 30.0), ("a", 10.0), ("d", 40.0), ("b", 20.0), ("now", 0.0)):
        due.delays.hold(delivery(value), wait)
    await asyncio.sleep(100)
    assert due.seen == [(0, b"now"), (10, b"a"), (20, b"b"), (30, b"c"), (40, b"d")]


@virtual
async def test_of_two_that_are_due_at_once_the_first_to_come_goes_first() -> None:
    due = Due()
    for n in range(10):
        due.delays.hold(delivery(str(n)), 5.0)
    await asyncio.sleep(6)
    assert [value for _, value in due.seen] == [str(n).encode() for n in range(10)]


@virtual
async def test_what_is_dropped_is_never_due_and_the_rest_is() -> None:
    due = Due()
    for n in range(4):
        due.delays.hold(delivery(str(n)), 10.0 * n + 10)
    dropped = due.delays.drop(lambda each: each.message.value in {b"0", b"2"})
    assert [each.message.value for each in dropped] == [b"0", b"2"]
    await asyncio.sleep(100)
    assert due.seen == [(20, b"1"), (40, b"3")]


@virtual
async def test_what_is_cleared_is_never_due() -> None:
    due = Due()
    due.delays.hold(delivery("1"), 10.0)
    due.delays.clear()
    due.delays.hold(delivery("2"), 20.0)
    await asyncio.sleep(100)
    assert due.seen == [(20, b"2")]


@virtual
async def test_what_waits_for_one_moment_keeps_its_order_though_it_was_measured_at_different_times() -> None:
    due = Due()
    for _ in range(2):  # a moment that is over leaves nothing behind
        moment = 1000.0
        for n, wait in enumerate((5.0, 5.00001, 4.99999)):
            due.delays.hold(Delivery(Message("t", b"%d" % n), due=moment), wait, moment)
        due.delays.hold(delivery("before"), 4.0)
        await asyncio.sleep(6)
        assert [value for _, value in due.seen] == [b"before", b"0", b"1", b"2"]
        due.seen.clear()
