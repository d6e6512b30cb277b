"""What the suite has about outages, for a server that runs as a process and that no other test uses."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.operations import OperationsSuite
from things_kit.testing.conformance.progress import FreezeSuite
from things_kit.testing.conformance.requests import RequestSuite
from things_kit.testing.conformance.stopping import StoppingSuite
from things_kit.testing.conformance.survival import SurvivalSuite
from things_kit.testing.conformance.target import Hook, Target
from things_kit.testing.servers.process import ServerProcess
from things_kit.testing.servers.relay import Relay

Outage: TypeAlias = Literal["paused", "killed", "stopped"]
"""How a server is taken away: it stands still, is ended the hard way, or is asked to end."""


class OutageSuite(Suite):
    """Lines 10, 13, 40, 42, 49 and 60, while the broker is away: give it a fixture `target` made by `outage`."""

    test_nothing_is_lost = SurvivalSuite.test_a_broker_that_goes_away_and_returns_loses_nothing
    test_a_consumer_stops = SurvivalSuite.test_a_consumer_stops_while_it_reconnects
    test_all_ends_in_time = (
        StoppingSuite.test_a_consumer_stops_and_its_broker_closes_in_time_though_nobody_answers
    )
    test_a_request_is_answered = RequestSuite.test_a_request_survives_an_outage
    test_members_go_on = FreezeSuite.test_every_member_goes_on_after_freezes
    test_publish_waits = OperationsSuite.test_publish_waits_out_an_outage
    test_publish_fails_in_time = OperationsSuite.test_publish_fails_in_time_when_the_outage_lasts
    test_health = OperationsSuite.test_health_turns_bad_when_the_broker_is_gone_and_good_again


@asynccontextmanager
async def outage(
    server: ServerProcess, how: Outage, *, url: str, patience: float = 30.0, outlasts: float = 5.0
) -> AsyncIterator[Target]:
    """A target that is taken away like this. Afterwards the server runs again, whatever the test did."""
    if how == "paused":
        target = Target(
            url=url,
            patience=patience,
            outlasts=outlasts,
            pause=_hook(server.pause),
            resume=_hook(server.resume),
        )
    else:
        away = server.kill if how == "killed" else server.stop
        target = Target(url=url, patience=patience, kill=_hook(away), restart=_hook(server.start))
    try:
        yield target
    finally:
        server.resume()
        await asyncio.to_thread(server.start)


def falling_silent(relay: Relay, url: str, *, patience: float = 15.0) -> Target:
    """A target behind a relay, whose connections can fall silent without a reset: for `halfopen.HalfOpenSuite`."""

    async def half_open() -> None:
        relay.half_open()

    return Target(url=url, patience=patience, half_open=half_open, cut=relay.cut)


def _hook(action: Callable[[], Any]) -> Hook:
    async def act() -> None:
        await asyncio.to_thread(action)

    return act
