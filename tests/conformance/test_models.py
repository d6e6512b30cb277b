"""The models that simulations run on keep, where nothing goes wrong, every promise that the brokers keep."""

import os
import random
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from things_kit.engine.url import BrokerURL
from things_kit.testing.conformance import ConformanceSuite, Target
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.simulation.models import MODELS, model
from things_kit.testing.simulation.models.server import ModelDriver, Server
from things_kit.testing.simulation.plan import Chance, Plan
from things_kit.testing.simulation.process import SimulatedProcess

only_with_all = pytest.mark.skipif(
    os.environ.get("MODELS") != "all", reason="its traits are those of other models; MODELS=all runs it"
)

_servers: dict[str, Server] = {}

THIS = SimulatedProcess(1, 0, 0.0, random.Random(1))
"""All connections are those of one process."""


class ModelByURL(ModelDriver):
    """A model in this process, under a name, on a real event loop."""

    @classmethod
    def from_url(cls, url: BrokerURL) -> Any:
        url.options(NoOptions)
        traits, group = model(url.scheme.removeprefix("model-"))
        server = _servers.get(url.hosts[0])
        if server is None:
            chance = Chance(Plan(seed=1, processes=1), {})
            server = _servers[url.hosts[0]] = Server(traits, group, chance, lambda *_: None)
            server.clock = time.time
        return server.driver(THIS)


class NoOptions(msgspec.Struct):
    """It has none."""


class ModelSuite(ConformanceSuite):
    """The whole suite, on a model found by its entry point as any third party's driver."""

    broker: str

    @pytest.fixture
    def target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
        installed = tmp_path / "models-1.0.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: models\nVersion: 1.0\n")
        points = "".join(f"model-{name} = {__name__}:ModelByURL\n" for name in MODELS)
        (installed / "entry_points.txt").write_text(f"[things_kit.brokers]\n{points}")
        monkeypatch.syspath_prepend(str(tmp_path))
        return Target(url=f"model-{self.broker}://{uuid4().hex}", shared=False, durable=False)

    async def test_stopped_consumers_leave_no_memory_behind(self, stage: Stage) -> None:
        pytest.skip("a model keeps whatever was published")


class TestKafkaModel(ModelSuite):
    broker = "kafka"


class TestRabbitMQModel(ModelSuite):
    broker = "rabbitmq"


class TestPubSubModel(ModelSuite):
    broker = "pubsub"


class TestSQSFIFOModel(ModelSuite):
    broker = "sqs-fifo"

    async def test_a_delayed_retry_lets_its_key_go_on(self, stage: Stage) -> None:
        pytest.skip("a FIFO queue hands out nothing of a group while a message of it is in flight")

    async def test_a_partition_is_handled_in_strict_order_through_retries(self, stage: Stage) -> None:
        pytest.skip("a FIFO queue has an order for each group of messages, and none beyond")


class TestSQLiteModel(ModelSuite):
    broker = "sqlite"


@only_with_all
class TestNATSModel(ModelSuite):
    broker = "nats"


@only_with_all
class TestRedisModel(ModelSuite):
    broker = "redis"


@only_with_all
class TestSQSModel(ModelSuite):
    broker = "sqs"


@only_with_all
class TestServiceBusModel(ModelSuite):
    broker = "servicebus"


@only_with_all
class TestPostgresModel(ModelSuite):
    broker = "postgres"
