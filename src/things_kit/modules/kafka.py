"""The module `kafka`: Apache Kafka."""

from typing import Final

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import Names, ServerSettings, at_hosts


class KafkaSettings(ServerSettings):
    """The section `kafka`."""

    own = "brokers"
    brokers: Names = ()

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        return at_hosts("kafka", self.brokers)


_broker: Final = BrokerModule("kafka", KafkaSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
