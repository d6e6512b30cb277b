"""Receiving as a group: requests that end with what there is, and acknowledgements that the server confirms."""

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inbox

from things_kit.brokers.nats.admin import SECOND, Group, Place, Streams, lease_of
from things_kit.brokers.nats.connection import Connection, encoded
from things_kit.brokers.nats.errors import NoResponders
from things_kit.brokers.nats.marks import Marks
from things_kit.brokers.nats.options import Settings
from things_kit.brokers.nats.wire import Coordinates, coordinates, envelope, unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.uncounted import Uncounted
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.nats")

HEARTBEAT: Final = 2.0
"""Seconds after which the server says that a request is still there, if it stays for more than twice as long."""

SILENCE: Final = 3 * HEARTBEAT
"""Seconds without a word about a request after which the connection is given up."""

REST: Final = 64
"""Messages that are asked for at once to have them in order with what is given back."""

LOOK: Final = 10.0
"""Seconds between two looks at how far the group is."""

BLINK: Final = 0.1
"""Seconds for which it is not worth to ask again."""

LONGEST_DELAY: Final = 10 * 365 * 86_400

GIVEN_BACK: Final = Uncounted()
"""By the receivers of this process; a server's count of a message's deliveries goes on over all of them."""

ACK: Final = b"+ACK"
NAK: Final = b"-NAK"
PROGRESS: Final = b"+WPI"


SAME: Final = timedelta(seconds=0.1)
"""What one group's times of creation may be apart: a server of 2.9 says another one from its first restart on, by 0.1 ms."""


class Unsettled(msgspec.Struct):
    """What a lost connection left behind: what was handed out, in order, and what was acknowledged, perhaps.

    `created` is when the group was: one that was made anew has other messages of the same numbers. `heard` is when the
    server was last heard of, in the loop's time.
    """

    created: str
    held: list[str]
    acknowledged: set[str]
    heard: float


class Past:
    """What receivers left behind when their connection was lost, by topic and group, for those that come after them.

    `unsettled` is to be settled first; `places` are where to begin if the group is lost too.
    """

    def __init__(self) -> None:
        self.unsettled: dict[tuple[str, str], Unsettled] = {}
        self.places: dict[tuple[str, str], Place] = {}

    def forget(self, topic: str, group: str | None) -> None:
        """It was removed, or one group of it, and whatever comes after it is new."""
        for kept in (self.unsettled, self.places):
            for known in [each for each in kept if each[0] == topic and group in {None, each[1]}]:
                del kept[known]


