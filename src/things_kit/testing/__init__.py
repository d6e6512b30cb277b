"""What tests of your own need: stand-ins for the contracts, virtual time, and the conformance suite for drivers.

* `MockHandler`, `MockProducer`, `MockConsumer` record what they are asked, and fail when told to.
* `run_virtual` and `VirtualTimeLoop` let back-offs and timeouts take no time.
* The pytest fixture `memory_broker` comes by itself with the package.
* `things_kit.testing.conformance` is what every driver passes.
"""

from things_kit.testing.clock import NothingCanHappen, VirtualTimeLoop, run_virtual, virtual_time
from things_kit.testing.mocks import ANYTHING, MockConsumer, MockHandler, MockProducer

__all__ = [
    "ANYTHING",
    "MockConsumer",
    "MockHandler",
    "MockProducer",
    "NothingCanHappen",
    "VirtualTimeLoop",
    "run_virtual",
    "virtual_time",
]
