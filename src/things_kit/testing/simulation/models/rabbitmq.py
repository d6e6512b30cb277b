"""The model of RabbitMQ with quorum queues.

What the real one may do, and where that is written:

* What a channel held goes back to its place as soon as the connection is gone, and is counted in `x-delivery-count`
  (RabbitMQ documentation, "Quorum Queues", "Poison Message Handling"; "Consumer Acknowledgements", "Automatic Requeueing").
* What is given back is counted, too. Our driver knows of what its own process gave back, another's does not (recorded,
  tests/testing/simulation/recorded).
* It pushes up to the prefetch count. It keeps no order between consumers of one queue, and none through a return.
* It has no delay beside a message: our driver sends copies through queues with a TTL, and what is for later up a ladder of
  those, with the wait that its own clock says. It comes within half a second or so, those of one publish in their order, and
  stays at the end while its topic has no group (docs/scheduling.md).
* A publish that no queue is bound for comes back (`mandatory`).
* There are no leases: a slow consumer keeps what it has, within `consumer_timeout`, which is half an hour.
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Keeping, Traits

TRAITS: Final = Traits(
    name="rabbitmq",
    capabilities=Capabilities(
        attempts=True,
        targeted=True,
        lasting_inbox=False,
        passing_inbox=True,
        fixed_credit=True,
        suspects=True,
        max_message_bytes=16 * 1024 * 1024,
    ),
    impossible=frozenset({"rebalance", "lease_expiry"}),
    pushed=True,
    counts=True,
    counts_returns=True,
    mandatory=True,
    later=True,
    keeping=Keeping(by="wait", loose=0.5, patient=True, longest=621 * 86_400.0),
)
GROUP: Final = QueueGroup
