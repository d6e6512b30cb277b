"""Tests of leases and times are begun anew where this process stood still, and only there."""

import ctypes
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from things_kit.testing.conformance import Target
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.steady import STILL, TRIES, while_it_runs


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage(Target(url=f"memory://{uuid4().hex}", shared=False)) as stage:
        yield stage


class Sample:
    """A test of a suite that fails as often as it is told, and may stand still before."""

    def __init__(self, fails: int, *, still: bool) -> None:
        self.topics: list[str] = []
        self._fails = fails
        self._still = still

    @while_it_runs
    async def test(self, stage: Stage) -> None:
        self.topics.append(stage.topic())
        if self._still:
            ctypes.PyDLL(None).usleep(int(1.5 * STILL * 1e6))  # no other thread runs meanwhile
        assert len(self.topics) > self._fails, "as told"


async def test_what_fails_while_the_process_stands_still_is_begun_anew_with_names_of_its_own(
    stage: Stage,
) -> None:
    sample = Sample(1, still=True)
    await sample.test(stage=stage)
    assert len(set(sample.topics)) == 2


async def test_what_fails_while_the_process_runs_has_failed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "things_kit.testing.conformance.steady.STILL", 60.0
    )  # a busy machine may make it stand still
    sample = Sample(1, still=False)
    with pytest.raises(AssertionError, match="as told"):
        await sample.test(stage=stage)
    assert len(sample.topics) == 1


async def test_what_fails_each_time_has_failed(stage: Stage) -> None:
    sample = Sample(TRIES, still=True)
    with pytest.raises(AssertionError, match="as told"):
        await sample.test(stage=stage)
    assert len(sample.topics) == TRIES
