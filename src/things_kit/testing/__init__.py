"""What tests of your own need: stand-ins for the contracts, virtual time, and the conformance suite for drivers.

* `MockHandler`, `MockProducer`, `MockConsumer` record what they are asked, and fail when told to.
* `run_virtual` and `VirtualTimeLoop` let back-offs and timeouts take no time.
* The pytest fixtures `memory_broker`, `kafka_container` and `nats_container` come by themselves with the package.
* `start_kafka_container` and `start_nats_container` start a real broker, in a container or as a local process.
* `things_kit.testing.conformance` is what every driver passes.
"""

from things_kit.testing.clock import NothingCanHappen, VirtualTimeLoop, run_virtual, virtual_time
from things_kit.testing.mocks import ANYTHING, MockConsumer, MockHandler, MockProducer
from things_kit.testing.servers.kafka import RunningKafka, start_kafka_container
from things_kit.testing.servers.nats import RunningNATS, start_nats_container

__all__ = [
    "ANYTHING",
    "MockConsumer",
    "MockHandler",
    "MockProducer",
    "NothingCanHappen",
    "RunningKafka",
    "RunningNATS",
    "VirtualTimeLoop",
    "run_virtual",
    "start_kafka_container",
    "start_nats_container",
    "virtual_time",
]
