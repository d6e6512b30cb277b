"""What AMQP cannot tell: which exchanges and queues there are. RabbitMQ's management API can, where its plugin is enabled.

It is asked by who lists topics alone, never by a program that publishes or consumes: on the host of the URL, as the same
user, unless `?management=` says where else. No proxy and no redirect gets to see the login.
"""

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final, TypeVar
from urllib.parse import quote, unquote

import msgspec

from things_kit.brokers.rabbitmq.options import API, API_PORTS, Settings
from things_kit.engine.addresses import Address, address
from things_kit.engine.secrets import Secret
from things_kit.messaging.errors import ConfigError, UnsupportedError

CONNECT: Final = 3.0
"""Seconds until somebody is there: a firewall may drop what we ask, and a person waits."""

ANSWER: Final = 15.0
"""Seconds until the answer: there may be thousands of queues."""

OURS: Final = ".things-kit."

_GROUP: Final = re.compile(r"(?P<group>[^.]+)\.(?P<topic>.+)", re.DOTALL)
_REFUSED: Final = {401, 403}

AnswerT = TypeVar("AnswerT")


class Place(msgspec.Struct, frozen=True):
    """Where the management API is to be asked, and as whom. Its text shows no login."""

    scheme: str
    at: Address
    path: str
    user: str
    password: Secret

    def __str__(self) -> str:
        return f"{self.scheme}://{self.at}{self.path}"


class _Cluster(msgspec.Struct):
    name: str


class _Exchange(msgspec.Struct):
    name: str
    type: str
    durable: bool


class _Binding(msgspec.Struct):
    source: str
    destination: str
    destination_type: str


class _Refusal(msgspec.Struct):
    reason: str = ""


class Management:
    """The names of topics and groups."""

    def __init__(self, settings: Settings, cluster: object) -> None:
        """`cluster` is what the broker calls itself over AMQP: who answers here is to be the same one."""
        self._settings = settings
        self._cluster = cluster

    async def topics(self) -> list[str]:
        """The names of all durable fanout exchanges that are not RabbitMQ's own. Raises UnsupportedError, ConfigError."""
        found = await self._ask("exchanges", list[_Exchange], "name,type,durable")
        return [
            each.name
            for each in found
            if each.type == "fanout" and each.durable and not each.name.startswith(("amq.", OURS))
        ]

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The groups of each topic, by the queues that are bound to it. Raises UnsupportedError, ConfigError."""
        groups: dict[str, list[str]] = {topic: [] for topic in topics}
        columns = "source,destination,destination_type"
        for each in await self._ask("bindings", list[_Binding], columns):
            named = _GROUP.fullmatch(each.destination)
            if (
                named
                and each.destination_type == "queue"
                and each.source == named["topic"]
                and each.source in groups
            ):
                groups[each.source].append(unquote(named["group"]))
        return groups

    async def _ask(self, what: str, kind: type[AnswerT], columns: str) -> AnswerT:
        settings = self._settings
        display = settings.url.display
        if settings.options.exchange is not None or settings.options.queue is not None:
            raise UnsupportedError(
                f"{display} does not tell which topics and groups there are where its exchange or queues are named by "
                "the URL: ask its own tools"
            )
        path = f"/api/{what}/{quote(settings.login.virtual_host, safe='')}?columns={columns}"
        failure = ""
        for place in places(settings):
            try:
                known = await asyncio.to_thread(_get, place, "/api/cluster-name", settings.context)
                self._check(place, _read(place, known, _Cluster))
                return _read(place, await asyncio.to_thread(_get, place, path, settings.context), kind)
            except (OSError, HTTPException) as error:
                said = getattr(error, "strerror", None) or error or type(error).__name__
                failure = failure or f"{place} ({said})"
        raise UnsupportedError(
            f"{display} does not tell which topics there are: AMQP cannot, and there is no management API at {failure}; "
            "enable the plugin rabbitmq_management, or say where it is: ?management=http://HOST:PORT"
        )

    def _check(self, place: Place, cluster: _Cluster) -> None:
        if isinstance(self._cluster, str) and cluster.name != self._cluster:
            raise UnsupportedError(
                f"the management API at {place} is that of {cluster.name!r}, and {self._settings.url.display} is "
                f"{self._cluster!r}: say where its own is: ?management=http://HOST:PORT"
            )


def places(settings: Settings) -> list[Place]:
    """Where to ask, one after another."""
    login, given = settings.login, settings.options.management
    if given is None:
        scheme = "http" if settings.context is None else "https"
        return [
            Place(scheme, Address(host, API_PORTS[scheme]), "", login.user, login.password)
            for host, _ in settings.addresses
        ]
    found = API.fullmatch(given.reveal())
    assert found is not None  # noqa: S101 - the options have seen to it
    scheme, path = found["scheme"], (found["path"] or "").rstrip("/")
    user, password = login.user, login.password
    if found["user"] is not None:
        user, password = unquote(found["user"]), Secret(unquote(found["password"]))
    return [Place(scheme, address(found["at"], API_PORTS[scheme]), path, user, password)]


def _get(place: Place, path: str, context: ssl.SSLContext | None) -> tuple[int, bytes]:
    """Status and body. Blocks. Raises OSError, HTTPException."""
    host, port = place.at
    connection: HTTPConnection
    if place.scheme == "https":
        connection = HTTPSConnection(host, port, timeout=CONNECT, context=context)
    else:
        connection = HTTPConnection(host, port, timeout=CONNECT)
    login = b64encode(f"{place.user}:{place.password.reveal()}".encode()).decode()
    try:
        connection.connect()
        connection.sock.settimeout(ANSWER)
        connection.request("GET", place.path + path, headers={"Authorization": f"Basic {login}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _read(place: Place, answer: tuple[int, bytes], kind: type[AnswerT]) -> AnswerT:
    status, body = answer
    try:
        if status in _REFUSED:
            reason = msgspec.json.decode(body, type=_Refusal).reason
            raise ConfigError(
                f"the management API at {place} refuses the user {place.user!r}: {reason or f'status {status}'} (it needs "
                "the tag 'management'; another is given by ?management=http://USER:PASSWORD@HOST:PORT)"
            )
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise UnsupportedError(
            f"what answers at {place}, with status {status}, is no management API of RabbitMQ; say where that is: "
            "?management=http://HOST:PORT"
        ) from error
