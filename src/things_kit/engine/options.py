"""The arguments of `broker.consumer`: declared here, for type checkers, for the engine and for configuration."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, TypedDict, TypeVar, get_args

import msgspec
from msgspec import Meta

from things_kit.engine.dead_letter import dead_letter_topic
from things_kit.engine.naming import check_name
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import AnyHandler, Middleware
from things_kit.messaging.plain import plain
from things_kit.messaging.policy import Batch, Discard, Ordering, RetryPolicy, Seconds, Start, seconds
from things_kit.messaging.topic import Topic, topic_name
from things_kit.messaging.transform import Transform, checked_transforms

Method = TypeVar("Method", bound=Callable[..., Any])


class CommonChoices(TypedDict, total=False):
    """The arguments of a consumer that have a default, as type checkers see them: `ConsumerOptions` has the same."""

    concurrency: int
    publish: Topic[Any] | None
    ordering: Ordering
    start: Start
    retry: RetryPolicy
    dead_letter: str | Discard | None
    timeout: Seconds | None
    drain_timeout: Seconds
    max_in_flight: int
    middleware: Sequence[Middleware]
    transforms: Sequence[Transform]


class ContractArguments(CommonChoices):
    """Those of a consumer whose handler is checked against a contract: `batch` says what it takes, so it is said apart."""

    group: str | None


class ConsumerChoices(CommonChoices, total=False):
    """All that have a default."""

    batch: Batch | None


class ConsumerArguments(ConsumerChoices):
    """Those, and the group, which has no default."""

    group: str | None


class SectionArguments(ConsumerChoices, total=False):
    """Those, and the group where it is not as the section of the configuration says."""

    group: str | None


class ConsumerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Every argument of `broker.consumer`, checked. The sections of the configuration take theirs from here."""

    topics: tuple[str, ...]
    handler: AnyHandler
    group: Annotated[
        str | None, Meta(description="The consumer group; null is one of its own, gone when it stops.")
    ]
    concurrency: Annotated[int, Meta(ge=1, description="Handler calls at once.")] = 1
    publish: Annotated[
        Topic[Any] | None, Meta(description="The contract by which what the handler returns is published.")
    ] = None
    ordering: Annotated[Ordering, Meta(description="What is handled one after another, in order.")] = "key"
    start: Annotated[Start, Meta(description="Where a new group begins, where messages are retained.")] = (
        "earliest"
    )
    retry: Annotated[RetryPolicy, Meta(description="How a failing message is tried again.")] = RetryPolicy()
    dead_letter: Annotated[
        str | Discard | None,
        Meta(description="A topic; null keeps trying for ever, and DISCARD drops what failed for good."),
    ] = "{topic}-dlq"
    timeout: Annotated[Seconds | None, Meta(gt=0, description="The most that one handler call may take.")] = (
        None
    )
    drain_timeout: Annotated[
        Seconds, Meta(ge=0, description="How long a consumer that stops lets begun handlers go on.")
    ] = 20.0
    max_in_flight: Annotated[
        int, Meta(ge=1, description="The most messages held at once, over all topics.")
    ] = 1000
    batch: Annotated[Batch | None, Meta(description="Hand the handler lists of messages.")] = None
    middleware: Annotated[Sequence[Middleware], Meta(description="Functions from Handle to Handle.")] = ()
    transforms: Annotated[Sequence[Transform], Meta(description="What is undone before decoding.")] = ()
    contracts: Mapping[str, Topic[Any]] = {}

    def __post_init__(self) -> None:
        if not self.topics:
            raise ConfigError("a consumer needs a topic, or a list of topics")
        for topic in self.topics:
            check_name("a consumer's topic", topic)
        if len(set(self.topics)) != len(self.topics):
            raise ConfigError("a consumer's topics must differ from one another")
        if self.group is not None:
            check_name("group", self.group)
        _whole("concurrency", self.concurrency, 1)
        _whole("max_in_flight", self.max_in_flight, len(self.topics))
        _one_of("ordering", self.ordering, ("key", "partition", "none"))
        _one_of("start", self.start, ("earliest", "latest"))
        _instance("retry", self.retry, RetryPolicy)
        if self.timeout is not None and seconds(self.timeout, "timeout") == 0:
            raise ConfigError("timeout must be more than 0 seconds, or None")
        seconds(self.drain_timeout, "drain_timeout")
        if self.batch is not None:
            _instance("batch", self.batch, Batch)
            _wraps_lists(self.middleware)
            asked = next((topic for topic in self.contracts.values() if topic.reply is not None), None)
            if asked is not None:
                raise ConfigError(
                    f"the contract of {asked.name!r} says reply=; a handler of batches answers nobody"
                )
        checked_transforms(self.transforms)
        if self.publish is not None:
            _instance("publish", self.publish, Topic)
            if self.batch is not None:
                raise ConfigError(
                    "publish= takes what the handler of one message returns; it cannot be used with batch"
                )
        if not isinstance(self.dead_letter, str | Discard | None) or self.dead_letter == "":
            raise ConfigError(
                f"dead_letter must be a topic's name, DISCARD or None; it is {self.dead_letter!r}"
            )

    def dead_letter_of(self, topic: str, group: str) -> str | None:
        """The name of a topic's dead letter; None where there is none."""
        if not isinstance(self.dead_letter, str):
            return None
        return dead_letter_topic(self.dead_letter, topic, group)


