"""The module `rabbitmq`: RabbitMQ."""

from typing import Final
from urllib.parse import quote

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import Names, ServerSettings, at_hosts


class RabbitMQSettings(ServerSettings):
    """The section `rabbitmq`."""

    own = "hosts"
    hosts: Names = ()
    vhost: str = "/"
    tls: bool = False

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        vhost = "" if self.vhost == "/" else f"/{quote(self.vhost, safe='')}"
        return at_hosts("amqps" if self.tls else "amqp", self.hosts, vhost)


_broker: Final = BrokerModule("rabbitmq", RabbitMQSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
