"""The module `sqlite`: an embedded broker in a file."""

from typing import Final
from urllib.parse import quote

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import BrokerSettings


class SQLiteSettings(BrokerSettings):
    """The section `sqlite`."""

    own = "path"
    path: str | None = None

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        return None if self.path is None else f"sqlite:///{quote(self.path)}"


_broker: Final = BrokerModule("sqlite", SQLiteSettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
