"""What an app says of itself: the topics that it consumes and publishes."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from things_kit.app.parts import Invoke
from things_kit.app.settings import Section
from things_kit.contracts.asyncapi import Operation, Server, asyncapi
from things_kit.engine.options import SectionArguments
from things_kit.messaging.topic import Topic
from things_kit.modules.application import CONSUMES, App
from things_kit.modules.broker_settings import BrokerSettings

PROTOCOLS: Final = {"rabbitmq": "amqp", "servicebus": "amqps", "pubsub": "googlepubsub"}
"""Of modules whose name is not that of their protocol."""


def described(app: App, title: str, version: str) -> dict[str, Any]:
    """The AsyncAPI document of an app. Raises TypeError for a type that cannot be described."""
    operations = [*_operations(app)]
    names = dict.fromkeys(each.server for each in operations if each.server is not None)
    servers = {name: Server(PROTOCOLS.get(name, name)) for name in names}
    return asyncapi(title, version=version, servers=servers, operations=operations)


def _operations(app: App) -> Iterator[Operation]:
    for placed in app:
        consumed = getattr(placed.part.function, CONSUMES, None) if isinstance(placed.part, Invoke) else None
        if consumed is not None:
            yield from _consumer(*consumed)
    only = _only_broker(app)
    for mark in app.all_marks():
        yield from _consumer(mark.broker or only, mark.topic, mark.function, mark.arguments)
    for topic in app.published:
        yield Operation("send", topic, only)


def _consumer(
    server: str | None, topic: Any, handler: Any, arguments: SectionArguments
) -> Iterator[Operation]:
    for each in topics_of(topic):
        yield Operation("receive", each, server, arguments.get("group"), _description(handler))
    if (results := arguments.get("publish")) is not None:
        yield Operation("send", results, server)


def topics_of(topic: str | Topic[Any] | Sequence[str | Topic[Any]]) -> Iterable[str | Topic[Any]]:
    """One topic or several, as several."""
    return [topic] if isinstance(topic, str | Topic) else topic


def _only_broker(app: App) -> str | None:
    names = [
        placed.part.name
        for placed in app
        if isinstance(placed.part, Section) and issubclass(placed.part.kind, BrokerSettings)
    ]
    return names[0] if len(names) == 1 else None


def _description(handler: Any) -> str | None:
    """What a handler says of itself."""
    direct = isinstance(handler, type) or inspect.isroutine(handler)
    return inspect.getdoc(handler if direct else getattr(handler, "handle", None))
