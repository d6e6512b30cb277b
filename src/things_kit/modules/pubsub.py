"""The module `pubsub`: Google Cloud Pub/Sub."""

from typing import Final

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import BrokerSettings, with_options


class PubSubSettings(BrokerSettings):
    """The section `pubsub`."""

    own = "project"
    project: str | None = None
    endpoint: str | None = None

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        if self.project is None:
            return None
        return with_options(f"pubsub://{self.project}", {"endpoint": self.endpoint})


_broker: Final = BrokerModule("pubsub", PubSubSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
