"""Broker URLs: what connect() is given, and the options in their query."""

import re
from typing import Any, Final, Literal, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from things_kit.engine.naming import looks_like_pattern
from things_kit.engine.secrets import is_secret, secrets_of
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.instrument import Endpoint
from things_kit.messaging.policy import LONGEST

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


LONGEST_PREFIX: Final = 64
"""Bytes of `topic_prefix`: with the longest name of a topic and its `schedule_id` it fits into an entry of a database's index."""

LONGEST_QUOTE: Final = 200
"""Characters of a wrong value that are quoted."""

_AUTHORITY: Final = re.compile(r"[^:/?#]+://(?P<authority>[^/?#]*)")

_SECRET_NAMES: Final = re.compile(
    r"password|passphrase|secret|token|credential|sasl|(^|access|account|api|private|shared)[._-]?key$"
)
"""How options are named whose values may be secret, whatever a driver made of their types."""


class EngineOptions(msgspec.Struct, frozen=True):
    """The options that every broker's URL takes.

    Attributes:
        publish_timeout: Seconds for which a publish waits while the broker is away.
        declare: Whether publish and start create what is missing.
        unrouted: What becomes of a message to a topic that no group has, on a broker that would drop it: "refuse" is
            `NobodyListens`, "drop" takes it for published.
        topic_prefix: What the names of all topics and groups begin with at the broker, for environments that share one.
    """

    publish_timeout: float = 30.0
    declare: bool = True
    unrouted: Literal["refuse", "drop"] = "refuse"
    topic_prefix: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.publish_timeout <= LONGEST:
            raise ValueError(
                f"publish_timeout must be more than 0 seconds, and at most {LONGEST:.0f}, a year"
            )
        if looks_like_pattern(f"{self.topic_prefix}orders"):
            raise ValueError("topic_prefix must not look like a pattern")
        if len(self.topic_prefix.encode()) > LONGEST_PREFIX or "\0" in self.topic_prefix:
            raise ValueError(f"topic_prefix must have at most {LONGEST_PREFIX} bytes, and no null character")


class BrokerURL(msgspec.Struct, frozen=True):
    """A broker's URL, taken apart. Its repr and `display` show no password and no option."""

    scheme: str
    hosts: tuple[str, ...]
    path: str
    username: str | None
    password: str | None
    query: dict[str, str]
    engine: EngineOptions = EngineOptions()

    @classmethod
    def parse(cls, url: str) -> "BrokerURL":
        """Take a URL apart. Raises ConfigError, without naming what may be secret, if it is none."""
        if not isinstance(url, str):
            raise ConfigError(
                f"a broker's URL is a string such as 'sqlite:///events.db', not {type(url).__name__}"
            )
        try:
            parts, authority = _apart(url)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError:  # whose text has parts of the URL, so it is no cause to show
            raise ConfigError(
                "this is not a URL: expected SCHEME://HOST or SCHEME:///PATH, with ?option=value"
            ) from None
        if not parts.scheme or "://" not in url:
            raise ConfigError(
                "this is not a broker's URL: expected SCHEME://..., such as sqlite:///events.db or kafka://localhost:9092"
            )
        if parts.fragment:
            raise ConfigError(f"{parts.scheme}://: a broker's URL has no '#' part; write '#' as %23")
        query = dict(pairs)
        if len(query) != len(pairs):
            twice = next(name for name in query if sum(name == other for other, _ in pairs) > 1)
            raise ConfigError(f"{parts.scheme}://: the option {twice!r} is given more than once")
        login, _, hosts = authority.rpartition("@")
        _check_hosts(parts.scheme, hosts, parts.path)
        username, _, password = login.partition(":")
        known = EngineOptions.__struct_fields__
        parsed = cls(
            scheme=parts.scheme,
            hosts=tuple(unquote(host) for host in hosts.split(",") if host),
            path=unquote(parts.path),
            username=unquote(username) or None,
            password=unquote(password) or None,
            query={name: value for name, value in query.items() if name not in known},
        )
        engine = _convert(parsed, {name: query[name] for name in known if name in query}, EngineOptions)
        return msgspec.structs.replace(parsed, engine=engine)

    def options(self, kind: type[OptionsT], *, besides: tuple[str, ...] = ()) -> OptionsT:
        """The query as a driver's options: a msgspec Struct whose fields have defaults, `Secret` ones for what is secret.

        Args:
            kind: The Struct.
            besides: How names begin that are not its own, but are asked for by `prefixed`.

        Raises:
            ConfigError: An option is unknown or its value is not what the field's type says.
        """
        own = {name: value for name, value in self.query.items() if not name.startswith(besides)}
        known = (*kind.__struct_fields__, *EngineOptions.__struct_fields__)
        for name in own:
            if name not in known:
                more = "".join(f", {prefix}NAME" for prefix in besides)
                raise ConfigError(
                    f"{self.display}: unknown option {name!r}; known are {', '.join(sorted(known))}{more}"
                )
        return _convert(self, own, kind)

    def prefixed(self, prefix: str) -> dict[str, str]:
        """The options whose names begin with `prefix`, without it: settings that are handed on as they are.

        Raises:
            ConfigError: One has no name behind the prefix, or a null character.
        """
        found = {name[len(prefix) :]: value for name, value in self.query.items() if name.startswith(prefix)}
        for name, value in found.items():
            if not name or "\0" in name + value:
                raise ConfigError(
                    f"{self.display}: option {prefix + name!r}: expected {prefix}NAME=VALUE, without null characters"
                )
        return found

    @property
    def display(self) -> str:
        """The URL without login and query, fit for logs and errors."""
        return f"{self.scheme}://{','.join(self.hosts)}{self.path}"

    @property
    def endpoint(self) -> Endpoint:
        """What telemetry calls the broker."""
        if len(self.hosts) != 1:
            return Endpoint(self.scheme)
        host, _, port = self.hosts[0].rpartition(":")
        if not host or not port.isdigit():
            return Endpoint(self.scheme, self.hosts[0].strip("[]"))
        return Endpoint(self.scheme, host.strip("[]"), int(port))

    def __repr__(self) -> str:
        return f"BrokerURL({self.display!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # else rich prints every field
        return [("url", self.display)]


