"""The module `servicebus`: Azure Service Bus."""

from typing import Final

from pydantic import SecretStr

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import BrokerSettings, with_options


class ServiceBusSettings(BrokerSettings):
    """The section `servicebus`."""

    own = "namespace"
    namespace: str | None = None
    key_name: str | None = None
    key: SecretStr | None = None

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        if self.namespace is None:
            return None
        host = self.namespace if "." in self.namespace else f"{self.namespace}.servicebus.windows.net"
        key = None if self.key is None else self.key.get_secret_value()
        return with_options(f"servicebus://{host}", {"key_name": self.key_name, "key": key})


_broker: Final = BrokerModule("servicebus", ServiceBusSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
