"""The pytest plugin: fixtures that need no import, and readable assertions in the conformance suite.

It loads with every pytest of an environment that has this package, so it imports nothing heavy, and does not fail
where pytest-asyncio is missing: only a test that asks for one of its fixtures does.
"""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from things_kit.engine.broker import Broker
    from things_kit.testing.servers.kafka import RunningKafka
    from things_kit.testing.servers.redis import RunningRedis

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

    @pytest_asyncio.fixture(name="memory_broker")
    async def _memory_broker() -> "AsyncIterator[Broker]":
        """An open broker in memory, the test's own; it is closed after the test, with its consumers and producers."""
        from things_kit.brokers.connect import connect  # noqa: PLC0415 - every pytest run would pay for it

        async with connect("memory://") as broker:
            yield broker


@pytest.fixture(scope="session")
def kafka_container() -> "Iterator[RunningKafka]":
    """A real Apache Kafka with `.brokers` and `.url`: a container where there is Docker, else a local process.

    The test is skipped, with the reason, where neither can be had; where CI=true it fails.
    """
    from things_kit.testing.servers.fixtures import unavailable  # noqa: PLC0415
    from things_kit.testing.servers.kafka import start_kafka_container  # noqa: PLC0415
    from things_kit.testing.servers.process import ServerUnavailable  # noqa: PLC0415

    try:
        running = start_kafka_container()
    except ServerUnavailable as reason:
        unavailable(reason)
    try:
        yield running
    finally:
        running.terminate()


@pytest.fixture(scope="session")
def redis_container() -> "Iterator[RunningRedis]":
    """A real Redis with `.url`: a container where there is Docker, else a local process.

    The test is skipped, with the reason, where neither can be had; where CI=true it fails.
    """
    from things_kit.testing.servers.fixtures import unavailable  # noqa: PLC0415
    from things_kit.testing.servers.process import ServerUnavailable  # noqa: PLC0415
    from things_kit.testing.servers.redis import start_redis_container  # noqa: PLC0415

    try:
        running = start_redis_container()
    except ServerUnavailable as reason:
        unavailable(reason)
    try:
        yield running
    finally:
        running.terminate()


pytest.register_assert_rewrite("things_kit.testing.conformance")
