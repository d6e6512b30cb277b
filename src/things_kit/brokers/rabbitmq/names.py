"""What topics and groups are called at the broker.

A topic is an exchange of its name. A group is a queue `group.topic`, in which a dot of the group's name is written `%2E`
(and `%` as `%25`), so that group `a.b` of topic `c` is not group `a` of topic `b.c`. Names of our own begin with a dot,
as no queue of a group does.
"""

from hashlib import blake2b
from typing import Final

from things_kit.brokers.rabbitmq.options import RabbitMQOptions
from things_kit.messaging.errors import ConfigError

LONGEST: Final = 255
"""Bytes of a name in AMQP."""

TIERS: Final = tuple(8**power for power in range(6))
"""Seconds that messages wait in one queue; the longest is nine hours, and longer waits take several of those."""


def delay_queue(queue: str, tier: int) -> str:
    """The queue in which messages of another wait for so many seconds."""
    return f".things-kit.delay-{tier}s.{queue}"


DUE: Final = ".things-kit.later-due"
"""The exchange of what was published for later, once it is due."""

GONE: Final = ".things-kit.later-gone"
"""The exchange and the queue of what was published for later to a topic that is no more."""


def level_name(level: int) -> str:
    """The exchange of a level of the ladder."""
    return f".things-kit.wait-{level:02}"


def wait_queue(level: int, digit: int) -> str:
    """The queue of a level in which what has this digit waits."""
    return f"{level_name(level)}.{digit:02}"


ROOM: Final = len(delay_queue("", TIERS[-1]))
"""Bytes that the longest name made from a queue's needs beside it."""


class Names:
    """The broker's names for topics and groups, as the options want them."""

    def __init__(self, options: RabbitMQOptions) -> None:
        self._options = options

    @property
    def own_exchanges(self) -> bool:
        """Whether each topic has an exchange that is ours, so that a routing key there can be a message's key."""
        return self._options.exchange is None

    @property
    def own_queues(self) -> bool:
        """Whether each group has a queue that is ours."""
        return self._options.queue is None

    def exchange(self, topic: str) -> str:
        """Where a topic is published. Raises ConfigError for a name that RabbitMQ cannot have."""
        _check("topic", topic, topic)
        if self._options.exchange is None:
            return topic
        key = self.routing_key(topic)
        if topic in key and {"*", "#"} & set(topic.split(".")):
            raise ConfigError(
                f"the topic {topic!r} would be a pattern in the exchange: '*' and '#' are no words there"
            )
        return self._options.exchange

    def routing_key(self, topic: str) -> str:
        """Under which key a topic is published to an exchange that is not ours, and groups are bound to it."""
        return self._options.routing_key.replace("{topic}", topic)

    def address(self, topic: str) -> str:
        """One word for where a topic is published, in routing keys that have no room for all of it."""
        key = "" if self.own_exchanges else self.routing_key(topic)
        return blake2b(f"{self.exchange(topic)}\0{key}".encode(), digest_size=12).hexdigest()

    def due_queue(self, topic: str) -> str:
        """The queue from which what was published for later comes to its topic."""
        return f".things-kit.due.{topic}" if self.own_exchanges else f".things-kit.due-{self.address(topic)}"

    def queue(self, topic: str, group: str) -> str:
        """What a group of a topic consumes from. Raises ConfigError for a name that RabbitMQ cannot have."""
        if self._options.queue is not None:
            return self._options.queue.replace("{topic}", topic).replace("{group}", group)
        name = f"{group.replace('%', '%25').replace('.', '%2E')}.{topic}"
        _check("group", group, name)
        return name


def registry(topic: str) -> str:
    """The queue that holds the names of a topic's group queues: AMQP cannot list them."""
    return f".things-kit.groups.{topic}"


def possible(topic: str) -> bool:
    """Whether there can be a topic of this name."""
    try:
        _check("topic", topic, topic)
    except ConfigError:
        return False
    return True


def _check(what: str, name: str, native: str) -> None:
    if any(character in name for character in "\0\r\n"):
        raise ConfigError(
            f"the {what} {name!r} cannot be at RabbitMQ: it drops line breaks and nulls from names"
        )
    if native.startswith("amq."):
        raise ConfigError(
            f"the {what} {name!r} cannot be at RabbitMQ: names that begin with 'amq.' are its own"
        )
    if name.startswith(".things-kit."):
        raise ConfigError(
            f"the {what} {name!r} cannot be: names that begin with '.things-kit.' are the driver's own"
        )
    if len(native.encode()) > LONGEST - ROOM:
        raise ConfigError(
            f"the {what} {name!r} is too long for RabbitMQ: {native!r} has {len(native.encode())} bytes, "
            f"and names of queues {LONGEST}, of which we need {ROOM}"
        )