ARGUMENTS: Final = tuple(
    field
    for field in msgspec.structs.fields(ConsumerOptions)
    if field.name not in {"topics", "handler", "contracts"}
)
"""What a consumer may be told beside its topics, by name or contract, and its handler."""


def options_of(
    topic: str | Topic[Any] | Sequence[str | Topic[Any]], handler: AnyHandler, arguments: ConsumerArguments
) -> ConsumerOptions:
    """The arguments of a consumer, checked.

    Raises:
        ConfigError: One is not what it should be, or the group is missing.
        TypeError: One is unknown.
    """
    given = _topics(topic)
    topics = tuple(map(topic_name, given))
    contracts = {each.name: each for each in given if isinstance(each, Topic)}
    mistake = unknown_argument(arguments)
    if mistake is not None:
        raise TypeError(f"a consumer {mistake}")
    if "group" not in arguments:
        raise ConfigError(f"the consumer of {', '.join(map(str, topics))} needs a group: {GROUPS}")
    checked: ConsumerArguments = {**arguments, "middleware": _listed(arguments.get("middleware", ()))}
    checked["group"] = plain(arguments["group"])
    if "dead_letter" in arguments:
        checked["dead_letter"] = plain(arguments["dead_letter"])
    return ConsumerOptions(topics=topics, handler=handler, contracts=contracts, **checked)


GROUPS: Final = (
    'group="billing" shares the messages with every other consumer of that group, and goes on where the group '
    "stopped; group=None, said on purpose, is a group of its own from now on, gone when it stops"
)


def unknown_argument(arguments: Mapping[str, object]) -> str | None:
    """What is wrong with the names of these arguments; None if all are known."""
    known = [field.name for field in ARGUMENTS]
    for name in arguments:
        if name not in known:
            import difflib  # noqa: PLC0415 - for mistakes only

            close = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            return f"has no argument {name!r}; {meant}"
    return None


def takes_arguments(method: Method) -> Method:
    """Let `inspect` and `help` show the arguments one by one, with their defaults, as type checkers do."""
    signature = inspect.signature(method)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    said = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.required else field.default,
            annotation=get_args(field.type)[0],
        )
        for field in ARGUMENTS
    ]
    method.__signature__ = signature.replace(parameters=[*own, *said])  # type: ignore[attr-defined]
    return method


def _topics(topic: object) -> tuple[Any, ...]:
    if isinstance(topic, str | Topic):
        return (topic,)
    if not isinstance(topic, Iterable) or isinstance(topic, bytes):
        raise ConfigError(f"a consumer needs a topic, or a list of topics; it has {topic!r}")
    return tuple(topic)


def _listed(middleware: object) -> tuple[Any, ...]:
    if not isinstance(middleware, Iterable) or isinstance(middleware, str):
        name = getattr(middleware, "__name__", repr(middleware))
        raise ConfigError(f"middleware is a list: write middleware=[{name}]")
    return tuple(middleware)


def _wraps_lists(middleware: Sequence[object]) -> None:
    for wrap in middleware:
        if not callable(getattr(wrap, "handle_batch", None)):
            name = getattr(wrap, "__name__", repr(wrap))
            raise ConfigError(
                f"the middleware {name} wraps the handling of one message; with batch it needs a method handle_batch"
            )


def _whole(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be a whole number from {minimum}; it is {value!r}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}; it is {value!r}")


def _instance(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}; it is {value!r}")
