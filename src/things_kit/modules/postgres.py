"""The module `postgres`: topics in a PostgreSQL database."""

from typing import Final
from urllib.parse import quote

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import Names, ServerSettings, at_hosts


class PostgresSettings(ServerSettings):
    """The section `postgres`."""

    own = "hosts"
    hosts: Names = ()
    database: str | None = None

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        path = "" if self.database is None else f"/{quote(self.database, safe='')}"
        return at_hosts("postgres", self.hosts, path)


_broker: Final = BrokerModule("postgres", PostgresSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
