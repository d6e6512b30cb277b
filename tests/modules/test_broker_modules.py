"""Brokers as modules of an application."""

import base64
import importlib
import inspect
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from pydantic import SecretStr

from things_kit import (
    App,
    Broker,
    BrokerUnavailable,
    ConfigError,
    Consumer,
    Handler,
    Message,
    Producer,
    Topic,
    WiringError,
    invoke,
    provide,
)
from things_kit.messaging.policy import DISCARD, Batch
from things_kit.modules import (
    config,
    kafka,
    memory,
    nats,
    postgres,
    pubsub,
    rabbitmq,
    redis,
    servicebus,
    sqlite,
    sqs,
)
from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import BrokerSettings, ServerSettings
from things_kit.testing import MockHandler
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.kafka import KafkaServer

kafka_server = shared(KafkaServer, "kafka")

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "config.yaml").write_text(text)

    return write


@pytest.fixture(params=["memory", "sqlite"])
def broker_module(request: pytest.FixtureRequest, write: Write) -> Any:
    """A module whose section says topic and group."""
    url = {"memory": "memory://", "sqlite": "sqlite:///events.db"}[request.param]
    write(f"{request.param}:\n  url: {url}\n  topic: orders\n  group_id: billing\n")
    return {"memory": memory, "sqlite": sqlite}[request.param]


SEALING = """\
import base64, os
from things_kit.middleware import encrypt

named = (each.partition("=") for each in os.environ["SHOP_KEYS"].split())
sealed = encrypt({name: base64.b64decode(key) for name, _, key in named})
"""


