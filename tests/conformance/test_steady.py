"""What must end within some seconds has them while this process runs."""

import ctypes
import time

from things_kit.testing.conformance.steady import Pulse


def test_while_the_process_stands_still_it_has_not_run() -> None:
    with Pulse() as pulse:
        began = time.monotonic()
        ctypes.PyDLL(None).usleep(300_000)  # no other thread runs meanwhile
        while pulse.ran > time.monotonic() - began - 0.15:
            time.sleep(0.01)  # until the thread has looked
        assert time.monotonic() - began >= 0.3
