"""Which Apache Kafka a broker is, which librdkafka knows but does not tell: one ApiVersions request of our own.

A broker answers it before any login (KIP-35), and names the features that its cluster has switched on (KIP-584).
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

API_VERSIONS: Final = 18
FLEXIBLE: Final = 3
"""The first version of the request that has features in its answer."""

UNSUPPORTED: Final = 35

ANSWER: Final = 5.0
"""Seconds that the broker may take."""

MOST: Final = 1 << 20
"""Bytes of an answer: what says more is no Kafka."""

RELEASES: Final = (
    (7, "3.3"), (8, "3.4"), (9, "3.5"), (12, "3.6"), (15, "3.7"), (20, "3.8"), (21, "3.9"), (22, "4.0"),
    (26, "4.1"), (28, "4.2"), (30, "4.3"), (31, ""),
)  # fmt: skip
"""The first level of `metadata.version` of each release (org.apache.kafka.server.common.MetadataVersion)."""


class Versions(msgspec.Struct, frozen=True):
    """What a broker says of itself.

    Attributes:
        known: The highest level of each feature that its software knows.
        active: The level of each feature that its cluster has switched on.
    """

    known: Mapping[str, int] = {}
    active: Mapping[str, int] = {}

    @property
    def release(self) -> str | None:
        """As people say it: "4.2", or "newer than 4.3"; None before 3.3, and where it is no Apache Kafka."""
        level = self.known.get("metadata.version", 0)
        names = [name for first, name in RELEASES if first <= level]
        if not names:
            return None
        return names[-1] or f"newer than {RELEASES[-2][1]}"


def ask(host: str, port: int, tls: ssl.SSLContext | None = None) -> Versions:
    """Ask one broker. Blocks.

    Raises:
        OSError: It is not reachable, or refuses TLS.
        ValueError: What answers is no Kafka, or one from before KIP-511 (2.4).
    """
    header = struct.pack(">hhih", API_VERSIONS, FLEXIBLE, 1, -1) + b"\0"
    request = header + _compact(b"things-kit") + _compact(b"1") + b"\0"
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout=ANSWER))
        if tls is not None:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname=host))
        connection.sendall(struct.pack(">i", len(request)) + request)
        file = stack.enter_context(connection.makefile("rb"))
        size = struct.unpack(">i", _exactly(file.read(4), 4))[0]
        if not 8 <= size <= MOST:
            raise ValueError("what answers there is no Kafka")
        return _understood(_exactly(file.read(size), size))


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise ValueError("it hung up, as a Kafka with TLS does to a client without, or what is no Kafka")
    return data


def _compact(text: bytes) -> bytes:
    return bytes([len(text) + 1]) + text


def _understood(answer: bytes) -> Versions:
    code = struct.unpack_from(">h", answer, 4)[0]
    if code == UNSUPPORTED:
        return Versions()
    try:
        rest = _Fields(answer, 6)
        for _ in range(rest.varint() - 1):  # the requests that it takes: number, lowest and highest version
            rest.skip(6)
            rest.tags()
        rest.skip(4)  # for how long it throttles us
        tags = rest.tags()
        return Versions(_levels(tags.get(0)), _levels(tags.get(2)))
    except (IndexError, struct.error) as error:
        raise ValueError("what answers there is no Kafka") from error


def _levels(features: bytes | None) -> dict[str, int]:
    """Names and levels of features: an array of name, two levels (of which the higher counts), tags."""
    if features is None:
        return {}
    fields, levels = _Fields(features), {}
    for _ in range(fields.varint() - 1):
        name = fields.take(fields.varint() - 1).decode()
        levels[name] = max(struct.unpack(">hh", fields.take(4)))
        fields.tags()
    return levels


class _Fields:
    """A message of Kafka's flexible format, read from front to back (KIP-482)."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self._data = data
        self._at = start

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size or size < 0:
            raise IndexError(size)
        self._at += size
        return taken

    def skip(self, size: int) -> None:
        self.take(size)

    def varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    def tags(self) -> dict[int, bytes]:
        """Optional fields, by their numbers."""
        found = {}
        for _ in range(self.varint()):
            number = self.varint()
            found[number] = self.take(self.varint())
        return found
