"""Which topic becomes which on the other side of a bridge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from things_kit.brokers.connect import BUILT_IN
from things_kit.engine.broker import Broker
from things_kit.engine.naming import check_name
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.topic import Topic, topic_name


def routes_of(
    source: Broker, target: Broker, topics: Sequence[str | Topic[Any]], rename: Mapping[str, str]
) -> dict[str, str]:
    """The target's topic for each of the source's.

    Raises:
        ConfigError: A name is none, is given twice, or is renamed but not moved; or what is moved would come round again.
    """
    names = listed(topics)
    for name in (*names, *rename, *rename.values()):
        check_name("a bridge's topic", name)
    if len(set(names)) != len(names):
        raise ConfigError("a bridge's topics must differ from one another")
    for old in rename:
        if old not in names:
            raise ConfigError(
                f"{old!r} is renamed, but is none of the topics to be moved: {', '.join(names)}"
            )
    routes = {name: rename.get(name, name) for name in names}
    if same_broker(source, target):
        here, there = source.url.engine.topic_prefix, target.url.engine.topic_prefix
        _refuse_circles({here + old: there + new for old, new in routes.items()}, source.url)
    return routes


def listed(topics: Sequence[str | Topic[Any]]) -> tuple[str, ...]:
    """The names of the topics to be moved. Raises ConfigError for none, and for a single name, which is a list of letters."""
    if isinstance(topics, str | Topic) or not topics:
        raise ConfigError(f"a bridge needs a list of topics; it is {topics!r}")
    return tuple(map(topic_name, topics))


def same_broker(one: Broker, other: Broker) -> bool:
    """Whether two connections lead to one broker, as far as their URLs can tell."""
    if one is other:
        return True
    (a, b) = one.url, other.url
    kinds = {BUILT_IN.get(url.scheme, url.scheme) for url in (a, b)}
    if len(kinds) > 1 or not (a.hosts or a.path):  # without a name, each connection is a broker of its own
        return False
    return (bool({*a.hosts} & {*b.hosts}) or not (a.hosts or b.hosts)) and _place(a) == _place(b)


def _place(url: BrokerURL) -> object:
    """The path, and the schema where there are several; without a host the path is a file's, which has several names."""
    path = url.path if url.hosts else Path(url.path.removeprefix("/")).resolve()
    return path, url.query.get("schema", "things_kit")


def _refuse_circles(routes: Mapping[str, str], url: BrokerURL) -> None:
    for start, topic in routes.items():
        way = [start]
        while topic in routes and topic not in way:
            way.append(topic)
            topic = routes[topic]  # noqa: PLW2901 - the next on the way
        if topic in way:
            raise ConfigError(
                f"source and target are one broker, {url.display}: messages of {start!r} would come round to "
                f"{topic!r} again, without end; map the topic to another name"
            )
