"""What a `postgres://` URL says."""

from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlencode

import msgspec

from things_kit.brokers.postgres.schema import check_schema
from things_kit.engine.addresses import Address, addresses
from things_kit.engine.secrets import Secret
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

PORT: Final = 5432


class PostgresOptions(msgspec.Struct, frozen=True):
    """The options of a `postgres://` URL.

    Attributes:
        schema: In which the tables are; made if it is missing.
        retain: Seconds for which a message stays after all groups of its topic have settled it.
        lease: Seconds after which what a dead process held is handed to another.
        max_message_bytes: The largest value, key and headers together.
        pool: The most connections at a time; a broker that receives has one more, which listens.
        poll: Seconds between two looks, while somebody waits: what is not notified arrives so much later at most.
        notify: Whether publishers tell consumers that there is something, by NOTIFY.
        prepared: Whether statements are prepared by name, which PgBouncer in transaction mode may not have. "auto": not
            where a pooler stands in between.
        timeout: Seconds that the server may take to answer.
        sslmode: As libpq has it.
        sslrootcert: File of the certificates that sign the server's.
        sslcert: File of this client's certificate.
        sslkey: File of its private key.
        sslpassword: What the private key is encrypted with.
    """

    schema: str = "things_kit"
    retain: float = 604_800.0
    lease: float = 10.0
    max_message_bytes: int = 16 * 1024 * 1024
    pool: int = 4
    poll: float = 0.5
    notify: bool = True
    prepared: Literal["auto", "true", "false"] = "auto"
    timeout: float = 10.0
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    sslpassword: Secret | None = None

    def __post_init__(self) -> None:
        check_schema(self.schema)
        if not 0 <= self.retain < 1e10:
            raise ValueError("retain must be at least 0 seconds")
        if not 0.1 <= self.lease <= 86_400:
            raise ValueError("lease must be from 0.1 seconds to a day")
        if not 0 < self.max_message_bytes <= 100_000_000:
            raise ValueError("max_message_bytes must be from 1 to 100000000")
        if not 1 <= self.pool <= 1000:
            raise ValueError("pool must be from 1 to 1000")
        if not 0.01 <= self.poll <= 3600 or not 0.1 <= self.timeout <= 3600:
            raise ValueError("poll and timeout must be seconds, poll at least 0.01 and timeout 0.1")


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood."""

    url: BrokerURL
    options: PostgresOptions
    addresses: tuple[Address, ...]
    database: str | None

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError for what is not understood, or a file that cannot be read."""
        options = url.options(PostgresOptions)
        for name in ("sslrootcert", "sslcert", "sslkey"):
            path = getattr(options, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"{url.display}: option {name!r}: the file {path!r} cannot be read")
        database = url.path.lstrip("/")
        if "\0" in database or "/" in database:
            raise ConfigError(f"{url.display}: the path of the URL is the name of one database")
        return cls(
            url, options, addresses(url, PORT, default="localhost", path="/DATABASE"), database or None
        )

    def connection(self) -> dict[str, Any]:
        """What a connection is made of; of several hosts it is the one that can be written to."""
        options = self.options
        given = {
            "sslmode": options.sslmode,
            "sslrootcert": options.sslrootcert,
            "sslcert": options.sslcert,
            "sslkey": options.sslkey,
            "sslpassword": options.sslpassword.reveal() if options.sslpassword else None,
        }
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return {
            "dsn": f"postgresql://?{query}",
            "host": [address.host for address in self.addresses],
            "port": [address.port for address in self.addresses],
            "user": self.url.username,
            "password": self.url.password,
            "database": self.database,
            "timeout": options.timeout,
            "max_cached_statement_lifetime": 0,
            "server_settings": {"application_name": "things-kit"},
            "target_session_attrs": "read-write" if len(self.addresses) > 1 else "any",
        }
