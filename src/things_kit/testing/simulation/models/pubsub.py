"""The model of Google Pub/Sub with streaming pull and ordering keys.

What the real one may do, and where that is written:

* Delivery is at least once: a message may come twice although it was acknowledged (Pub/Sub documentation,
  "Subscription overview"). The acknowledgement deadline is renewed by the client.
* Messages with an ordering key come in order; when one comes again, those after it do, too ("Order messages").
* It says nothing of attempts without a dead-letter policy, has no delay, and does not tell how much is waiting. What is for
  later waits in topics of the engine's, which running consumers carry on.
* A topic without subscriptions drops what is published to it.
"""

from typing import Final

from things_kit.engine.driver import Capabilities
from things_kit.testing.simulation.models.queue import QueueGroup
from things_kit.testing.simulation.models.traits import Traits

TRAITS: Final = Traits(
    name="pubsub",
    capabilities=Capabilities(
        lease=60.0, lag=False, fixed_credit=True, carried=31 * 86_400.0, max_message_bytes=9_950_000
    ),
    pushed=True,
    listened=True,
    keyed=True,
    duplicates=True,
)
GROUP: Final = QueueGroup
