"""What stopped consumers leave in memory: line 56."""

import contextlib
import ctypes
import gc
from pathlib import Path

import pytest

from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.stage import Stage

MEGABYTE = 1_000_000

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_nothing_for_reuse() -> None:
    """Have large blocks go back to the system as soon as they are freed.

    Else glibc keeps some megabytes of them in each of its arenas, of which a process gets the more the more threads
    it has had: that grows for a while, and is no leak.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has it
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 65_536)
        libc.mallopt(M_TRIM_THRESHOLD, 65_536)


def resident() -> int:
    """How many bytes of memory this process has; what is only kept for reuse is given back before."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        pytest.skip("this system does not say how much memory a process has")
    return pages * 4096


class FootprintSuite(Suite):
    """A process that starts and stops consumers for months needs no more memory than on its first day."""

    async def test_stopped_consumers_leave_no_memory_behind(self, stage: Stage) -> None:
        """Line 56: twenty starts and stops with large messages, handled, in a handler and waiting."""
        topic, group = stage.topic(), stage.group()
        size = min(MEGABYTE, (stage.capabilities.max_message_bytes or MEGABYTE) - 1024)
        await stage.broker.declare(topic, groups=[group])
        keep_nothing_for_reuse()
        gc.freeze()  # what there is already need not be gone through at each look: that takes longer than all the rest
        try:
            await self._start_and_stop(stage, topic, group, size)
        finally:
            gc.unfreeze()

    async def _start_and_stop(self, stage: Stage, topic: str, group: str, size: int) -> None:
        rounds = 20 if stage.target.shared else 100
        quarter = rounds // 4
        sizes: list[int] = []
        for number in range(rounds):
            await self._round(stage, topic, group, bytes([ord("a") + number % 26]) * size)
            sizes.append(resident())
        # The most of the first and the least of the last: what other threads of the process have for a moment is no leak
        grown, later = min(sizes[-quarter:]) - max(sizes[:quarter]), rounds - 2 * quarter
        assert grown < later * 3 * size / 4, f"{grown / MEGABYTE:.0f} MB more after {later} starts and stops"

    async def _round(self, stage: Stage, topic: str, group: str, value: bytes) -> None:
        """Handle three messages, of which two wait for their turn while the consumer is stopped and started again."""
        gate = Gate(passing=lambda message: message.headers["n"] == "0")
        for n in range(3):
            await stage.publish(topic, value, headers={"n": str(n)}, key=b"k")
        recorder = Recorder(gate)
        consumer = await stage.consume(topic, group, recorder, drain_timeout=0.0)
        await recorder.until_began(2, stage.patience)
        await consumer.stop()
        stage.consumers.clear()
        rest = Recorder()
        consumer = await stage.consume(topic, group, rest)
        await rest.until_done(2, stage.patience)
        await stage.until_lag(topic, group, 0)
        await consumer.stop()
        stage.consumers.clear()
