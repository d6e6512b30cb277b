"""The module `nats`: NATS JetStream."""

from typing import Final

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import Names, ServerSettings, at_hosts


class NATSSettings(ServerSettings):
    """The section `nats`."""

    own = "servers"
    servers: Names = ()
    tls: bool = False

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        return at_hosts("tls" if self.tls else "nats", self.servers)


_broker: Final = BrokerModule("nats", NATSSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
