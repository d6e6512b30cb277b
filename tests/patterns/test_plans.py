"""Planned times."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from things_kit import ConfigError
from things_kit.patterns.plans import plan_of

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_intervals_count_from_the_epoch() -> None:
    plan = plan_of(timedelta(minutes=5), "UTC")
    assert plan.following(at("2026-11-30T07:02:11+00:00")) == at("2026-11-30T07:05:00+00:00")
    assert plan.following(at("2026-11-30T07:05:00+00:00")) == at("2026-11-30T07:10:00+00:00")
    assert plan.latest(at("2026-11-30T07:05:00+00:00")) == at("2026-11-30T07:05:00+00:00")
    assert plan.latest(at("2026-11-30T07:04:59.999+00:00")) == at("2026-11-30T07:00:00+00:00")


def test_cron_counts_in_its_zone() -> None:
    plan = plan_of("0 9 * * MON-FRI", "Europe/Berlin")
    assert plan.following(at("2026-11-27T08:00:00+00:00")) == at(
        "2026-11-30T08:00:00+00:00"
    )  # over a weekend
    assert plan.latest(at("2026-11-30T08:00:00+00:00")) == at("2026-11-30T08:00:00+00:00")
    assert plan.latest(at("2026-11-30T07:59:59+00:00")) == at("2026-11-27T08:00:00+00:00")


def run_of(plan: Any, start: str, end: str) -> list[str]:
    times, now = [], at(start)
    while (now := plan.following(now)) < at(end):
        times.append(now.astimezone(BERLIN).isoformat())
    return times


def test_a_daily_job_runs_once_on_the_days_on_which_clocks_change() -> None:
    plan = plan_of("30 2 * * *", "Europe/Berlin")
    spring = run_of(plan, "2026-03-28T12:00:00+00:00", "2026-03-30T12:00:00+00:00")
    autumn = run_of(plan, "2026-10-24T12:00:00+00:00", "2026-10-26T12:00:00+00:00")
    assert [time[:10] for time in spring] == ["2026-03-29", "2026-03-30"]
    assert [time[:10] for time in autumn] == ["2026-10-25", "2026-10-26"]


def test_an_hourly_job_runs_each_real_hour() -> None:
    plan = plan_of("0 * * * *", "Europe/Berlin")
    autumn = run_of(plan, "2026-10-24T23:30:00+00:00", "2026-10-25T04:30:00+00:00")
    assert len(autumn) == len(set(autumn)) == 5


@pytest.mark.parametrize(
    ("when", "zone"),
    [
        ("* * *", "UTC"), ("61 * * * *", "UTC"), ("0 0 30 2 *", "UTC"), ("* * * * *", "Mars/Olympus"),
        (timedelta(0), "UTC"), (timedelta(days=400), "UTC"), (timedelta(1), "Mars/Olympus"), (5, "UTC"), (None, "UTC"), ("* * * * *", None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_plan_is_said(when: Any, zone: Any) -> None:
    with pytest.raises(ConfigError):
        plan_of(when, zone)
