"""What runs every so often: line 67."""

from datetime import UTC, datetime, timedelta

import pytest

from things_kit import UnsupportedError
from things_kit.patterns.periodic import Periodic, every
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import QUICK, Stage
from things_kit.testing.conformance.waiting import eventually

TICK = timedelta(seconds=1)
"""As short as every broker that keeps names until later can tell apart."""


class PlannedSuite(Suite):
    """A function of several processes runs once for each planned time."""

    async def test_a_function_runs_once_at_each_planned_time_or_is_refused_at_start(
        self, stage: Stage
    ) -> None:
        """Line 67: two have the same, one after another; where names cannot be kept until later, that is UnsupportedError."""
        plan = every(TICK, tz="UTC", name=stage.name("clean"), overlap="queue", catch_up="all")
        stage.sweep(plan.topic, f"{plan.topic}-dlq")
        ran: list[datetime] = []

        async def run(planned: datetime) -> None:
            assert planned <= datetime.now(UTC)
            ran.append(planned)

        for broker in (stage.broker, await stage.open()):
            firing = Periodic(broker, plan, run, retry=QUICK)
            if not (stage.capabilities.schedule_ids and stage.capabilities.schedules):
                with pytest.raises(UnsupportedError):
                    await firing.start()
                continue
            await firing.start()
            stage.consumers.append(firing.consumer)
        if not stage.consumers:
            return
        await eventually(lambda: len(ran) >= 3, stage.patience, "it ran three times")

        assert ran == sorted(set(ran))
        assert all((planned - datetime.fromtimestamp(0, UTC)) % TICK == timedelta(0) for planned in ran)
