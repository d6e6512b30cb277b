"""How a consumer of librdkafka gets on, by its statistics: nothing else of it says whether it is in its group.

A broker that stood still may, when it goes on, name no brokers for a moment. A client that hears so forgets its last
one, and may look for a coordinator for ever, without an event and with its member id (librdkafka 2.16).
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from confluent_kafka import KafkaError

from things_kit.brokers.kafka.options import KafkaOptions
from things_kit.engine.driver import ConnectionLost

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


UNASSIGNED: Final = 10.0
"""Seconds out of the group without a partition after which it is said so, and a client without a member's id replaced."""

OUT: Final = 60.0
"""Seconds after which any client that is out of its group without a partition is replaced."""

FORSAKEN: Final = 10.0
"""Seconds without a broker after which a client is replaced that has nothing to lose; others wait for their session's end."""

STRANDED: Final = 5.0
"""Seconds without a group for which it has not even asked: one that met a broker as it came back may not do so for minutes."""

NEARLY: Final = 0.8
"""The part of a session after which a member that hears nothing leaves: once it has ended it could not, and its group
would wait for it for as long again."""

NOT_LET_IN: Final = "its group is rebalancing, and a member does not let go of what it has"

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

    def __init__(self, options: KafkaOptions, *, member: bool) -> None:
        self._session = options.session_timeout
        self._member = member
        self._classic = member and options.group_protocol == "classic"
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

    def ailment(self, *, joined: bool, has_any: bool, is_known: Callable[[], str | None]) -> str | None:
        """Why nothing can arrive; None while it can, also if others of the group have all the partitions.

        Not from the broker's description of the group: librdkafka (2.16) may end the process while it asks for one.

        Args:
            joined: It was in its group before.
            has_any: It has a partition.
            is_known: Gives the id by which the group knows it.

        Raises:
            ConnectionLost: The client may never find back by itself, and a new one loses nothing.
        """
        if self.quiet > NEARLY * self._session:
            raise ConnectionLost(f"the coordinator has not answered for {self.quiet:.0f} s")
        if self.away > (max(self._session, FORSAKEN) if joined else FORSAKEN):
            raise ConnectionLost(f"no broker has answered for {self.away:.0f} s{self.reason}")
        if self._classic and self.waiting > STRANDED:
            raise ConnectionLost(
                f"the client has not asked for its group for {self.waiting:.0f} s ({self.where})"
            )
        if self.away > UNHEARD:
            return f"the broker does not answer{self.reason}"
        if not self._member or has_any or self.out <= UNASSIGNED:
            return None
        if not joined:
            return f"it is not let in: {NOT_LET_IN}"
        if self.out > OUT or not is_known():
            raise ConnectionLost(f"it is not in its group any more ({self.where})")
        return NOT_LET_IN

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