def _apart(url: str) -> tuple[SplitResult, str]:
    """A URL and its authority. Raises ValueError.

    That may be a list of hosts, which no URL in general has: Python refuses brackets in the middle of it, in newer
    versions, so each host is looked at alone.
    """
    url = re.sub("[\t\r\n]", "", url)  # as urlsplit does
    found = _AUTHORITY.match(url)
    if found is None:
        return urlsplit(url), ""
    for host in found["authority"].rpartition("@")[2].split(","):
        urlsplit(f"//{host}")
    return urlsplit(url[: found.start("authority")] + url[found.end("authority") :]), found["authority"]


def _check_hosts(scheme: str, hosts: str, path: str) -> None:
    """A login with characters that were not percent-encoded ends up in the hosts or the path; it must not be shown."""
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    if (hosts and "@" in path) or not all(
        port == "" or (port.isascii() and port.isdigit()) for port in ports
    ):
        raise ConfigError(
            f"{scheme}://: a host is NAME or NAME:PORT, and the port a number; in a user name or password write "
            "'/', '?', '#' and '@' as %2F, %3F, %23 and %40"
        )


def _convert(url: BrokerURL, query: dict[str, str], kind: type[OptionsT]) -> OptionsT:
    known: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(kind)}
    shown = {name: value for name, value in query.items() if not _hidden(name, value, known[name])}
    for name, value in query.items():
        try:
            msgspec.convert(value, known[name], strict=False, dec_hook=secrets_of)
        except msgspec.ValidationError as error:
            given = f"; it is {_quoted(value)}" if name in shown else ""
            # Some of msgspec's texts quote the value, so that of a secret one is no cause to show
            raise ConfigError(f"{url.display}: option {name!r}: {_sentence(error)}{given}") from (
                error if name in shown else None
            )
    try:
        return msgspec.convert(query, kind, strict=False, dec_hook=secrets_of)
    except msgspec.ValidationError as error:
        text = _sentence(error)
        given = "".join(
            f"; {name} is {_quoted(value)}"
            for name, value in shown.items()
            if re.search(rf"\b{re.escape(name)}\b", text)
        )
        raise ConfigError(f"{url.display}: {text}{given}") from error


def _hidden(name: str, value: str, kind: Any) -> bool:
    """Whether an option's value may be or have a secret: by its type, its name, or as a URL with a login."""
    return is_secret(kind) or "@" in value or _SECRET_NAMES.search(name.lower()) is not None


def _quoted(value: str) -> str:
    return repr(value if len(value) <= LONGEST_QUOTE else f"{value[:LONGEST_QUOTE]}...")


def _sentence(error: msgspec.ValidationError) -> str:
    return str(error).split(" - at `")[0]