async def test_keys_come_from_the_configuration_and_are_rotated_while_messages_wait(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment with the new key in front reads what the one before has sent."""
    write("sqlite:\n  path: events.db\n  topic: orders\n  group: g\n  transforms: [sealing.sealed]\n")
    (tmp_path / "sealing.py").write_text(SEALING)
    monkeypatch.syspath_prepend(tmp_path)
    old, new = (f"{name}={base64.b64encode(name[0].encode() * 32).decode()}" for name in ("old", "new"))
    for number, keys in enumerate([old, f"{old} {new}", f"{new} {old}"]):
        monkeypatch.setenv("SHOP_KEYS", keys)
        monkeypatch.delitem(sys.modules, "sealing", raising=False)
        async with App(config.module, sqlite.module) as app:
            sealed = importlib.import_module("sealing").sealed
            broker = await app.get(Broker)
            await broker.declare("orders", ["g"])
            producer = broker.producer(transforms=[sealed])
            await producer.publish(Message("orders", b"%d" % number))
    async with App(config.module, sqlite.module, provide(MockHandler), invoke(sqlite.run_consumer)) as app:
        handler = await app.get(MockHandler)
        await handler.handled(3)
        assert [message.value for message in handler.messages] == [b"0", b"1", b"2"]


async def test_the_apps_handler_gets_what_the_section_consumes(broker_module: Any) -> None:
    app = App(config.module, broker_module.module, provide(MockHandler), invoke(broker_module.run_consumer))
    async with app:
        producer = await app.get(Producer)
        await producer.publish(Message("orders", b"1"))
        handler = await app.get(MockHandler)
        await handler.handled(1)
        handler.assert_handled(topic="orders", value=b"1", count=1)
        broker = await app.get(Broker)
        assert (await broker.health()).consumers[0].group == "billing"


async def test_consume_adds_a_consumer_with_a_handler_of_its_own(broker_module: Any) -> None:
    seen = MockHandler()

    class Payments(MockHandler):
        pass

    app = App(
        config.module,
        broker_module.module,
        provide(MockHandler, as_=Handler),
        provide(Payments),
        invoke(broker_module.run_consumer),
        broker_module.consume("payments", group="billing", handler=Payments, concurrency=8),
        broker_module.consume(["orders", "payments"], group="audit", handler=seen.handle),
    )
    async with app:
        producer = await app.get(Producer)
        await producer.publish_batch([Message("orders", b"1"), Message("payments", b"2")])
        await seen.handled(2)
        payments = await app.get(Payments)
        await payments.handled(1)
        payments.assert_handled(topic="payments", count=1)
        health = await (await app.get(Broker)).health()
        assert len(health.consumers) == 3
    assert len(payments.messages) == 1


def test_a_section_takes_every_argument_of_a_consumer() -> None:
    arguments = set(inspect.signature(Broker.consumer).parameters) - {"self", "handler"}
    assert arguments <= set(BrokerSettings.model_fields)


async def test_what_the_section_says_is_what_the_consumer_does(write: Write) -> None:
    write("""
memory:
  topics: [a, b]
  group: g
  concurrency: 3
  ordering: none
  start: latest
  retry: {attempts: 2, first: 1, factor: 3, limit: PT1M, jitter: 0, mode: delayed, permanent: [KeyError, shutil.SameFileError]}
  dead_letter: DISCARD
  timeout: 5
  drain_timeout: 7
  max_in_flight: 50
  batch: {size: 10, wait: 1}
""")

    class Many:
        async def handle(self, messages: list[Message]) -> None: ...

    async with App(config.module, memory.module, provide(Many)) as app:
        consumer: Any = await app.get(Consumer)
    options = consumer.options
    assert options.topics == ("a", "b")
    assert consumer.group == "g"
    assert (options.concurrency, options.ordering, options.start) == (3, "none", "latest")
    policy = options.retry
    assert (policy.attempts, policy.first, policy.factor, policy.jitter) == (2, 1, 3, 0)
    assert policy.limit.total_seconds() == 60
    assert (policy.mode, policy.permanent) == ("delayed", (KeyError, shutil.SameFileError))
    assert options.dead_letter is DISCARD
    assert (options.timeout, options.drain_timeout, options.max_in_flight) == (5, 7, 50)
    assert options.batch == Batch(10, 1)


def test_the_defaults_of_a_section_are_those_of_a_consumer() -> None:
    said = memory.MemorySettings().arguments()
    for name, parameter in inspect.signature(Broker.consumer).parameters.items():
        if name not in {"self", "topic", "handler", "group"}:
            assert said[name] == parameter.default, name  # type: ignore[literal-required]
    assert "group" not in said


@pytest.mark.parametrize("how", ["run_consumer", "consume"])
async def test_a_section_that_says_no_group_is_a_mistake(write: Write, how: str) -> None:
    write("memory: {topic: orders}\n")
    consumed = (
        invoke(memory.run_consumer)
        if how == "run_consumer"
        else memory.consume("orders", handler=MockHandler)
    )
    app = App(config.module, memory.module, provide(MockHandler), consumed)
    with pytest.raises(ConfigError, match=r"memory\.group_id: it is missing.*or null.*MEMORY_GROUP_ID"):
        await app.start()


async def test_a_section_that_says_null_has_a_group_of_its_own(write: Write) -> None:
    write("memory: {topic: orders, group_id: null}\n")
    app = App(config.module, memory.module, provide(MockHandler), invoke(memory.run_consumer))
    async with app:
        (consumer,) = (await (await app.get(Broker)).health()).consumers
        assert consumer.group.startswith("ephemeral-")


async def test_what_consume_does_not_say_is_as_the_section_says(write: Write) -> None:
    write("memory: {group_id: billing, concurrency: 5}\n")
    app = App(config.module, memory.module, memory.consume("orders", handler=MockHandler(), drain_timeout=1))
    async with app:
        (consumer,) = (await (await app.get(Broker)).health()).consumers
        assert consumer.group == "billing"


async def test_two_brokers_of_one_app_are_told_apart_by_their_modules(write: Write) -> None:
    write("memory: {topic: orders, group_id: g}\nsqlite: {path: events.db}\n")

    class Forward:
        def __init__(self, producer: Annotated[Producer, "sqlite"]) -> None:
            self.producer = producer

        async def handle(self, message: Message) -> None:
            await self.producer.publish(message.replace(topic="forwarded"))

    arrived = MockHandler()
    app = App(
        config.module,
        memory.module,
        sqlite.module,
        provide(Forward),
        invoke(memory.run_consumer),
        sqlite.consume("forwarded", group="g", handler=arrived),
    )
    async with app:
        producer: Producer = await app.get(Annotated[Producer, "memory"])
        await producer.publish(Message("orders", b"1"))
        await arrived.handled(1)
        with pytest.raises(WiringError, match="2 things are Broker"):
            await app.get(Broker)


async def test_a_second_cluster_is_a_module_of_ones_own(write: Write) -> None:
    write("memory: {}\naudit: {name: audit}\n")
    audit = BrokerModule("audit", memory.MemorySettings)
    seen = MockHandler()
    app = App(config.module, memory.module, audit.module, audit.consume("log", group="g", handler=seen))
    async with app:
        broker: Broker = await app.get(Annotated[Broker, "audit"])
        assert repr(broker) == "<Broker memory://audit>"


async def test_a_consumer_without_a_topic_says_where_one_is_expected(write: Write) -> None:
    write("memory: {}\n")
    app = App(config.module, memory.module, provide(MockHandler), invoke(memory.run_consumer))
    with pytest.raises(ConfigError, match=r"memory\.topic: it is missing.*MEMORY_TOPIC"):
        await app.start()


def test_forgetting_the_handler_or_the_configuration_is_a_mistake_of_the_wiring() -> None:
    with pytest.raises(WiringError) as caught:
        App(memory.module, invoke(memory.run_consumer)).check()
    found = str(caught.value)
    assert "nothing provides Handler, which memory.consumer" in found
    assert "the module 'config'" in found


async def test_an_app_says_what_it_consumes_that_it_is_ready_and_what_it_has_done(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("memory: {name: shop, group_id: billing, topic: orders, concurrency: 3}\n")
    seen = MockHandler()
    app = App(
        config.module,
        memory.module,
        provide(seen),
        invoke(memory.run_consumer),
        memory.consume(["payments", "refunds"], group="audit", handler=seen),
    )
    with caplog.at_level("INFO", "things_kit.app"):
        async with app:
            producer = await app.get(Producer)
            await producer.publish_batch([Message("orders", b"1"), Message("refunds", b"2")])
            await seen.handled(2)
    assert [record.getMessage() for record in caplog.records if record.name == "things_kit.app"] == [
        "consuming orders from memory://shop as billing, concurrency 3",
        "consuming payments, refunds from memory://shop as audit, concurrency 3",
        "ready",
        "stopped: 2 handled, 0 given back",
    ]


async def test_a_forgotten_broker_module_is_named(write: Write) -> None:
    write("memory: {group_id: g}\n")
    with pytest.raises(WiringError, match=r"the module 'memory' .* does: add it to the App"):
        await App(config.module, memory.consume("orders", handler=MockHandler())).start()


def test_a_python_module_is_no_part_of_an_app() -> None:
    with pytest.raises(WiringError, match=r"the Python module config is none: write config\.module"):
        App(config, memory.module).check()  # type: ignore[arg-type]


async def test_an_app_that_is_run_inside_an_event_loop_says_so() -> None:
    with pytest.raises(
        RuntimeError, match=r"App\.run\(\) has an event loop of its own, and one runs here already"
    ):
        App(config.module).run()


def test_a_producer_needs_no_handler() -> None:
    def use(producer: Producer) -> None: ...

    App(config.module, memory.module, invoke(use)).check()


async def test_all_mistakes_of_all_sections_come_at_once(write: Write) -> None:
    write("kafka: {broker: [a]}\nsqlite: {url: 'sqlite:///x.db', path: x.db}\nmemory: {concurrency: 0}\n")
    with pytest.raises(ConfigError) as caught:
        await App(config.module, kafka.module, sqlite.module, memory.module).start()
    found = str(caught.value)
    assert "config.yaml:1: kafka.broker: unknown field; did you mean 'brokers'?" in found
    assert "config.yaml:2: sqlite: url and path are both given: expected one of them" in found
    assert "config.yaml:3: memory.concurrency: expected greater than or equal to 1" in found


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (memory.MemorySettings(), "memory://"),
        (memory.MemorySettings(name="x"), "memory://x"),
        (sqlite.SQLiteSettings(path="events.db"), "sqlite:///events.db"),
        (sqlite.SQLiteSettings(path="/a b/events.db"), "sqlite:////a%20b/events.db"),
        (sqlite.SQLiteSettings(path="x.db", options={"declare": False}), "sqlite:///x.db?declare=false"),
        (kafka.KafkaSettings(brokers=("a:9092", "b")), "kafka://a:9092,b"),
        (
            kafka.KafkaSettings(brokers=("a",), username="u", password=SecretStr("p@:/")),
            "kafka://u:p%40%3A%2F@a",
        ),
        (
            kafka.KafkaSettings(url="kafka://u:old@a?acks=1", password=SecretStr("new")),
            "kafka://u:new@a?acks=1",
        ),
        (kafka.KafkaSettings(url="kafka://a?acks=1", options={"linger": 5}), "kafka://a?acks=1&linger=5"),
        (rabbitmq.RabbitMQSettings(hosts=("a",)), "amqp://a"),
        (rabbitmq.RabbitMQSettings(hosts=("a:1",), vhost="v/w", tls=True), "amqps://a:1/v%2Fw"),
        (nats.NATSSettings(servers=("a", "b")), "nats://a,b"),
        (nats.NATSSettings(servers=("a",), tls=True), "tls://a"),
        (redis.RedisSettings(hosts=("a",), db=3, password=SecretStr("p")), "redis://:p@a/3"),
        (postgres.PostgresSettings(hosts=("a", "b:1"), database="d/e"), "postgres://a,b:1/d%2Fe"),
        (
            postgres.PostgresSettings(
                hosts=("a",), username="u", password=SecretStr("p@"), options={"poll": 2}
            ),
            "postgres://u:p%40@a?poll=2",
        ),
        (sqs.SQSSettings(region="eu-west-1"), "sqs://eu-west-1"),
        (sqs.SQSSettings(region="r", endpoint="http://h:1"), "sqs://r?endpoint=http%3A%2F%2Fh%3A1"),
        (pubsub.PubSubSettings(project="p"), "pubsub://p"),
        (
            servicebus.ServiceBusSettings(namespace="n", key_name="k", key=SecretStr("a+b=")),
            "servicebus://n.servicebus.windows.net?key_name=k&key=a%2Bb%3D",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_brokers_own_fields_are_a_url(settings: BrokerSettings, url: str) -> None:
    assert settings.full_url() == url


@pytest.mark.parametrize(
    ("file", "variable", "value", "url"),
    [
        ("sqlite: {path: a.db}", "SQLITE_URL", "sqlite:///b.db", "sqlite:///b.db"),
        ("sqlite: {url: 'sqlite:///a.db?lease=2'}", "SQLITE_PATH", "b.db", "sqlite:///b.db"),
        ("kafka: {brokers: [a], username: u, password: p}", "KAFKA_URL", "kafka://v:q@b", "kafka://v:q@b"),
        ("kafka: {brokers: [a], username: u, password: p}", "KAFKA_URL", "kafka://b", "kafka://u:p@b"),
        ("kafka: {brokers: 'a:1,b:2'}", "OTHER", "", "kafka://a:1,b:2"),
        ("kafka: {brokers: 'a:1'}", "OTHER", "", "kafka://a:1"),
        ("kafka: {brokers: a}", "KAFKA_BROKERS", "b:1,c:2", "kafka://b:1,c:2"),
    ],
)
def test_the_environment_replaces_where_the_file_says_the_broker_is(
    write: Write, monkeypatch: pytest.MonkeyPatch, file: str, variable: str, value: str, url: str
) -> None:
    write(file + "\n")
    monkeypatch.setenv(variable, value)
    name = file.partition(":")[0]
    settings = config.settings_of(App(config.module, {"sqlite": sqlite, "kafka": kafka}[name].module))[name]
    assert settings.full_url() == url


@pytest.mark.parametrize("topics", ["a,b", "[a, b]"])
def test_topics_are_a_list_or_one_with_commas(write: Write, topics: str) -> None:
    write(f"memory: {{topics: '{topics}'}}\n" if "[" not in topics else f"memory: {{topics: {topics}}}\n")
    assert config.settings_of(App(config.module, memory.module))["memory"].consumed() == ["a", "b"]


def _plain(message: Message) -> None: ...


def _list(messages: list[Message]) -> None: ...


def _two(payload: bytes, other: int) -> None: ...


async def _async_middleware(handle: Any) -> Any: ...


class _NoHandle: ...


class _Batched:
    async def handle(self, messages: list[Message]) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ({"handler": _plain, "concurency": 8}, "has no argument 'concurency'; did you mean 'concurrency'?"),
        ({"handler": _plain, "concurrency": "8"}, "concurrency must be a whole number from 1; it is '8'"),
        ({"handler": _plain, "retry": 5}, "retry must be a RetryPolicy; it is 5"),
        ({"handler": _two}, "the handler _two has a parameter 'other' that nothing fills"),
        ({"handler": _list, "batch": None}, "the handler _list takes a list: say batch=Batch(...)"),
        ({"handler": _plain, "batch": Batch()}, "the batch handler _plain must take a list"),
        ({"handler": _Batched, "batch": None}, "takes a list: say batch=Batch(...)"),
        ({"handler": MockHandler, "batch": Batch()}, "must take a list"),
        ({"handler": _NoHandle}, "a method `handle`; _NoHandle has none"),
        ({"handler": 5}, "a handler is a function"),
        ({"handler": _plain, "middleware": [5]}, "middleware is a function from Handle to Handle; 5"),
        ({"handler": _plain, "middleware": _plain}, "middleware is a list: write middleware=[_plain]"),
        ({"handler": _plain, "middleware": [lambda: None]}, "must take one argument, the step that it wraps"),
        (
            {"handler": _plain, "middleware": [_async_middleware]},
            "did not return a function, but a coroutine",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_finds_what_is_wrong_with_a_consumer(arguments: dict[str, Any], mistake: str) -> None:
    provided = [provide(kind) for kind in (MockHandler, _Batched, _NoHandle) if arguments["handler"] is kind]
    app = App(config.module, memory.module, *provided, memory.consume("orders", **arguments))
    with pytest.raises(WiringError) as raised:
        app.check()
    assert mistake in str(raised.value)
    assert len(raised.value.mistakes) == 1
    assert "test_broker_modules.py:" in str(raised.value)


def test_check_finds_a_handler_of_the_app_that_is_none() -> None:
    class Wrong:
        async def handle(self, payload: bytes, other: int) -> None: ...

    with pytest.raises(WiringError, match="has a parameter 'other' that nothing fills"):
        App(config.module, memory.module, provide(Wrong), invoke(memory.run_consumer)).check()
    App(config.module, memory.module, provide(_Batched), invoke(memory.run_consumer)).check()


def test_a_password_may_come_from_a_file_that_the_environment_names(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("kafka: {brokers: [a], username: u}\n")
    (tmp_path / "secret").write_text("p@ss\n")
    monkeypatch.setenv("KAFKA_PASSWORD_FILE", str(tmp_path / "secret"))
    settings = config.settings_of(App(config.module, kafka.module))["kafka"]
    assert settings.full_url() == "kafka://u:p%40ss@a"
    assert "p@ss" not in repr(settings)


def test_no_password_is_in_the_repr_of_a_section() -> None:
    settings: ServerSettings = kafka.KafkaSettings(
        url="kafka://u:s3cret@h", password=SecretStr("s3cret"), options={"key_password": "s3cret"}
    )
    assert "s3cret" not in repr(settings)


async def test_a_broker_that_is_not_there_ends_the_start_with_its_reason(write: Write) -> None:
    write("kafka: {brokers: ['127.0.0.1:1'], options: {publish_timeout: 0.5}, topic: t, group_id: g}\n")
    app = App(config.module, kafka.module, provide(MockHandler), invoke(kafka.run_consumer))
    with pytest.raises(BrokerUnavailable, match="did not answer within"):
        await app.start()


async def test_kafka_is_a_module_like_all_others(
    kafka_server: KafkaServer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"app-{uuid.uuid4().hex}"
    write(f"kafka: {{brokers: [nowhere], topic: {topic}, group_id: billing}}\n")
    monkeypatch.setenv("KAFKA_BROKERS", kafka_server.url.removeprefix("kafka://"))
    async with App(config.module, kafka.module, provide(MockHandler), invoke(kafka.run_consumer)) as app:
        await (await app.get(Producer)).publish(Message(topic, b"1"))
        await (await app.get(MockHandler)).handled(1, timeout=60)


class Placed(msgspec.Struct):
    id: str


class Shipped(msgspec.Struct):
    id: str


async def on_shipped(event: Shipped) -> None: ...


def test_a_handler_that_does_not_fit_a_contract_is_found_before_the_app_starts() -> None:
    placed = Topic("placed", Placed)
    app = App(config.module, memory.module, memory.consume(placed, group="g", handler=on_shipped))
    with pytest.raises(WiringError, match="on_shipped takes Shipped, but the topic 'placed' carries Placed"):
        app.check()
