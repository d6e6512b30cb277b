"""What a URL of Redis says: options, and the client made by them."""

import inspect
from collections.abc import Sequence
from typing import Any, Final, Self, TypeAlias

import msgspec
from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from things_kit.engine.addresses import Address, addresses
from things_kit.engine.secrets import Secret
from things_kit.engine.tls import TLSOptions, check_tls
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

PORT: Final = 6379
SENTINEL_PORT: Final = 26379


def _unnotified() -> dict[str, Any]:
    """Turns off notifications of maintenance, where redis-py has them.

    With them on, as they are by its default, its pools hand out connections that the server has closed meanwhile
    (`ConnectionPool.ensure_connection`, redis-py 8.1), and whoever gets one loses what it was about to settle.
    """
    if "maint_notifications_config" not in inspect.signature(Redis.__init__).parameters:
        return {}
    from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415 - older ones have none

    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


UNNOTIFIED: Final = _unnotified()

CONNECTIONS: Final = 10_000
"""More than anybody needs: one for each receiver, and one for each call at a time."""

Client: TypeAlias = "Redis | RedisCluster"


class RedisOptions(TLSOptions, frozen=True):
    """The options of `redis://` and `rediss://`; those of TLS are for the latter.

    Attributes:
        cluster: The hosts are nodes of a Redis Cluster.
        sentinel: The hosts are sentinels; this is the name of their master.
        sentinel_username: The user by whom the sentinels let us in, if they have logins.
        sentinel_password: That user's password.
        lease: Seconds after which the messages of a dead process go to others.
        retain: Seconds for which a message is kept after every group has acknowledged it; -1 keeps all.
        maxlen: About how many messages a topic keeps at most, read or not; 0 is no limit.
        wait_replicas: How many replicas must have a message before it is confirmed.
        wait_timeout: Seconds that they may take.
        timeout: Seconds that the server may take to answer.
        max_message_bytes: The largest value, key and headers together.
        value_field: The field of an entry that is a message's value.
        key_field: The field that is its key.
        check_hostname: Whether the server's certificate must be for the host of the URL.
    """

    cluster: bool = False
    sentinel: str | None = None
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None
    lease: float = 30.0
    retain: float = 604_800.0
    maxlen: int = 0
    wait_replicas: int = 0
    wait_timeout: float = 1.0
    timeout: float = 4.0
    max_message_bytes: int = 16 * 2**20
    value_field: str = "value"
    key_field: str = "key"
    check_hostname: bool = True

    def __post_init__(self) -> None:
        if self.cluster and self.sentinel:
            raise ValueError("cluster and sentinel are two ways of running Redis: give one of them")
        if self.cluster and self.wait_replicas:
            raise ValueError("wait_replicas does not go with cluster: a batch goes to several nodes")
        if self.lease < 0.1:
            raise ValueError("lease must be at least 0.1 seconds")
        if not self.timeout > 0 or not self.wait_timeout > 0:
            raise ValueError("timeout and wait_timeout must be more than 0 seconds")
        if self.maxlen < 0 or self.wait_replicas < 0 or self.max_message_bytes < 1:
            raise ValueError(
                "maxlen and wait_replicas must not be negative, and max_message_bytes at least 1"
            )
        if self.max_message_bytes > 500 * 2**20:
            raise ValueError(
                "max_message_bytes must be at most 500 MiB: Redis takes 512 (proto-max-bulk-len)"
            )
        if self.value_field == self.key_field or not self.value_field or not self.key_field:
            raise ValueError("value_field and key_field must be two names")


class Settings(msgspec.Struct, frozen=True):
    """A URL and its options."""

    url: BrokerURL
    options: RedisOptions
    database: int

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError for what is not understood."""
        options = url.options(RedisOptions)
        database = _database(url)
        if options.cluster and database:
            raise ConfigError(f"{url.display}: a Redis Cluster has no databases: leave out /{database}")
        if len(url.hosts) > 1 and not (options.cluster or options.sentinel):
            raise ConfigError(
                f"{url.display}: several hosts are a cluster or sentinels: add ?cluster=true or ?sentinel=NAME"
            )
        check_tls(url, options, secure="rediss")
        return cls(url, options, database)

    @property
    def addresses(self) -> Sequence[Address]:
        """Hosts and ports of the URL."""
        port = SENTINEL_PORT if self.options.sentinel else PORT
        return addresses(self.url, port, default="localhost", path="/DATABASE")

    def connection(self) -> dict[str, Any]:
        """What a connection to a server of Redis itself is made of."""
        arguments: dict[str, Any] = {
            **UNNOTIFIED,
            "username": self.url.username,
            "password": self.url.password,
            "protocol": 3,
            "socket_timeout": self.options.timeout,
            "socket_connect_timeout": self.options.timeout,
        }
        if self.url.scheme == "rediss":
            options = self.options
            arguments |= {
                "ssl_ca_certs": options.ca,
                "ssl_certfile": options.cert,
                "ssl_keyfile": options.key,
                "ssl_password": options.key_password.reveal() if options.key_password else None,
                "ssl_check_hostname": options.check_hostname,
            }
        return {name: value for name, value in arguments.items() if value is not None}

    def pool(self, host: str, port: int) -> ConnectionPool:
        """Connections to one server. Nothing is retried below the engine, which does it within bounds."""
        arguments = {**self.connection(), "db": self.database, "retry": Retry(NoBackoff(), 0)}
        if self.url.scheme == "rediss":
            arguments["connection_class"] = SSLConnection
        return ConnectionPool(host=host, port=port, max_connections=CONNECTIONS, **arguments)

    def client(self) -> Client:
        """Not yet connected."""
        ssl: dict[str, Any] = {"ssl": True} if self.url.scheme == "rediss" else {}
        if self.options.cluster:
            if self.options.key_password:  # the client has no way to say it to a cluster
                raise ConfigError(f"{self.url.display}: with cluster=true the key must not be encrypted")
            return RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in self.addresses],
                retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 3),
                max_connections=CONNECTIONS,
                **ssl,
                **self.connection(),
            )
        if self.options.sentinel:
            master: Redis = self._sentinels(ssl).master_for(
                self.options.sentinel,
                db=self.database,
                retry=Retry(NoBackoff(), 0),
                max_connections=CONNECTIONS,
            )
            return master
        return Redis.from_pool(self.pool(*self.addresses[0]))

    def _sentinels(self, ssl: dict[str, Any]) -> Any:
        options = self.options
        own = {
            **self.connection(),
            **ssl,
            "username": options.sentinel_username,
            "password": options.sentinel_password.reveal() if options.sentinel_password else None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,  # redis-py before 8 does not understand what sentinels answer in RESP3
        }
        sentinel: Any = Sentinel  # which has no annotations
        return sentinel([*self.addresses], sentinel_kwargs=own, **ssl, **self.connection())


def _database(url: BrokerURL) -> int:
    path = url.path.strip("/")
    if not path:
        return 0
    if not (path.isascii() and path.isdigit()):
        raise ConfigError(f"{url.display}: the path is the number of a database, such as /0")
    return int(path)


def sentinels_of(client: Any) -> list[Redis]:
    """The clients of the sentinels by which this one knows its master; none where there are none."""
    pool = None if isinstance(client, RedisCluster) else client.connection_pool
    return list(pool.sentinel_manager.sentinels) if isinstance(pool, SentinelConnectionPool) else []
