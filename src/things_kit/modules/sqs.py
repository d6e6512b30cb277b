"""The module `sqs`: Amazon SQS and SNS."""

from typing import Final

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import BrokerSettings, with_options


class SQSSettings(BrokerSettings):
    """The section `sqs`."""

    own = "region"
    region: str | None = None
    endpoint: str | None = None

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        if self.region is None:
            return None
        return with_options(f"sqs://{self.region}", {"endpoint": self.endpoint})


_broker: Final = BrokerModule("sqs", SQSSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
