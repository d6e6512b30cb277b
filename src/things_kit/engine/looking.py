"""What there is at a broker, for those who only look: nothing is created by it."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from things_kit.engine.driver import Listing
from things_kit.engine.facts import Factual, Question
from things_kit.engine.naming import EPHEMERAL, is_inbox
from things_kit.engine.retry_topics import is_retry_topic
from things_kit.engine.wait_topics import is_wait_topic
from things_kit.messaging.errors import ConfigError, ThingsKitError, UnsupportedError

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker

SHOWN: Final = 20
"""Names that are listed where one is missing."""

UNTOLD: Final = (UnsupportedError, ConfigError)
"""What a broker answers that does not tell names at all, or not to this user."""


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
        if not is_retry_topic(name) and not is_wait_topic(name) and not is_inbox(name)
    )


async def check_topic(broker: "Broker", topic: str) -> None:
    """Raise MissingError, with the names of those that there are, if there is no such topic."""
    known: Sequence[str] | None
    try:
        known = await topics_of(broker)
    except UNTOLD:
        known = None
    if topic not in (known or ()) and not await broker.transmission.has_topic(topic):
        raise MissingError(f"there is no topic {topic!r}{_listed(known)}")


async def check_group(broker: "Broker", topic: str, group: str) -> None:
    """Raise MissingError, with the names of those that there are, if the topic has no such group."""
    transmission = broker.transmission
    driver = transmission.driver
    known: Sequence[str] | None = None
    if isinstance(driver, Listing):
        with contextlib.suppress(*UNTOLD):
            known = (await transmission.patiently(lambda: driver.groups([topic]))).get(topic, ())
    if group in (known or ()):
        return
    if known is not None or await _lacks(broker, topic, group):
        raise MissingError(f"{topic} has no group {group!r}{_listed(known and _lasting(known))}")


async def _lacks(broker: "Broker", topic: str, group: str) -> bool:
    """Whether the broker, which tells no names, says of this one that it is missing."""
    transmission = broker.transmission
    driver = transmission.driver
    if not isinstance(driver, Factual):
        return False
    facts = await transmission.patiently(lambda: driver.facts(Question(topic, group)))
    return any(not each.there for each in facts.groups if (each.topic, each.name) == (topic, group))


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


def _listed(names: Sequence[str] | None) -> str:
    if names is None:
        return ""
    if not names:
        return "; there is none at all"
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; there {'is' if len(names) == 1 else 'are'}: {', '.join(names[:SHOWN])}{more}"
