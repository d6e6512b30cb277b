"""What tests of your own need: stand-ins for the contracts, virtual time, and the conformance suite for drivers.

* `MockHandler`, `MockProducer`, `MockConsumer` record what they are asked, and fail when told to.
* `run_virtual` and `VirtualTimeLoop` let back-offs and timeouts take no time.
* `StubDriver` is a broker whose abilities a test chooses and whose calls it lets fail; `broker_of` makes a `Broker` of it.
* The pytest fixtures `memory_broker`, `kafka_container`, `rabbitmq_container` and so on come by themselves with the package.
* `start_kafka_container`, `start_rabbitmq_container` and so on start a real broker, in a container or as a local process.
* `simulate` runs a `World` of your handlers through thousands of histories of a broker that crashes, repeats and reorders.
* `things_kit.testing.conformance` is what every driver passes.
"""

from things_kit.testing.clock import NothingCanHappen, VirtualTimeLoop, run_virtual, virtual_time
from things_kit.testing.mocks import ANYTHING, MockConsumer, MockHandler, MockProducer
from things_kit.testing.servers.containers import RunningServer
from things_kit.testing.servers.kafka import RunningKafka, start_kafka_container
from things_kit.testing.servers.nats import start_nats_container
from things_kit.testing.servers.postgres import start_postgres_container
from things_kit.testing.servers.pubsub import RunningPubSub, start_pubsub_container
from things_kit.testing.servers.rabbitmq import start_rabbitmq_container
from things_kit.testing.servers.redis import start_redis_container
from things_kit.testing.servers.registry import start_registry_container
from things_kit.testing.servers.servicebus import RunningServiceBus, start_servicebus_container
from things_kit.testing.servers.sqs import RunningSQS, start_sqs_container
from things_kit.testing.simulation import (
    Fault,
    Faults,
    Report,
    SimulationFailed,
    World,
    reached,
    simulate,
)
from things_kit.testing.stub import StubDriver, broker_of

__all__ = [
    "ANYTHING",
    "Fault",
    "Faults",
    "MockConsumer",
    "MockHandler",
    "MockProducer",
    "NothingCanHappen",
    "Report",
    "RunningKafka",
    "RunningPubSub",
    "RunningSQS",
    "RunningServer",
    "RunningServiceBus",
    "SimulationFailed",
    "StubDriver",
    "VirtualTimeLoop",
    "World",
    "broker_of",
    "reached",
    "run_virtual",
    "simulate",
    "start_kafka_container",
    "start_nats_container",
    "start_postgres_container",
    "start_pubsub_container",
    "start_rabbitmq_container",
    "start_redis_container",
    "start_registry_container",
    "start_servicebus_container",
    "start_sqs_container",
    "virtual_time",
]
