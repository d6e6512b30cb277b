"""The module `memory`: a broker in this process, such as for tests."""

from typing import Final
from urllib.parse import quote

from things_kit.modules.broker_module import BrokerModule
from things_kit.modules.broker_settings import BrokerSettings


class MemorySettings(BrokerSettings):
    """The section `memory`."""

    own = "name"
    name: str | None = None

    def own_url(self) -> str | None:
        """The URL that these fields say."""
        return (
            None
            if self.url is not None and self.name is None
            else f"memory://{quote(self.name or '', safe='')}"
        )


_broker: Final = BrokerModule("memory", MemorySettings)
module, run_consumer, consume = _broker.module, _broker.run_consumer, _broker.consume
