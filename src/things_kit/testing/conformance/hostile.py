"""What others publish, and how they write header names: lines 53 and 55."""

import asyncio
from typing import Any

import pytest

from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually


class HostileSuite(Suite):
    """A group shares its topic with programs that it does not know."""

    async def test_what_the_client_library_cannot_read_does_not_stop_the_group(self, stage: Stage) -> None:
        """Line 53: it is set aside with the reason, or handed over without what cannot be read; what follows is handled."""
        if not stage.target.unreadable:
            pytest.skip("give unreadable: how another client publishes what this one cannot read")
        topic, group = stage.topic(), stage.group()
        recorder, dead = Recorder(), Recorder()
        await stage.consume(topic, group, recorder)
        await stage.consume(f"{topic}-dlq", stage.group("undertaker"), dead, dead_letter=None)
        for publish in stage.target.unreadable:
            count = len(recorder.done) + len(dead.done)
            await publish(topic)
            [after] = await stage.publish(topic, b"readable")
            await eventually(
                lambda: after.id in recorder.ids,  # noqa: B023
                stage.patience,
                f"what follows {publish} is handled",
            )
            await eventually(
                lambda: len(recorder.done) + len(dead.done) >= count + 2,  # noqa: B023
                stage.patience,
                f"{publish} is handed over or set aside",
            )
            assert all(message.headers.get("error") for message in dead.done), (
                "it was set aside without a reason"
            )
        await stage.until_lag(topic, group, 0)
        health = await stage.broker.health()
        assert health.ok, health.reason

    @pytest.mark.parametrize("name", ["content-type", "Content-Type", "CONTENT-TYPE"])
    async def test_the_content_type_is_read_in_any_case(self, stage: Stage, name: str) -> None:
        """Line 55: HTTP's names are written as people like it; a payload of a type that is not known is not taken for JSON."""
        topic = stage.topic()
        seen: list[dict[str, Any]] = []
        arrived = asyncio.Event()

        async def handle(payload: dict[str, Any]) -> None:
            seen.append(payload)
            arrived.set()

        await stage.consume(topic, stage.group(), handle)
        await stage.publish(topic, b"{}", headers={name: "application/x-of-nobody"}, key=b"k")
        await stage.publish(topic, b'{"n": 1}', headers={name: "application/json; charset=utf-8"}, key=b"k")
        await asyncio.wait_for(arrived.wait(), stage.patience)
        [dead] = await stage.dead_letters(topic, 1)
        assert seen == [{"n": 1}]
        assert dead.headers[name] == "application/x-of-nobody"
        assert dead.headers["error-type"].endswith("DecodeError")
