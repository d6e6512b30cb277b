"""What a `sqlite://` URL says."""

from pathlib import Path
from typing import Literal

import msgspec

from things_kit.brokers.sqlite.schema import check_schema
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError


class SQLiteOptions(msgspec.Struct, frozen=True):
    """The options of a `sqlite://` URL.

    Attributes:
        schema: What the names of its tables begin with, so that they can live in an application's own file.
        synchronous: "full": a power failure loses nothing that was confirmed. "normal": it may lose the last moments;
            the death of a process still loses nothing.
        retain: Seconds for which a message stays after all groups of its topic have settled it.
        lease: Seconds after which what a dead process held is handed to another.
        max_message_bytes: The largest value, key and headers together.
    """

    schema: str = "things_kit"
    synchronous: Literal["full", "normal"] = "full"
    retain: float = 604_800.0
    lease: float = 5.0
    max_message_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        check_schema(self.schema)
        if not self.retain >= 0:
            raise ValueError("retain must be at least 0 seconds")
        if not 0 < self.lease < float("inf"):
            raise ValueError("lease must be more than 0 seconds")
        if not 0 < self.max_message_bytes <= 500_000_000:
            raise ValueError("max_message_bytes must be from 1 to 500000000")


def path_of(url: BrokerURL) -> Path:
    """The file that a URL names. Raises ConfigError if it names none."""
    if url.hosts or url.username or url.password:
        meant = "".join(url.hosts[:1]) + url.path
        raise ConfigError(
            f'sqlite:// has no host; for a file in the working directory write "sqlite:///{meant}"'
        )
    name = url.path[1:]
    if name in {"", ":memory:"}:
        raise ConfigError(
            "sqlite:// needs a file, such as sqlite:///events.db; for messages in memory use memory://"
        )
    if "\0" in name:
        raise ConfigError("sqlite://: a path has no NUL character")
    return Path(name)
