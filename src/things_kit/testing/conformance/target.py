"""What the suite must know of the broker under test."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, urlencode

Hook: TypeAlias = Callable[[], Awaitable[None]]
"""Does something to the broker; returns when it is done."""

ForeignMessage: TypeAlias = tuple[bytes | None, bytes, Mapping[str, str]]
"""Key, value and headers, as another client of the broker sees them."""


@dataclass(kw_only=True)
class Target:
    """A broker under test, and what the suite may do to it.

    Attributes:
        url: Where it is. Topics and groups get names of their own, so tests may share one server.
        shared: Whether other processes can connect with this URL.
        durable: Whether messages outlive the last connection.
        lease_options: Options of the URL for short leases, about half a second, where leases can be set.
        size_options: Options of the URL that bound a message to a few KiB, where that can be set.
        secret: The password in `url`, if there is one: it must never be shown.
        absent: A URL of the same kind behind which there is nobody.
        patience: Seconds that an expected event may take. Passing tests do not wait for it.
        outlasts: Seconds that are longer than the session or the lease of a member, as `url` has them.
        pause: Take the broker away for all clients, without losing what it has.
        resume: Bring it back after `pause`.
        kill: End the broker's process, the hard way.
        restart: Start it again after `kill`.
        cut: Break the open connections once; the broker itself stays.
        half_open: Let the open connections fall silent without a reset; new ones work.
        unreadable: Publish, with a client that is not ours, what this broker's own client cannot read, or not as text.
        foreign_publish: Publish topic, key, value and headers with a client that is not ours.
        foreign_read: All messages of a topic, read with a client that is not ours.
    """

    url: str
    shared: bool = True
    durable: bool = True
    lease_options: Mapping[str, str] = field(default_factory=dict)
    size_options: Mapping[str, str] = field(default_factory=dict)
    secret: str | None = None
    absent: str | None = None
    patience: float = 15.0
    outlasts: float = 5.0
    pause: Hook | None = None
    resume: Hook | None = None
    kill: Hook | None = None
    restart: Hook | None = None
    cut: Hook | None = None
    half_open: Hook | None = None
    unreadable: Sequence[Callable[[str], Awaitable[None]]] = ()
    foreign_publish: Callable[[str, bytes | None, bytes, Mapping[str, str]], Awaitable[None]] | None = None
    foreign_read: Callable[[str], Awaitable[Sequence[ForeignMessage]]] | None = None

    def at(self, **options: object) -> str:
        """The URL with these options in its query, in the place of those of the same names."""
        base, _, query = self.url.partition("?")
        found = {**dict(parse_qsl(query, keep_blank_values=True)), **options}
        return f"{base}?{urlencode(found, quote_via=quote)}" if found else base

    @property
    def outage(self) -> tuple[Hook, Hook] | None:
        """The gentlest way to take the broker away and bring it back; None if there is none."""
        if self.pause is not None and self.resume is not None:
            return self.pause, self.resume
        if self.kill is not None and self.restart is not None:
            return self.kill, self.restart
        return None
