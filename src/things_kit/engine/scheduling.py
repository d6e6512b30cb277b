"""Publishing for later: what a driver keeps until it is due, and what is asked and said of it meanwhile."""

import functools
from collections.abc import Sequence
from typing import Final

from things_kit.engine.driver import Cancelling, ListingSchedules, Scheduled, Scheduling
from things_kit.engine.naming import check_name
from things_kit.engine.transmission import Sending, Transmission
from things_kit.engine.wait_topics import WaitTopics
from things_kit.messaging.errors import ConfigError, UnsupportedError
from things_kit.messaging.schedule import Schedule, check_schedule_id

MOST: Final = 2**31 - 1
"""The largest limit that is said to a broker: every one can count so far."""


def sender_of(driver: Scheduling, entries: Sequence[Scheduled]) -> Sending:
    """Sends the messages of these, or some of them, as `Driver.send` does: to come when they are due."""
    known = {id(entry.message): entry for entry in entries}
    return lambda messages: driver.schedule([known[id(message)] for message in messages])


async def cancel(transmission: Transmission, topic: str, schedule_id: str) -> bool:
    """Whether a scheduled message will not come. Raises ConfigError, UnsupportedError, BrokerUnavailable."""
    check_name("topic", topic)
    check_schedule_id(schedule_id)
    driver = scheduling(transmission, ids=True)
    if not isinstance(driver, Cancelling):
        raise _names_nothing(transmission)
    return await transmission.patiently(functools.partial(driver.cancel, topic, schedule_id))


async def schedules(transmission: Transmission, topic: str, limit: int) -> list[Schedule]:
    """What is to come, soonest first. Raises ConfigError, UnsupportedError, BrokerUnavailable."""
    check_name("topic", topic)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"limit must be a whole number from 1; it is {limit!r}")
    driver = scheduling(transmission)
    if not (isinstance(driver, ListingSchedules) and transmission.driver.capabilities.schedules):
        raise UnsupportedError(f"{transmission.url.display} cannot say what is scheduled")
    found = await transmission.patiently(functools.partial(driver.upcoming, topic, min(limit, MOST)))
    return [Schedule(entry.schedule_id, entry.due, entry.message) for entry in found]


def scheduling(transmission: Transmission, *, ids: bool = False) -> Scheduling:
    """What keeps messages until later, with `ids` by a name each: the driver, or we. Raises UnsupportedError."""
    native = transmission.driver.capabilities
    by_us = native.carried and not native.schedule_ids
    driver = WaitTopics(transmission) if by_us else transmission.driver
    if not isinstance(driver, Scheduling):
        raise UnsupportedError(f"{transmission.url.display} cannot keep a message until later")
    if ids and not native.schedule_ids:
        raise _names_nothing(transmission)
    return driver


def _names_nothing(transmission: Transmission) -> UnsupportedError:
    return UnsupportedError(
        f"{transmission.url.display} cannot name what it keeps until later: schedule_id= and cancel are not to be had"
    )
