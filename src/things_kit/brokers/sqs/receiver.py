"""Receiving from one queue: polls, and what becomes of messages.

Polls come in waves. While nothing comes there is one, which waits; while much comes there are several, which do not. A
wave is put into the inbox when all of it is there, sorted by the time of sending: SQS keeps a rough order, and several
requests at once would lose even that.

A request that SQS has taken cannot be taken back: what it brings to nobody is hidden for a lease. So a wave outlives
the call to `fetch` that began it, and the receiver too: what it brings then goes back at once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

import msgspec

from things_kit.brokers.sqs.admin import HEARTBEAT, Admin
from things_kit.brokers.sqs.options import LONGEST_HIDDEN, Settings
from things_kit.brokers.sqs.publisher import together
from things_kit.brokers.sqs.queue import MOST, Copy, Queue
from things_kit.brokers.sqs.wire import Entry, Unpacked, unpack
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.engine.uncounted import Uncounted
from things_kit.messaging.errors import ConfigError

log = logging.getLogger("things_kit.sqs")

FRESH: Final = 86_400
"""Seconds after which a message that waits is sent anew: it would be deleted when its retention ends, waiting or not."""

SOON: Final = 0.8
"""Seconds for which a poll is waited for when nothing more is to come."""

FAREWELL: Final = 1.0
"""Seconds that a receiver which closes waits for giving back what it has."""

Linger = Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Has something that concerns a queue done after its receiver is closed."""


class Lent(msgspec.Struct, frozen=True, gc=False):
    """A delivery's token.

    Attributes:
        receipt: What settles it.
        number: The id that SQS gave the message.
        identity: The message's own id.
        attempt: With which it came.
        counted: With which it would have come by SQS's count alone.
        keyed: Whether it has a key.
        sent: When it was sent, in seconds since 1970.
        early: Whether it came before it was due.
        counts: Whether SQS's count says of this delivery that it was an attempt.
    """

    receipt: str
    number: str
    identity: str
    attempt: int
    counted: int
    keyed: bool
    sent: float = 0.0
    early: bool = False
    counts: bool = True

    @property
    def next(self) -> int:
        """With which attempt it comes next by SQS's count alone."""
        return self.counted + 1 if self.counts else self.counted


