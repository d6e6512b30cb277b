"""The watch over progress: a client library's promise to come back is not relied on."""

import asyncio
from collections.abc import Callable
from typing import Final

from things_kit.engine.driver import ConnectionLost
from things_kit.engine.inbox import ConsumerInbox

IDLE: Final = 30.0
"""Seconds without a message after which the broker is asked whether there should be one."""

LOOK: Final = 5.0
"""Seconds between two looks."""

ANSWER: Final = 5.0
"""Seconds that the broker may take to answer; what does not answer is seen by others."""


class Stalled(ConnectionLost):
    """A receiver gets nothing though it should."""


async def watch(inbox: ConsumerInbox, excused: Callable[[], bool]) -> None:
    """Find a receiver that gets nothing though it should, and end it: the pump subscribes anew.

    `excused` says whether nothing is asked for at the moment. Raises Stalled, or what the receiver raises.
    """
    loop = asyncio.get_running_loop()
    quiet_since, missed = loop.time(), False
    while True:
        await asyncio.sleep(LOOK)
        if excused():
            quiet_since, missed = loop.time(), False
            continue
        quiet_since = max(quiet_since, inbox.last_arrival)
        if loop.time() - quiet_since < IDLE:
            continue
        overdue = await _overdue(inbox)
        if not overdue or inbox.last_arrival > quiet_since or excused():
            missed = False
            continue
        if missed:
            silence = loop.time() - quiet_since
            raise Stalled(f"nothing has come for {silence:.0f} s, though {overdue} messages wait for it")
        missed = True  # they may have come this very moment: once more


async def _overdue(inbox: ConsumerInbox) -> int | None:
    try:
        async with asyncio.timeout(ANSWER):
            return await inbox.receiver.overdue()
    except TimeoutError:
        return None
