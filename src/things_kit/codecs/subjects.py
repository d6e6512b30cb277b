"""Under which name a topic's schema is registered."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from things_kit.codecs.schemas import Schemas, Subject
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.topic import Topic

Naming: TypeAlias = Literal["topic", "record", "topic-record"]


def check_naming(registry: Any, subject: Any) -> None:
    """Raise ConfigError for what cannot be."""
    if registry is not None and not isinstance(registry, Schemas):
        raise ConfigError(f"registry= is a Registry or a MemoryRegistry, not {registry!r}")
    if subject not in {None, "topic", "record", "topic-record"}:
        raise ConfigError(f'subject= is "topic", "record" or "topic-record"; it is {subject!r}')
    if subject is not None and registry is None:
        raise ConfigError("subject= needs registry=")


def subject_name(naming: Naming | None, topic: Topic[Any], record: str) -> str:
    """The name of a subject. Raises ConfigError where all types of a topic would have the same."""
    if naming is None:
        naming = "topic" if topic.by is None else "topic-record"
    if naming == "topic":
        if topic.by is not None:
            raise ConfigError(
                'subject="topic" has one schema for a topic, which has several types: say "topic-record"'
            )
        return f"{topic.name}-value"
    return record if naming == "record" else f"{topic.name}-{record}"


def check_registered(registry: Schemas | None, topic: Topic[Any]) -> None:
    """Raise TypeError where versions are counted twice."""
    if registry is not None and topic.version is not None:
        raise TypeError("a registry resolves versions itself: leave version= out")


def identity_of(registry: Schemas, subject: Subject, topic: Topic[Any]) -> int:
    """The id to write. Raises ConfigError before the topic was prepared."""
    identity = registry.id_of(subject)
    if identity is None:
        raise ConfigError(
            f"the schema of the topic {topic.name!r} was not looked up yet: await topic.prepare() first, as publish does"
        )
    return identity


async def prepare_all(registry: Schemas | None, subjects: Mapping[Any, Subject]) -> None:
    """Look up, or register, all of these."""
    if registry is not None:
        for subject in subjects.values():
            await registry.prepare(subject)
