"""How a consumer of librdkafka gets on, by its statistics: nothing else of it says whether it is in its group.

A broker that stood still may, when it goes on, name no brokers for a moment. A client that hears so forgets its last
one, and may look for a coordinator for ever, without an event and with its member id (librdkafka 2.16).
"""

import time
from collections.abc import Mapping
from typing import Final

import msgspec
from confluent_kafka import KafkaError

SILENCE: Final = 5.0
"""Seconds without an answer to what was asked after which a connection counts as silent."""

ALL_DOWN: Final = KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001 - the name of librdkafka's own error

UNHEARD: Final = 2.0
"""Seconds without a broker that answers after which it is said so."""


class _Connection(msgspec.Struct):
    """One connection: its state, microseconds since it last said something, requests that wait for an answer."""

    nodeid: int
    state: str
    rxidle: int = 0
    waitresp_cnt: int = 0

    @property
    def silent(self) -> bool:
        return self.waitresp_cnt > 0 and self.rxidle > 1e6 * SILENCE


class _Group(msgspec.Struct):
    """`state` is "up" with a coordinator that is connected, `join_state` "steady" for a member of its group."""

    state: str
    join_state: str


class Statistics(msgspec.Struct):
    """What we read of them (librdkafka's STATISTICS.md)."""

    brokers: Mapping[str, _Connection] = {}
    cgrp: _Group | None = None


_DECODER: Final = msgspec.json.Decoder(Statistics)

COORDINATOR: Final = "GroupCoordinator"
"""The name of the connection over which a group is kept."""


UNASKED: Final = frozenset({"init", "wait-metadata"})
"""What its joining is called before a member of the classic protocol asks the coordinator to be let in."""


class Standing:
    """Since when a consumer hears of no broker, or is out of its group. Of the receiving thread.

    Attributes:
        away_since: Since when no broker answers, as far as its group needs one; None while one does.
        out_since: Since when it is no member that has all that its group gave it; None while it is.
        waiting_since: Since when it is out of its group and has not even asked to be let in; None while it need not.
        where: Its state, and that of its joining, as librdkafka names them.
        quiet: For how many seconds the coordinator has left what it was asked unanswered.
        said: What librdkafka last said of a connection that failed.
    """

    def __init__(self, *, member: bool) -> None:
        self._member = member
        self.away_since: float | None = None
        self.out_since: float | None = time.monotonic()
        self.waiting_since: float | None = None
        self.where = ""
        self.quiet = 0.0
        self.said = ""

    def heard(self, text: str) -> None:
        """The callback of librdkafka, with the statistics as JSON."""
        now, statistics = time.monotonic(), _DECODER.decode(text)
        group = statistics.cgrp
        steady = group is not None and group.join_state == "steady"
        coordinator = statistics.brokers.get(COORDINATOR)
        # While it joins nothing is asked but that, which takes its time
        waits = steady and coordinator is not None and coordinator.waitresp_cnt > 0
        self.quiet = coordinator.rxidle / 1e6 if waits and coordinator is not None else 0.0
        answers = any(
            each.state == "UP" and not each.silent for each in statistics.brokers.values() if each.nodeid >= 0
        )
        coordinated = group is not None and group.state == "up" and self.quiet <= SILENCE
        if answers and (coordinated or not self._member):
            self.away_since = None
            self.said = ""
        elif self.away_since is None:
            self.away_since = now
        if steady and coordinated:
            self.out_since = None
        elif self.out_since is None:
            self.out_since = now
        if group is not None:
            self.where = f"{group.state}, {group.join_state}"
        if group is None or group.join_state not in UNASKED:
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = now

    def failed(self, error: KafkaError) -> None:
        """A connection failed, or the last one did."""
        if error.code() != ALL_DOWN:
            self.said = error.str()
        elif self.away_since is None:
            self.away_since = time.monotonic()

    @property
    def reason(self) -> str:
        """What there is to add to its being away."""
        return f": {self.said}" if self.said else ""

    @property
    def away(self) -> float:
        """For how many seconds no broker has answered."""
        return 0.0 if self.away_since is None else time.monotonic() - self.away_since

    @property
    def waiting(self) -> float:
        """For how many seconds it has not asked to be let in."""
        return 0.0 if self.waiting_since is None else time.monotonic() - self.waiting_since

    @property
    def out(self) -> float:
        """For how many seconds it has been out of its group."""
        return 0.0 if self.out_since is None else time.monotonic() - self.out_since
