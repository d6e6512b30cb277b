"""The module `redis`: Redis Streams."""

from typing import Final

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import Names, ServerSettings, at_hosts


class RedisSettings(ServerSettings):
    """The section `redis`."""

    own = "hosts"
    hosts: Names = ()
    db: int = 0
    tls: bool = False

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        return at_hosts("rediss" if self.tls else "redis", self.hosts, f"/{self.db}")


_broker: Final = BrokerModule("redis", RedisSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
