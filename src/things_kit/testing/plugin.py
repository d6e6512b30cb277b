"""The pytest plugin: fixtures that need no import, and readable assertions in the conformance suite.

It loads with every pytest of an environment that has this package, so it imports nothing heavy, and does not fail
where pytest-asyncio is missing: only a test that asks for one of its fixtures does.
"""

from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker
    from things_kit.testing.servers.containers import RunningServer

try:
    import pytest_asyncio
except ModuleNotFoundError:

    @pytest.fixture
    def memory_broker() -> None:
        """An open broker in memory; it cannot be had without pytest-asyncio."""
        pytest.fail(
            'the fixture memory_broker needs pytest-asyncio: pip install "things-kit[testing]"', pytrace=False
        )

else:

    def _broker_on(loop_scope: Any) -> Any:
        """A fixture of an open broker in memory, on the event loop of this scope."""

        async def opened() -> "AsyncIterator[Broker]":
            from things_kit.brokers.connect import connect  # noqa: PLC0415 - every pytest run would pay for it

            async with connect("memory://") as broker:
                yield broker

        return pytest_asyncio.fixture(
            opened, loop_scope=loop_scope, name=f"_things_kit_memory_broker_{loop_scope}"
        )

    _on_function, _on_class, _on_module, _on_package, _on_session = map(
        _broker_on, ("function", "class", "module", "package", "session")
    )

    @pytest.fixture
    def memory_broker(request: pytest.FixtureRequest) -> "Broker":
        """An open broker in memory, the test's own; it is closed after the test, with its consumers and producers.

        It lives on the event loop that the test runs on, also where that is a wider one.
        """
        broker: Broker = request.getfixturevalue(f"_things_kit_memory_broker_{_loop_of(request)}")
        return broker

    def _loop_of(request: pytest.FixtureRequest) -> str:
        """The scope of the test's event loop, as pytest-asyncio finds it."""
        marker = request.node.get_closest_marker("asyncio")
        said = {} if marker is None else marker.kwargs
        configured = _setting(request.config, "asyncio_default_test_loop_scope")
        return str(said.get("loop_scope") or said.get("scope") or configured or "function")

    def _setting(config: pytest.Config, name: str) -> str | None:
        try:
            return str(config.getini(name)) or None
        except ValueError:  # this pytest-asyncio does not have it yet
            return None


def _container(broker: str, name: str) -> Any:
    """A fixture of a broker of the test session's own."""

    def running() -> "Iterator[RunningServer]":
        from things_kit.testing.servers.fixtures import unavailable  # noqa: PLC0415
        from things_kit.testing.servers.process import ServerUnavailable  # noqa: PLC0415

        start = getattr(import_module(f"things_kit.testing.servers.{broker}"), f"start_{broker}_container")
        try:
            server = start()
        except ServerUnavailable as reason:
            unavailable(reason)
        try:
            yield server
        finally:
            server.terminate()

    running.__doc__ = f"""{name} with `.url`: a container where there is Docker, else a local process.

    The test is skipped, with the reason, where neither can be had; where CI=true it fails.
    """
    return pytest.fixture(running, scope="session", name=f"{broker}_container")


kafka_container = _container("kafka", "A real Apache Kafka, also with `.brokers`,")
nats_container = _container("nats", "A real NATS with JetStream,")
postgres_container = _container("postgres", "A real PostgreSQL,")
pubsub_container = _container("pubsub", "Google Pub/Sub, or what stands in for it, also with `.endpoint`,")
rabbitmq_container = _container("rabbitmq", "A real RabbitMQ,")
redis_container = _container("redis", "A real Redis,")
registry_container = _container("registry", "A real schema registry,")
servicebus_container = _container(
    "servicebus", "What stands in for Azure Service Bus, also with `.connection_string`,"
)
sqs_container = _container("sqs", "An emulator of SQS and SNS, also with `.endpoint`,")

pytest.register_assert_rewrite("things_kit.testing.conformance")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --things-kit-seed."""
    group = parser.getgroup("things-kit")
    group.addoption(
        "--things-kit-seed",
        type=int,
        metavar="SEED",
        help="let simulate() run the history of this seed alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tell simulations, also those in other processes, which seed is to run."""
    seed = config.getoption("--things-kit-seed", default=None)
    if seed is not None:
        from things_kit.testing.simulation.selection import choose  # noqa: PLC0415 - every pytest run would pay for it

        choose(seed)