class SQSReceiver:
    """One member of a group: what it polls, and what it holds."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        admin: Admin,
        subscription: Subscription,
        uncounted: Uncounted,
        linger: Linger,
        closed: Callable[["SQSReceiver"], None],
    ) -> None:
        self.queue = queue
        self.subscription = subscription
        self.held: dict[str, Lent] = {}  # by receipt
        self._uncounted = uncounted
        self._settings = settings
        self._admin = admin
        self._linger = linger
        self._tell_closed = closed
        self._arriving: dict[str, None] = {}  # receipts that are no deliveries yet
        self._wave: asyncio.Task[None] | None = None
        self._wave_ends = 0.0
        self._width = 1
        self._last = time.monotonic()
        self._heartbeat = time.monotonic() + HEARTBEAT
        self._quiet = False
        self._closed = False

    # --- receiving

    async def fetch(self, limit: int, wait: float) -> None:
        """Wait for the wave that is under way, or begin one."""
        if self._wave is None:
            poll = self._patience() if wait > 0 else 0
            self._wave_ends = time.monotonic() + poll
            self._wave = asyncio.create_task(
                self._poll(limit, poll), name=f"things_kit sqs {self.queue.topic}"
            )
        done, _ = await asyncio.wait({self._wave}, timeout=wait if wait > 0 else None)
        if done:
            wave, self._wave = self._wave, None
            wave.result()

    def _patience(self) -> int:
        """Seconds for the next poll: the longer nothing came, the less will come while somebody closes."""
        idle = time.monotonic() - self._last
        return max(1, min(self._settings.options.poll, int(idle / 2)))

    async def _poll(self, limit: int, poll: int) -> None:
        """One wave."""
        if self.subscription.ephemeral and time.monotonic() > self._heartbeat:
            self._heartbeat = time.monotonic() + HEARTBEAT
            await self._admin.give_sign_of_life(self.queue.url)
        sizes = [min(MOST, limit - first) for first in range(0, limit, MOST)][: self._width]
        poll = poll if len(sizes) == 1 else 0
        answers = await asyncio.gather(*(self._request(size, poll) for size in sizes), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        entries = [entry for answer in answers if not isinstance(answer, BaseException) for entry in answer]
        if failures and not entries:
            raise failures[0]  # else the next wave will see it
        self._measure(len(entries), sum(sizes))
        await self._put(entries)

    async def _request(self, size: int, poll: int) -> list[Entry]:
        entries = await self.queue.receive(size, poll)
        self._arriving.update((entry["ReceiptHandle"], None) for entry in entries)
        return entries

    def _measure(self, got: int, asked: int) -> None:
        if got:
            self._last = time.monotonic()
        strict = self.subscription.ordering == "partition" and not self.queue.fifo
        most = 1 if strict else self._settings.options.pollers
        self._width = min(2 * self._width, most) if 2 * got >= asked else 1

    async def _put(self, entries: Iterable[Entry]) -> None:
        """Into the inbox with all of it; what that does not take goes back."""
        come = [(unpack(self.queue.topic, entry), entry) for entry in entries]
        if not self.queue.fifo:
            come.sort(key=lambda each: (each[0].sent, each[0].number))
        deliveries = [self._delivery(found, entry) for found, entry in come]
        refused = deliveries if self._quiet else self.subscription.inbox.put(deliveries)
        if refused:
            await self._give_back(delivery.token for delivery in refused)
        else:
            self.held.update((delivery.token.receipt, delivery.token) for delivery in deliveries)
        self._arriving.clear()

    def _delivery(self, found: Unpacked, entry: Entry) -> Delivery:
        message, number = found.message, entry["MessageId"]
        counted, keyed = message.attempt, message.key is not None
        attempt = self._uncounted.attempt(number, counted)
        if attempt != counted:
            message = message.replace(attempt=attempt)
        token = Lent(
            entry["ReceiptHandle"],
            number,
            message.id or "",
            attempt,
            counted,
            keyed,
            found.sent / 1000,
            found.due is not None and found.due > steady(),
            found.counts,
        )
        return Delivery(message, token, found.suspect, found.due)

    async def _give_back(self, tokens: Iterable[Lent]) -> None:
        """To whoever asks, as if it had not come."""
        tokens = list(tokens)
        for token in tokens:
            self._uncounted.expect(token.number, token.next, token.attempt)
        await self.queue.hide((token.receipt, 0) for token in tokens)

    async def overdue(self) -> int | None:
        """What is ready for it. A queue or subscription that was removed is made anew."""
        if self.subscription.create:
            with contextlib.suppress(ConfigError):  # who may not subscribe has to look after it
                await self._admin.keep_subscribed(self.queue.topic, self.queue.url)
        return await self._admin.ready(self.queue.url)

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Delete, hide for a while, or send again with a higher attempt."""
        again = [release for release in released if self._must_be_sent(release)]
        back = [release for release in released if release not in again] if again else released
        await together(
            [
                self.queue.delete(delivery.token.receipt for delivery in acknowledged),
                self._hide(back),
                self._send_again(again),
            ]
        )
        for delivery in acknowledged:
            self._uncounted.forget(delivery.token.number)
        for delivery in (*acknowledged, *(release.delivery for release in released)):
            self.held.pop(delivery.token.receipt, None)

    async def _hide(self, releases: Sequence[Release]) -> None:
        for release in releases:
            token: Lent = release.delivery.token
            self._uncounted.expect(token.number, token.next, release.attempt)
        await self.queue.hide((each.delivery.token.receipt, each.delay) for each in releases)

    def _must_be_sent(self, release: Release) -> bool:
        """SQS counts deliveries: another attempt needs a message of its own, and so does who gives up a place in order."""
        token: Lent = release.delivery.token
        if token.early and release.delay and release.attempt == token.attempt:
            return steady() - token.sent > FRESH  # else it is hidden: it says itself when it is due
        if self.queue.fifo and token.keyed and self.subscription.ordering != "none":
            return release.aside
        return release.attempt > token.next or release.delay > LONGEST_HIDDEN

    async def _send_again(self, releases: Sequence[Release]) -> None:
        """Send copies to this queue, then delete what they were made of; what cannot be sent is hidden."""
        sent = await self.queue.put_aside(
            [
                Copy(each.delivery.message, each.delay, each.attempt, each.delivery.token.receipt)
                for each in releases
            ]
        )
        gone: list[str] = []
        kept: list[Release] = []
        for release, refusal in zip(releases, sent, strict=True):
            if refusal is None:
                gone.append(release.delivery.token.receipt)
            else:
                log.warning("%s; it comes again without its number of attempts", refusal)
                kept.append(release)
        await self.queue.delete(gone)
        await self._hide(kept)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Hide them, and what is just arriving, from others for another lease.

        SQS ends that twelve hours after their delivery, whatever we ask.
        """
        lease = self._settings.options.lease
        receipts = [*(delivery.token.receipt for delivery in deliveries), *self._arriving]
        await self.queue.hide(((receipt, lease) for receipt in receipts), "keeping")

    # --- ending

    async def quiesce(self) -> None:
        """What is still under way goes back as soon as it comes; a poll that ends soon is waited for."""
        self._quiet = True
        if self._wave is not None and self._wave_ends < time.monotonic() + SOON:
            await asyncio.wait({self._wave}, timeout=SOON)

    async def close(self) -> None:
        """Give back what was not settled; what takes longer goes on in the background."""
        if self._closed:
            return
        self._closed = True
        self._tell_closed(self)
        wave, self._wave = self._wave, None
        tokens, self.held = list(self.held.values()), {}
        if self.subscription.ephemeral:
            last = self._linger(self.queue.url, self._vanish(wave))
        else:
            last = self._linger(self.queue.url, self._let_go(tokens))
            if wave is not None:
                self._linger(self.queue.url, self._see_off(wave))
        await asyncio.wait({last}, timeout=FAREWELL)

    async def _let_go(self, tokens: Sequence[Lent]) -> None:
        with contextlib.suppress(ConnectionLost, ConfigError):  # they come again by themselves
            await self._give_back(tokens)

    async def _see_off(self, wave: asyncio.Task[None]) -> None:
        """Until it has brought what it brings, and given that back."""
        try:
            await asyncio.wait({wave})
        finally:
            await _ended(wave)

    async def _vanish(self, wave: asyncio.Task[None] | None) -> None:
        if wave is not None:
            await _ended(wave)
        with contextlib.suppress(ConnectionLost, ConfigError):  # else the next such consumer removes it
            await self._admin.delete_subscribed(self.queue.topic, self.queue.url)


async def _ended(wave: asyncio.Task[None]) -> None:
    """Cancel it if it still runs; how it ended concerns nobody."""
    wave.cancel()
    await asyncio.gather(wave, return_exceptions=True)
