"""What there is at a broker, for those who only look: nothing is created by it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from things_kit.engine.driver import Listing
from things_kit.engine.naming import EPHEMERAL, REPLIES
from things_kit.engine.retry_topics import is_retry_topic
from things_kit.engine.wait_topics import is_wait_topic
from things_kit.messaging.errors import ThingsKitError, UnsupportedError

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker

SHOWN: Final = 20
"""Names that are listed where one is missing."""


class MissingError(ThingsKitError):
    """There is no topic, or no group, of a name: a sentence that says which there are."""


class GroupRow(msgspec.Struct, frozen=True):
    """A group of a topic, and what it has not acknowledged; None where the broker cannot say."""

    topic: str
    group: str | None
    lag: int | None


async def topics_of(broker: "Broker") -> list[str]:
    """The names of all topics, but for those that the engine keeps for retries, replies and what comes later.

    Raises:
        UnsupportedError: The broker does not tell names.
    """
    transmission = broker.transmission
    driver = transmission.driver
    if not isinstance(driver, Listing):
        raise UnsupportedError(
            f"{broker.url.display} does not tell which topics there are: ask its own tools"
        )
    return sorted(
        name
        for name in set(await transmission.patiently(driver.topics))
        if not is_retry_topic(name) and not is_wait_topic(name) and not name.startswith(REPLIES)
    )


async def check_topic(broker: "Broker", topic: str) -> None:
    """Raise MissingError, with the names of those that there are, if there is no such topic."""
    try:
        known = await topics_of(broker)
    except UnsupportedError:
        if await broker.transmission.has_topic(topic):
            return
        raise MissingError(f"there is no topic {topic!r}") from None
    if topic not in known and not await broker.transmission.has_topic(topic):
        raise MissingError(f"there is no topic {topic!r}{_listed(known)}")


async def check_group(broker: "Broker", topic: str, group: str) -> None:
    """Raise MissingError if the broker tells of the topic's groups, and this is none of them."""
    transmission = broker.transmission
    driver = transmission.driver
    if not isinstance(driver, Listing):
        return
    known = (await transmission.patiently(lambda: driver.groups([topic]))).get(topic, ())
    if group not in known:
        raise MissingError(f"{topic} has no group {group!r}{_listed(_lasting(known))}")


async def overview(broker: "Broker") -> list[GroupRow]:
    """All topics, each with its groups and how far they are behind; one without groups has a row too."""
    transmission = broker.transmission
    driver, topics = transmission.driver, await topics_of(broker)
    assert isinstance(driver, Listing)  # noqa: S101 - else it could not have named its topics
    groups = await transmission.patiently(lambda: driver.groups(topics))
    rows: list[GroupRow] = []
    for topic in topics:
        of_topic = _lasting(groups.get(topic, ()))
        rows += [GroupRow(topic, group, await broker.lag(topic, group)) for group in of_topic]
        if not of_topic:
            rows.append(GroupRow(topic, None, None))
    return rows


def _lasting(groups: Sequence[str]) -> list[str]:
    return sorted(group for group in groups if not group.startswith(EPHEMERAL))


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "; there is none at all"
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; there {'is' if len(names) == 1 else 'are'}: {', '.join(names[:SHOWN])}{more}"
