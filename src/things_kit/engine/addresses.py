"""Where a broker is: the hosts and ports of its URL."""

import re
from typing import Final, NamedTuple

from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

_ADDRESS: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{0,9}))?")


class Address(NamedTuple):
    """A host and a port of it; as text `HOST:PORT`, and `[HOST]:PORT` for IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str, port: int) -> Address:
    """`HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT` taken apart; `port` where it names none.

    Raises:
        ValueError: It is none of these, or the port is not from 1 to 65535.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not HOST:PORT")
    chosen = int(found["port"] or port)
    if not 1 <= chosen <= 65_535:
        raise ValueError(f"the port of {text!r} is not from 1 to 65535")
    return Address(found["six"] or found["host"], chosen)


def addresses(
    url: BrokerURL, port: int, *, default: str | None = None, path: str = ""
) -> tuple[Address, ...]:
    """Those of a URL, in its order.

    Args:
        url: The URL.
        port: Where a host names none.
        default: The host of a URL that has none; without it such a URL is refused.
        path: What the URL's path is, such as "/VHOST"; without it a path is refused.

    Raises:
        ConfigError: A host is missing, or none; or there is a path and should not be.
    """
    hosts = url.hosts or ((default,) if default else ())
    if not hosts or (url.path.strip("/") and not path):
        raise ConfigError(
            f"{url.display}: expected {url.scheme}://HOST:PORT{path}, or several hosts with commas between them"
        )
    try:
        return tuple(
            address(f"{default}{host}" if default and host.startswith(":") else host, port) for host in hosts
        )
    except ValueError as error:
        raise ConfigError(f"{url.display}: {error}") from error
