"""Messages that kill their process: line 51."""

import pytest

from things_kit import RetryPolicy
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.conformance.worker import DIE


def _counts(stage: Stage) -> bool:
    """Whether the broker counts deliveries to processes that died."""
    return bool(getattr(stage.capabilities, "suspects", stage.capabilities.attempts))


class SuspectSuite(Suite):
    """Who kills its process again and again is put aside; who was only near it is not."""

    @pytest.mark.timeout(180)
    async def test_a_message_that_kills_its_process_is_put_aside_and_its_neighbours_are_not(
        self, stage: Stage
    ) -> None:
        """Line 51: the dead letter says `ProcessDied`; what was in flight beside it is handled."""
        if not _counts(stage):
            pytest.skip(
                "this broker counts no deliveries: a message that kills its process comes again for ever"
            )
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        others = await stage.publish(topic, b"1", b"2", b"3", b"4")
        [fatal] = await stage.publish(topic, DIE)
        others += await stage.publish(topic, b"5", b"6", b"7")
        dead = Recorder()
        await stage.consume(f"{topic}-dlq", stage.group("undertaker"), dead, dead_letter=None)
        workers = []
        for _ in range(8):
            worker = await stage.worker(topic, group, concurrency=4, delay=0.3, attempts=2)
            workers.append(worker)
            await eventually(
                lambda: not worker.alive or dead.done,  # noqa: B023
                2 * stage.patience,
                "the process dies, or the message is put aside",
            )
            if dead.done:
                break
        handled = {id_ for worker in workers for id_ in worker.history.ids("done")}
        assert [message.id for message in dead.done] == [fatal.id], f"{len(workers)} processes died of it"
        assert dead.done[0].headers["error-type"] == "ProcessDied"

        def missing() -> set[str | None]:
            done = {id_ for worker in workers for id_ in worker.history.ids("done")}
            return {message.id for message in others} - done

        await eventually(lambda: not missing(), 2 * stage.patience, "all others are handled")
        await stage.until_lag(topic, group, 0)
        assert handled
        assert len(dead.done) == 1

    async def test_stops_and_starts_convict_nobody(self, stage: Stage) -> None:
        """Line 51: a message that ten deployments gave back is no suspect, and keeps its first attempt's chances."""
        topic, group = stage.topic(), stage.group()
        once = RetryPolicy(attempts=2, first=0.02, jitter=0.0)
        gate = Gate()
        recorder = Recorder(gate)
        dead = Recorder()
        await stage.consume(f"{topic}-dlq", stage.group("undertaker"), dead, dead_letter=None)
        await stage.broker.declare(topic, groups=[group])
        sent = await stage.publish(topic, b"1", b"2", b"3")
        for number in range(10):
            began = len(recorder.began)
            consumer = await stage.consume(
                topic, group, recorder, retry=once, concurrency=2, drain_timeout=0.0
            )
            await recorder.until_began(began + 1, stage.patience)
            await consumer.stop()
            assert not dead.done, f"after {number + 1} stops something was put aside"
        gate.open()
        await stage.consume(topic, group, recorder, retry=once, concurrency=2)
        await eventually(
            lambda: recorder.ids == {message.id for message in sent}, stage.patience, "all are handled"
        )
        await stage.until_lag(topic, group, 0)
        assert not dead.done
