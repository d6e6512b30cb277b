"""What carries the messages of the ordering service to Kafka, in order by customer; any number of them share the work."""

import os

from examples.shop.contracts import orders
from things_kit import App
from things_kit.modules import config, logging
from things_kit.patterns import Outbox

outbox = Outbox()
app = App(
    config.module,
    logging.module,
    outbox.relay(os.environ["OUTBOX_URL"], os.environ["KAFKA_URL"], [orders]),
)
