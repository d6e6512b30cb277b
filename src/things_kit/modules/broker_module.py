"""A broker as a module of an application: written once, for all brokers."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, Final, TypeAlias, Unpack, cast

from things_kit.app.lifecycle import Hook, Lifecycle
from things_kit.app.parts import Invoke, Module, caller, provide
from things_kit.app.settings import Section
from things_kit.brokers.connect import connect
from things_kit.engine.broker import Broker
from things_kit.engine.consumer import BrokerConsumer
from things_kit.engine.fitting import provided_by
from things_kit.engine.options import ConsumerArguments, SectionArguments, options_of, unknown_argument
from things_kit.engine.pipeline import check_handler, check_middleware
from things_kit.engine.producer import BrokerProducer
from things_kit.messaging.consumer import Consumer
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import AnyHandler, Handler, Middleware
from things_kit.messaging.policy import seconds
from things_kit.messaging.topic import Topic
from things_kit.modules.application import CONSUMES
from things_kit.modules.blocking import watch_over
from things_kit.modules.broker_settings import BrokerSettings
from things_kit.modules.instruments import Instruments

GRACE: Final = 5.0
"""Seconds beside its drain time that a consumer has to stop."""


Topics: TypeAlias = str | Topic[Any] | Sequence[str | Topic[Any]]
"""One topic or several, by name or contract."""


def _fitting(
    batch: bool | None, topic: Topics = (), middleware: Sequence[Middleware] = ()
) -> Callable[[Any], str | None]:
    """Says what is wrong with a class whose objects are to be handlers."""

    def fits(kind: Any) -> str | None:
        try:
            check_handler(kind, batch=batch, topics=_several(topic), provides=provided_by(middleware))
        except ConfigError as error:
            return str(error)
        return None

    return fits


_fits: Final = _fitting(None)


def mistakes_of(
    name: str, topic: Topics, handler: AnyHandler | type, arguments: SectionArguments
) -> Iterator[str]:
    """What is wrong with a consumer, as far as that shows before it is made."""
    batch = arguments["batch"] is not None if "batch" in arguments else None
    try:
        unknown = unknown_argument(arguments)
        if unknown is not None:
            raise ConfigError(unknown)
        options_of(topic, print, {"group": None, **arguments})
        for wrap in arguments.get("middleware", ()):
            check_middleware(wrap)
        if not isinstance(handler, type):
            provides = provided_by(arguments.get("middleware", ()))
            check_handler(handler, batch=batch, topics=_several(topic), provides=provides)
    except ConfigError as error:
        yield f"{name}: {error}"


def _several(topic: Topics) -> Sequence[str | Topic[Any]]:
    return [topic] if isinstance(topic, str | Topic) else topic


class BrokerModule:
    """A broker's module, and what runs consumers on it.

    Attributes:
        module: Provides the section's settings, a `Broker` that is opened at start and closed at stop, a `Producer`, and
            a `Consumer` of what the section says. Where an app has two brokers, `Annotated[Producer, "kafka"]` is
            that of this one.
        run_consumer: To be invoked: consumes what the section says, with the app's `Handler`.
    """

    def __init__(self, name: str, settings: type[BrokerSettings]) -> None:
        """Make the module of the section `name`."""
        self.name = name
        self._settings: Any = Annotated[settings, name]
        self._broker: Any = Annotated[Broker, name]
        parts = (
            Section(name, settings, depth=3),
            provide(self._annotated(_open, settings=self._settings), timeout=None),
            provide(self._annotated(_producer, broker=self._broker)),
            provide(
                self._annotated(self._consumer, broker=self._broker, settings=self._settings), on_demand=True
            ),
        )
        self.module = Module(name, parts, caller())
        self.run_consumer = self._annotated(_run, consumer=Annotated[Consumer, name], settings=self._settings)

    def consume(
        self,
        topic: Topics,
        *,
        handler: AnyHandler | type,
        **arguments: Unpack[SectionArguments],
    ) -> Invoke:
        """One more consumer: a part of an app.

        Args:
            topic: A topic by its name or its contract, or several.
            handler: A class that the app provides; or a handler, as `broker.consumer` takes it.
            arguments: Those of `broker.consumer`. What is not given is as the section says, the group included.
        """

        def consume(
            lifecycle: Lifecycle, broker: Broker, settings: BrokerSettings, found: Any = handler
        ) -> None:
            run(lifecycle, make_consumer(self.name, broker, topic, found, settings, arguments))

        batch = arguments["batch"] is not None if "batch" in arguments else None
        types = (
            {"found": Annotated[handler, _fitting(batch, topic, arguments.get("middleware", ()))]}
            if isinstance(handler, type)
            else {}
        )
        function = self._annotated(consume, broker=self._broker, settings=self._settings, **types)
        if types:
            function.__defaults__ = None
        function.__qualname__ = f"{self.name}.consume({topic!r})"
        setattr(function, CONSUMES, (self.name, topic, handler, arguments))
        return Invoke(
            function, caller(), lambda: mistakes_of(function.__qualname__, topic, handler, arguments)
        )

    def _consumer(
        self, broker: Broker, settings: BrokerSettings, handler: Annotated[Handler, _fits]
    ) -> BrokerConsumer:
        topics = settings.consumed()
        if not topics:
            raise ConfigError(
                f"{self.name}.topic: it is missing: expected `topic` or `topics` in the section {self.name!r}, or "
                f"{self.name.upper()}_TOPIC in the environment"
            )
        return make_consumer(self.name, broker, topics, handler, settings, {})

    def _annotated(self, function: Any, **types: Any) -> Any:
        """A function of its own whose parameters are looked for in this very module."""
        bound = getattr(function, "__func__", function)
        own = type(bound)(
            bound.__code__, bound.__globals__, bound.__name__, bound.__defaults__, bound.__closure__
        )
        own.__annotations__ = {**bound.__annotations__, **types}
        own.__qualname__ = f"{self.name}.{bound.__name__.strip('_')}"
        return own if bound is function else own.__get__(self)


def make_consumer(
    name: str,
    broker: Broker,
    topic: Topics,
    handler: AnyHandler,
    settings: BrokerSettings,
    arguments: SectionArguments,
) -> BrokerConsumer:
    """A consumer as the section of this name says, but for these arguments. Raises ConfigError."""
    chosen: SectionArguments = {**settings.arguments(), **arguments}
    if "group" not in chosen:
        raise ConfigError(
            f"{name}.group_id: it is missing: expected a name, whose consumers share the messages and go on "
            f"where they stopped, or null, which is a group of its own from now on, gone when it stops; in the "
            f"section {name!r}, as {name.upper()}_GROUP_ID in the environment, or as group= in the code"
        )
    return broker.consumer(_several(topic), handler=handler, **cast("ConsumerArguments", chosen))


def run(lifecycle: Lifecycle, consumer: BrokerConsumer) -> None:
    """Let a consumer start and stop with the app, side by side with others; if it breaks, the app ends with that."""
    options = consumer.options
    drain, topics = seconds(options.drain_timeout, "drain_timeout"), ", ".join(options.topics)

    async def start() -> None:
        watch_over().begin()  # what waits at the broker is handled while it starts
        try:
            await consumer.start()
        except BaseException:
            watch_over().end()
            raise

    async def stop() -> None:
        try:
            await consumer.stop()
        finally:
            watch_over().end()

    lifecycle.append(
        Hook(
            on_start=start,
            on_stop=stop,
            watch=consumer.wait,
            start_timeout=None,  # it has its own: `publish_timeout` while the broker is away
            stop_timeout=drain + GRACE,
            together=True,
            says=lambda: (
                f"consuming {topics} from {consumer.address} as {consumer.group}, concurrency {options.concurrency}"
            ),
            tally=lambda: {"handled": consumer.handled, "given back": consumer.given_back},
            label=f"the consumer of {topics}",
        )
    )


async def _open(settings: BrokerSettings, instruments: Instruments | None) -> AsyncIterator[Broker]:
    async with connect(settings.full_url()) as broker:
        broker.instrument(*(instruments or ()))
        yield broker


def _producer(broker: Broker) -> BrokerProducer:
    return broker.producer()


def _run(lifecycle: Lifecycle, consumer: BrokerConsumer) -> None:
    """Consume what the section says, with the app's `Handler`, for as long as the app runs."""
    run(lifecycle, consumer)