class NATSReceiver:
    """One subscription. A delivery's token is its reply subject, which says all that its settlement needs."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        streams: Streams,
        subscription: Subscription,
        group: Group,
        past: Past,
    ) -> None:
        self._past = past
        self._known = (subscription.topic, subscription.group)
        self._connection = connection
        self._streams = streams
        self._marks = Marks(connection, settings)
        self._subscription = subscription
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._next = f"{settings.api}.CONSUMER.MSG.NEXT.{group.stream}.{group.name}"
        self._most = group.config.get("max_batch") or 10_000
        self._longest = (group.config.get("max_expires") or math.inf) / SECOND
        self._arrived: list[Msg] = []
        self._held: set[str] = set()
        self._marked: set[str] = set()
        self._acknowledging: set[str] = set()
        self._rest: list[str] | None = None
        self._inbox: Inbox | None = None
        self._reply = ""
        self._asked = 0
        self._heard = self._looked = self._loop.time()
        self._changed = asyncio.Event()
        self._failure: ConnectionLost | None = None
        self._envelope = envelope()

    async def begin(self) -> None:
        """Take what arrives from now on. What a connection left that was lost a moment ago goes back at once."""
        self._unwatch = self._connection.watch(self._changed.set)
        await self._look()
        left = self._past.unsettled.pop(self._known, None)
        if left is None or not _is_one(left.created, self._group.info["created"]):
            return
        for reply in left.acknowledged:  # a server that was killed and forgot them would confirm nothing
            await self._connection.tell(reply, ACK)
        lease = lease_of(self._group.config)
        if self._loop.time() - left.heard < lease / 2:  # else somebody else may have them
            await self._give_back([*left.held, *await self._take_rest(len(left.held))])

    # --- receiving

    async def fetch(self, limit: int, wait: float) -> None:
        """Ask for what there is, else for what comes first within `wait` seconds."""
        self._check()
        ends = self._loop.time() + wait
        if not self._asked and not self._arrived:  # else a call that was cancelled has
            await self._ask(limit, wait)
        await self._answered()
        left = ends - self._loop.time()
        if (
            not self._arrived and left > BLINK
        ):  # others wait for what there is: the request was sent away at once
            await self._ask(1, left, one_shot=False)
            await self._answered()
        await self._deliver()
        if self._loop.time() - self._looked > LOOK:
            await self._look()

    async def _answered(self) -> None:
        """Until the server has said all to a request."""
        while self._asked:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._heard + SILENCE):
                    await self._changed.wait()
            except TimeoutError:
                raise self._connection.abandon(
                    f"{self._connection.server} was silent for {SILENCE:g} s"
                ) from None
            self._check()

    async def _deliver(self) -> None:
        """Put what has arrived into the inbox. Cancelled, it is still here."""
        arrived = list(self._arrived)
        again = [at for msg in arrived if (at := coordinates(msg.reply)).delivered > 1]
        marks = await self._marks.of(again) if again else {}
        del self._arrived[: len(arrived)]  # and not what came meanwhile: nobody asked for its mark
        if again:  # what could not be delivered comes before what was given back, whatever their order
            arrived.sort(key=lambda msg: coordinates(msg.reply).seq)
        # What it refuses goes back with all that is held, in order, when this closes
        self._subscription.inbox.put([self._delivery(msg, marks) for msg in arrived])

    def _delivery(self, msg: Msg, marks: Mapping[int, int]) -> Delivery:
        at = coordinates(msg.reply)
        suspect = marks.get(at.seq, 0)
        self._held.add(msg.reply)
        if suspect:
            self._marked.add(msg.reply)
        return Delivery(unpack(msg, self._envelope, at, _attempt(at)), msg.reply, suspect)

    async def _ask(self, count: int, wait: float, *, one_shot: bool = True) -> None:
        """Ask for messages. A request that is one shot ends with the first ones that there are."""
        count, wait = min(count, self._most), min(wait, self._longest)
        question: dict[str, object] = {"batch": count}
        if one_shot:
            question["no_wait"] = True
        if wait > 0:
            question["expires"] = int(wait * SECOND)
        if wait > 2 * HEARTBEAT:
            question["idle_heartbeat"] = int(HEARTBEAT * SECOND)
        if self._inbox is None:
            self._reply, self._inbox = await self._connection.receive_by(self._accept)
        self._asked = count
        self._heard = self._loop.time()
        await self._connection.tell(self._next, encoded(question), None, self._reply)

    async def _accept(self, msg: Msg) -> None:
        self._heard = self._loop.time()
        if msg.reply:
            self._asked = max(0, self._asked - 1)
            self._arrived.append(msg)
            self._changed.set()
        else:
            self._note(msg.headers or {})

    def _note(self, headers: dict[str, str]) -> None:
        """A request has ended, or is still there."""
        status, said = headers.get("Status"), headers.get("Description", "")
        if status == "100":
            return
        self._asked = 0
        if status == "503":
            self._failure = ConnectionLost(f"the stream or group of {self._subscription.topic!r} is gone")
        elif status == "409" and said.lower() not in {"leadership change", "server shutdown"}:
            self._failure = ConnectionLost(f"receiving from {self._subscription.topic!r}: {said}")
        self._changed.set()

    def _check(self) -> None:
        self._connection.check()
        if self._failure is not None:
            raise self._failure

    async def _look(self) -> None:
        """Note how far the group is, for the case that somebody deletes it."""
        stream = await self._streams.stream(self._group.stream)
        info = await self._streams.consumer(self._group.stream, self._group.name)
        self._looked = self._loop.time()
        if stream is None or info is None:
            self._failure = ConnectionLost(f"the stream or group of {self._subscription.topic!r} is gone")
            raise self._failure
        await self._keep_lease(Group(self._group.stream, self._group.name, info))
        done = info["ack_floor"]["stream_seq"]
        if not info["num_ack_pending"]:  # then it has no floor yet, or all that was handed out is done
            done = max(done, info["delivered"]["stream_seq"])
        self._past.places[self._known] = Place(stream["created"], done + 1)

    async def _keep_lease(self, group: Group) -> None:
        """Somebody may have made it shorter than we extend it."""
        subscription = self._subscription
        try:
            await self._streams.leased(group, subscription.topic, change=subscription.create)
        except ConfigError as error:
            log.warning(
                "%s as %s: messages may be handled twice: %s", subscription.topic, subscription.group, error
            )

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Tell the server all of it, and wait until it has taken the last: it takes them in order."""
        done = [delivery.token for delivery in acknowledged]
        self._acknowledging.update(done)
        await self._release([(each.delivery.token, each.delay, each.attempt) for each in released])
        await self._unmark(done)
        await self._send([(reply, ACK) for reply in done])
        self._held.difference_update(done)
        self._acknowledging.difference_update(done)
        if len(GIVEN_BACK):
            for reply in done:
                GIVEN_BACK.forget(coordinates(reply).copy)

    async def _release(self, released: Sequence[tuple[str, float, int]]) -> None:
        if not released:
            return
        if self._rest:
            released = sorted([*released, *map(_unhandled, self._rest)], key=lambda row: _place(row[0]))
            self._rest = []
        for reply, _, attempt in released:
            at = coordinates(reply)
            GIVEN_BACK.expect(at.copy, at.delivered + 1, attempt)
        replies = [reply for reply, _, _ in released]
        await self._unmark(replies)
        await self._send([(reply, _not_yet(delay)) for reply, delay, _ in released])
        self._held.difference_update(replies)

    async def _give_back(self, replies: Iterable[str]) -> None:
        await self._release([_unhandled(reply) for reply in sorted(replies, key=_place)])

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """Keep it beside the message, as long as nobody says what became of it."""
        await self._marks.put([coordinates(delivery.token)], suspect)
        (self._marked.add if suspect else self._marked.discard)(delivery.token)

    async def _unmark(self, replies: Sequence[str]) -> None:
        """Nobody died of these, also if they come again, as a server that is killed may forget an acknowledgement."""
        marked = [coordinates(reply) for reply in self._marked.intersection(replies)]
        if marked:
            with suppress(ConfigError):  # without the right to do so any more
                await self._marks.put(marked, 0)
            self._marked.difference_update(replies)

    async def _send(self, settlements: Sequence[tuple[str, bytes]]) -> None:
        """All of these, confirmed. One connection's settlements of a group are taken in order: the last speaks for all."""
        if not settlements:
            return
        *others, last = settlements
        for reply, what in others:
            await self._connection.tell(reply, what)
        [came] = await self._connection.exchange([(*last, None)])
        if isinstance(came, NoResponders):
            raise ConnectionLost(
                f"the group {self._subscription.group!r} of {self._subscription.topic!r} is gone"
            )
        if isinstance(came, Exception):
            raise ConfigError(str(came)) from came

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Say that these are still being worked on, or wait for their turn."""
        await self._send([(delivery.token, PROGRESS) for delivery in deliveries])
        if self._loop.time() - self._looked > LOOK:
            await self._look()

    async def overdue(self) -> int | None:
        """What the server has handed to nobody, unless it may not."""
        info = await self._streams.consumer(self._group.stream, self._group.name)
        if info is None:
            raise ConnectionLost(f"the stream or group of {self._subscription.topic!r} is gone")
        most = info["config"].get("max_ack_pending", -1)
        if info.get("paused") or 0 < most <= info["num_ack_pending"]:
            return 0
        return int(info["num_pending"])

    # --- closing

    async def quiesce(self) -> None:
        """Have no request at the server. What was on its way is in the inbox."""
        if self._inbox is not None:
            self._check()
            await self._quiet()
            await self._withdraw()
        await self._deliver()
        if self._rest is None:
            # What is being acknowledged may be so at the server already, and is not to hide any of the rest
            self._rest = await self._take_rest(len(self._all()))
            self._held.update(self._rest)

    async def _withdraw(self) -> None:
        if self._inbox is None:
            return
        await self._connection.stop_receiving(self._inbox)
        self._inbox = None
        self._asked = 0
        # Asked for the group, the server drops requests behind which nobody is any more. Up to 2.9 at least it must
        # not try to serve one with a message that was given back: it loses count, and sends another one twice.
        await self._streams.consumer(self._group.stream, self._group.name)

    async def _take_rest(self, held: int) -> list[str]:
        """What was given back before and has not come again.

        The server hands out first what was given back first, whatever its place in the stream. So what is given back
        now goes back together with this, in order. If others hold messages of the group, new ones may be among it.
        """
        rest: list[str] = []
        info = await self._streams.consumer(self._group.stream, self._group.name) if held else None
        left = 0 if info is None else info["num_ack_pending"] - held
        while left > 0:
            count = min(left, REST)
            await self._ask(count, 0)
            await self._answered()
            came, self._arrived = self._arrived, []
            rest += [msg.reply for msg in came]
            left -= count
            if sum(coordinates(msg.reply).delivered > 1 for msg in came) < count:
                break  # all that was given back is here
        await self._withdraw()
        return rest

    async def _quiet(self) -> None:
        """Until the server has nothing more for us, while there is a request at it.

        One that is in the middle of answering when the request goes counts a delivery that nobody gets (up to 2.9 at
        least). While it answers something arrives between two questions.
        """
        ends = self._loop.time() + BLINK
        while self._asked and self._loop.time() < ends:
            asked = self._asked
            await self._streams.consumer(self._group.stream, self._group.name)
            if self._asked == asked:
                return

    async def close(self) -> None:
        """Take nothing more, give back what is here, and delete an ephemeral group."""
        self._unwatch()
        try:
            self._check()
            await self.quiesce()
            await self._send([(reply, ACK) for reply in self._acknowledging])  # where that was cut short
            await self._give_back(self._all())
            if self._subscription.ephemeral:
                await self._streams.leave(self._group.stream, self._group.name)
        except ConnectionLost:
            created = self._group.info["created"]
            self._past.unsettled[self._known] = Unsettled(
                created, self._all(), self._acknowledging, self._heard
            )
            raise
        self._past.places.pop(self._known, None)

    def _all(self) -> list[str]:
        """What was not settled."""
        return [reply for reply in self._held if reply not in self._acknowledging]


def _place(reply: str) -> int:
    """What goes back is sorted by that: it comes again in the order in which it was given back."""
    return coordinates(reply).seq


def _attempt(at: Coordinates) -> int:
    return at.delivered if at.delivered == 1 else GIVEN_BACK.attempt(at.copy, at.delivered)


def _unhandled(reply: str) -> tuple[str, float, int]:
    """As `_release` takes it: at once, as the attempt that it was."""
    return reply, 0.0, _attempt(coordinates(reply))


def _not_yet(delay: float) -> bytes:
    if delay <= 0:
        return NAK
    return NAK + b' {"delay": %d}' % int(min(delay, LONGEST_DELAY) * SECOND)


def _is_one(created: str, other: str) -> bool:
    """Whether these are of one group, and not of one that was deleted and made anew."""
    return abs(datetime.fromisoformat(created) - datetime.fromisoformat(other)) < SAME
