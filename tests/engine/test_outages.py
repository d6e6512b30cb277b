"""What is logged of a broker that goes away and comes back."""

import asyncio

import pytest

from things_kit.engine.outages import Outages
from things_kit.testing import run_virtual


async def flap(outages: Outages, times: int, pause: float) -> None:
    for number in range(times):
        outages.lasts(OSError(f"refused {number}"))
        outages.ended()
        await asyncio.sleep(pause)


def test_an_outage_and_its_end_are_logged_once_however_often_it_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def outage() -> None:
        outages = Outages("orders as billing")
        outages.ended()
        for _ in range(1000):
            outages.lasts(OSError("refused"))
            await asyncio.sleep(1)
        outages.ended()
        outages.ended()

    with caplog.at_level("INFO"):
        run_virtual(outage())
    assert caplog.messages == [
        "orders as billing: the broker is away: refused",
        "orders as billing: back",
    ]


def test_a_broker_that_flaps_is_reported_once_a_minute_with_how_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_virtual(flap(Outages("orders as billing"), times=130, pause=1))
    assert caplog.messages == [
        "orders as billing: the broker is away: refused 0",
        "orders as billing: the broker is away, 60 times since the last report: refused 60",
        "orders as billing: the broker is away, 60 times since the last report: refused 120",
    ]


def test_an_outage_that_lasts_is_reported_though_it_began_in_a_quiet_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def outage() -> None:
        outages = Outages("orders as billing")
        await flap(outages, 2, pause=1)
        for _ in range(100):
            outages.lasts(OSError("refused for long"))
            await asyncio.sleep(1)

    run_virtual(outage())
    assert caplog.messages[1:] == [
        "orders as billing: the broker is away, 2 times since the last report: refused for long"
    ]
