"""How a consumer of librdkafka gets on, by its statistics: nothing else of it says whether it is in its group.

A broker that stood still may, when it goes on, name no brokers for a moment. A client that hears so forgets its last
one, and may look for a coordinator for ever, without an event and with its member id (librdkafka 2.16).
"""

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from things_kit.brokers.kafka.options import KafkaOptions
from things_kit.engine.driver import ConnectionLost

SILENCE: Final = 5.0
"""Seconds without an answer to what was asked after which a connection counts as silent."""

UNHEARD: Final = 2.0
"""Seconds without a broker that answers after which it is said so."""

UNASSIGNED: Final = 10.0
"""Seconds out of the group without a partition after which it is said so."""

OUT: Final = 60.0
"""Seconds after which a client that is out of its group without a partition is replaced."""

FORSAKEN: Final = 10.0
"""Seconds without a broker after which a client is replaced that has nothing to lose; others wait for their session's end."""

STRANDED: Final = 5.0
"""Seconds with a coordinator that is connected, without having asked it to be let in: a client that met a broker as it came back may
not do so for minutes. Without a coordinator there is nobody to ask. A client that is replaced then, as a rebalance was under way
when the broker died, leaves a member behind, and the next one is not let in before that one's session has ended."""

NEARLY: Final = 0.8
"""The part of a session after which a member that hears nothing leaves: once it has ended it could not, and its group
would wait for it for as long again."""

UNASKED: Final = frozenset({"init", "wait-metadata"})
"""What its joining is called before a member of the classic protocol asks the coordinator to be let in."""

COORDINATOR: Final = "GroupCoordinator"
"""The name of the connection over which a group is kept."""


class _Connection(msgspec.Struct):
    """One connection: its state, microseconds since it last said something, requests that wait for an answer."""

    nodeid: int
    state: str
    rxidle: int = 0
    waitresp_cnt: int = 0

    @property
    def quiet(self) -> float:
        """Seconds for which it has left unanswered what it was asked."""
        return self.rxidle / 1e6 if self.waitresp_cnt else 0.0


class _Group(msgspec.Struct):
    """`state` is "up" with a coordinator that is connected, `join_state` "steady" for a member of its group."""

    state: str
    join_state: str


class _Statistics(msgspec.Struct):
    """What we read of them (librdkafka's STATISTICS.md)."""

    brokers: Mapping[str, _Connection] = {}
    cgrp: _Group | None = None


_DECODER: Final = msgspec.json.Decoder(_Statistics)


class Spell:
    """For how many seconds something has been so."""

    def __init__(self) -> None:
        self._since: float | None = None

    def note(self, so: bool) -> None:
        """Whether it is so now."""
        if not so:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """0 while it is not so."""
        return 0.0 if self._since is None else time.monotonic() - self._since


class Standing:
    """Whether a consumer hears of its brokers, and is in its group. Of the receiving thread.

    Attributes:
        away: No broker answers, as far as its group needs one.
        out: It is no member that has all that its group gave it.
        stranded: It is out of its group, and has not even asked to be let in, though its coordinator is connected.
        where: Its state, and that of its joining, as librdkafka names them.
        quiet: For how many seconds the coordinator has left what it was asked unanswered.
        said: What librdkafka last said of a connection that failed.
    """

    def __init__(self, options: KafkaOptions, *, member: bool) -> None:
        self._session = options.session_timeout
        self._member = member
        self._classic = member and options.group_protocol == "classic"
        self.away, self.out, self.stranded = Spell(), Spell(), Spell()
        self.out.note(True)
        self.where = ""
        self._known = False  # it has asked for its group, which may count on it since
        self.quiet = 0.0
        self.said = ""

    def heard(self, text: str) -> None:
        """The callback of librdkafka, with the statistics as JSON."""
        statistics = _DECODER.decode(text)
        group = statistics.cgrp or _Group("", "")
        steady = group.join_state == "steady"
        coordinator = statistics.brokers.get(COORDINATOR)
        # While it joins nothing is asked but that, which takes its time
        self.quiet = coordinator.quiet if steady and coordinator is not None else 0.0
        answers = any(
            each.nodeid >= 0 and each.state == "UP" and each.quiet <= SILENCE
            for each in statistics.brokers.values()
        )
        coordinated = group.state == "up" and self.quiet <= SILENCE
        well = answers and (coordinated or not self._member)
        if well:
            self.said = ""
        self.away.note(not well)
        self.out.note(not (steady and coordinated))
        asks = group.join_state not in UNASKED
        self._known = self._known or (self._member and asks)
        self.stranded.note(well and not asks)
        self.where = f"{group.state}, {group.join_state}"

    def ailment(self, *, joined: bool, has_any: bool) -> str | None:
        """Why nothing can arrive; None while it can, also if others of the group have all the partitions.

        Not from the broker's description of the group: librdkafka (2.16) may end the process while it asks for one.

        Args:
            joined: It was in its group before.
            has_any: It has a partition.

        Raises:
            ConnectionLost: The client may never find back by itself, and a new one loses nothing.
        """
        away, because = self.away.seconds, f": {self.said}" if self.said else ""
        if self.quiet > NEARLY * self._session:
            raise ConnectionLost(f"the coordinator has not answered for {self.quiet:.0f} s")
        if away > (max(self._session, FORSAKEN) if joined or self._known else FORSAKEN):
            raise ConnectionLost(f"no broker has answered for {away:.0f} s{because}")
        if self._classic and self.stranded.seconds > STRANDED:
            raise ConnectionLost(f"the client does not ask for its group ({self.where})")
        if away > UNHEARD:
            return f"the broker does not answer{because}"
        if not self._member or has_any or self.out.seconds <= UNASSIGNED:
            return None
        if joined and self.out.seconds > OUT:
            raise ConnectionLost(f"it is not in its group any more ({self.where})")
        return "it is not let in: its group is rebalancing, and a member does not let go of what it has"
