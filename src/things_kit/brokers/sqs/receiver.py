"""Receiving from one queue: polls, leases, and what becomes of messages.

Polls come in waves. While nothing comes there is one, which waits; while much comes there are several, which do not. A
wave is handed out when all of it is there, sorted by the time of sending: SQS keeps a rough order, and several requests
at once would lose even that.

A request that SQS has taken cannot be taken back: what it brings to nobody is hidden for a lease. So a wave outlives
the call to `receive` that began it, and the receiver too: what it brings then goes back at once.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

import msgspec
from botocore.exceptions import ClientError

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.clients import Clients
from things_kit.brokers.sqs.errors import ERRORS, MISSING, OVER_LIMIT, STALE, bare, code_of
from things_kit.brokers.sqs.options import MOST_EXTENDED, Settings
from things_kit.brokers.sqs.publisher import together
from things_kit.brokers.sqs.topology import HEARTBEAT, Topology
from things_kit.brokers.sqs.wire import Entry, Unpacked, pack, unpack
from things_kit.engine.driver import ConnectionLost, Delivery, Release, Subscription
from things_kit.messaging.errors import ConfigError, MessageTooLarge

log = logging.getLogger("things_kit.sqs")

MOST: Final = 10
"""Messages that a request may have."""

AT_ONCE: Final = 8
"""Requests at once that settle or extend."""

MOST_DELAYED: Final = 900
"""Seconds for which SQS can delay a message that is sent."""

LONGEST_HIDDEN: Final = MOST_EXTENDED - 60
"""Seconds for which a message that was just received is hidden at most: SQS counts from its delivery."""

FRESH: Final = 86_400
"""Seconds after which a message that waits is sent anew: it would be deleted when its retention ends, waiting or not."""

TRIES: Final = 3
"""How often a settlement is sent that AWS itself failed to take."""

BEYOND: Final = 5.0
"""Seconds that SQS may take for an answer beyond those that it was asked to wait: a connection that has fallen silent is
given up so soon, while others can still be told within half a minute."""

LOOK: Final = 30.0
"""Seconds after which a consumer makes sure that its queue is still subscribed."""

PAUSE: Final = 1.0
"""Seconds until SQS is asked again when too much is in flight."""

FAREWELL: Final = 2.0
"""Seconds that giving back may take when a receiver closes; else it happens by itself, a lease later."""

Linger = Callable[[str, Coroutine[Any, Any, None]], None]
"""Has something that concerns a queue done after its receiver is closed."""


class Lent(msgspec.Struct, frozen=True, gc=False):
    """A delivery's token: its receipt, the message's id, the attempt with which it came, and whether it has a key."""

    receipt: str
    identity: str
    attempt: int
    keyed: bool


def _lent(found: Unpacked, receipt: str) -> Lent:
    message = found.message
    return Lent(receipt, message.id or "", message.attempt, message.key is not None)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _hidden_for(delay: float) -> int:
    """Whole seconds: never less than asked for, unless that is more than SQS can."""
    return min(LONGEST_HIDDEN, math.ceil(delay))


class SQSReceiver:
    """One member of a group: what it polled, and what it has handed out."""

    def __init__(
        self,
        settings: Settings,
        clients: Clients,
        topology: Topology,
        subscription: Subscription,
        url: str,
        linger: Linger,
        closed: Callable[["SQSReceiver"], None],
    ) -> None:
        self.url = url
        self.topic = subscription.topic
        self.held: dict[str, str] = {}  # of a FIFO queue: id -> receipt
        self._settings = settings
        self._sqs = clients.sqs
        self._topology = topology
        self._subscription = subscription
        self._fifo = names.is_fifo(subscription.topic)
        self._linger = linger
        self._tell_closed = closed
        self._out: dict[str, None] = {}
        self._buffer: deque[Delivery] = deque()
        self._arrived: dict[str, None] = {}  # receipts of what is here and was not handed out
        self._wave: asyncio.Task[list[Delivery]] | None = None
        self._width = 1
        self._last = time.monotonic()
        self._heartbeat = time.monotonic() + HEARTBEAT
        self._look = time.monotonic() + LOOK
        self._closed = False

    # --- receiving

    async def receive(self, limit: int, wait: float) -> Sequence[Delivery]:
        """Take from the last wave, or wait for the next."""
        if not self._buffer:
            if self._wave is None:
                poll = self._patience() if wait > 0 else 0
                self._wave = asyncio.create_task(self._poll(limit, poll), name=f"things_kit sqs {self.topic}")
            done, _ = await asyncio.wait({self._wave}, timeout=wait if wait > 0 else None)
            if not done:
                return ()
            wave, self._wave = self._wave, None
            self._buffer.extend(wave.result())
        taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
        for delivery in taken:
            self._arrived.pop(delivery.token.receipt, None)
        self._out.update((delivery.token.receipt, None) for delivery in taken)
        if self._fifo:
            self.held.update((delivery.token.identity, delivery.token.receipt) for delivery in taken)
        return taken

    def _patience(self) -> int:
        """Seconds for the next poll: the longer nothing came, the less will come while somebody closes."""
        idle = time.monotonic() - self._last
        return max(1, min(self._settings.options.poll, int(idle / 2)))

    async def _poll(self, limit: int, poll: int) -> list[Delivery]:
        """One wave."""
        if self._subscription.ephemeral and time.monotonic() > self._heartbeat:
            await self._give_sign_of_life()
        if time.monotonic() > self._look:
            await self.keep_subscribed()
        sizes = [min(MOST, limit - first) for first in range(0, limit, MOST)][: self._width]
        if len(sizes) > 1:
            poll = 0
        answers = await asyncio.gather(*(self._request(size, poll) for size in sizes), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        entries = [entry for answer in answers if not isinstance(answer, BaseException) for entry in answer]
        if failures and not entries:
            raise failures[0]  # else the next wave will see it
        self._measure(len(entries), sum(sizes))
        return await self._ready(entries)

    def _measure(self, got: int, asked: int) -> None:
        if got:
            self._last = time.monotonic()
        strict = self._subscription.ordering == "partition" and not self._fifo
        most = 1 if strict else self._settings.options.pollers
        self._width = min(2 * self._width, most) if 2 * got >= asked else 1

    async def _request(self, size: int, poll: int) -> list[Entry]:
        doing = f"receiving from {self.topic!r}"
        try:
            answer = await bare(
                self._sqs.receive_message(
                    QueueUrl=self.url,
                    MaxNumberOfMessages=size,
                    WaitTimeSeconds=poll,
                    VisibilityTimeout=self._settings.options.lease,
                    MessageAttributeNames=["All"],
                    MessageSystemAttributeNames=["SentTimestamp", "MessageGroupId"],
                ),
                doing,
                poll + BEYOND,
            )
        except ClientError as error:
            if code_of(error) in OVER_LIMIT:
                log.warning("%s: SQS hands out nothing more: as much is in flight as it allows", self.topic)
                await asyncio.sleep(PAUSE)
                return []
            raise self._trouble(error, doing) from error
        entries = list(answer.get("Messages") or ())
        self._arrived.update((entry["ReceiptHandle"], None) for entry in entries)
        return entries

    def _trouble(self, error: ClientError, doing: str) -> Exception:
        if code_of(error) in MISSING:
            self._topology.forget(self.topic)
            lost = ConnectionLost(f"{doing}: its queue was removed")
            lost.__cause__ = error
            return lost
        return ERRORS.translate(error, doing)

    async def _ready(self, entries: Iterable[Entry]) -> list[Delivery]:
        """What may be handed out of these; what is not due yet is hidden again."""
        come = [(unpack(self.topic, entry), str(entry["ReceiptHandle"])) for entry in entries]
        if not self._fifo:
            come.sort(key=lambda each: (each[0].sent, each[0].number))
        now = time.time()
        early = [(found, receipt) for found, receipt in come if found.due is not None and found.due > now]
        if early:
            come = [each for each in come if each not in early]
            await self._wait_on(early, now)
        return [Delivery(found.message, _lent(found, receipt)) for found, receipt in come]

    async def _wait_on(self, early: Sequence[tuple[Unpacked, str]], now: float) -> None:
        """Hide what came before it is due for as long as SQS can; it says itself when it is due."""
        for _, receipt in early:
            self._arrived.pop(receipt, None)
        hidden, anew = [], []
        for found, receipt in early:
            rest = (found.due or now) - now
            if now - found.sent / 1000 > FRESH:
                delivery = Delivery(found.message, _lent(found, receipt))
                anew.append(Release(delivery, rest, found.message.attempt))
            else:
                hidden.append((receipt, _hidden_for(rest)))
        await self._hide(hidden)
        await self._send_again(anew)

    async def keep_subscribed(self) -> None:
        """See to it that the queue still gets what is published: a topic takes its subscriptions along when it is removed.

        Raises:
            ConnectionLost: There is no such topic any more; subscribing makes it anew.
        """
        self._look = time.monotonic() + LOOK
        if self._subscription.create and not self._settings.by_queue:
            with contextlib.suppress(ConfigError):  # who may not subscribe has to look after it
                await self._topology.keep_subscribed(self.topic, self.url)

    async def _give_sign_of_life(self) -> None:
        self._heartbeat = time.monotonic() + HEARTBEAT
        with contextlib.suppress(ClientError):  # who may not tag has to remove queues by hand
            tags = self._topology.sign_of_life()
            await bare(self._sqs.tag_queue(QueueUrl=self.url, Tags=tags), "giving a sign of life")

    # --- settling

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Delete, hide for a while, or send again with a higher attempt: in requests of ten, side by side."""
        again: list[Release] = []
        back: list[Release] = []
        for release in released:
            (again if self._must_be_sent(release) else back).append(release)
        receipts = [delivery.token.receipt for delivery in acknowledged]
        await together([self._delete(receipts), self._give_back(back), self._send_again(again)])
        self._forget(acknowledged)
        self._forget([release.delivery for release in released])

    def _forget(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._out.pop(delivery.token.receipt, None)
            if self._fifo:
                self.held.pop(delivery.token.identity, None)

    def _must_be_sent(self, release: Release) -> bool:
        """SQS keeps no attempt with a message, so a higher one needs a message of its own: not where an order would be lost."""
        token: Lent = release.delivery.token
        if release.attempt <= token.attempt and release.delay <= LONGEST_HIDDEN:
            return False
        return not self._fifo or release.aside or not token.keyed or self._subscription.ordering == "none"

    async def _send_again(self, releases: Sequence[Release]) -> None:
        """Send copies to this queue, then delete what they were made of; what cannot be sent is hidden."""
        copies: list[tuple[Release, Entry]] = []
        kept: list[Release] = []
        for release in releases:
            try:
                copies.append((release, self._copy(release)))
            except MessageTooLarge:  # of others, and as large as can be
                kept.append(release)
        for start in range(0, len(copies), MOST):
            kept += await self._send_copies(copies[start : start + MOST])
        await self._give_back(kept)

    async def _send_copies(self, copies: Sequence[tuple[Release, Entry]]) -> list[Release]:
        """Returns those that SQS did not take."""
        entries = [{"Id": str(number), **entry} for number, (_, entry) in enumerate(copies)]
        doing = f"putting messages of {self.topic!r} aside"
        try:
            answer = await bare(self._sqs.send_message_batch(QueueUrl=self.url, Entries=entries), doing)
        except ClientError as error:
            trouble = self._trouble(error, doing)
            if isinstance(trouble, ConnectionLost):
                raise trouble from error
            log.warning("%s; they come again without their number of attempts", trouble)
            return [release for release, _ in copies]
        failed = {int(failure["Id"]) for failure in answer.get("Failed") or ()}
        taken = [release for number, (release, _) in enumerate(copies) if number not in failed]
        await self._delete([release.delivery.token.receipt for release in taken])
        return [release for number, (release, _) in enumerate(copies) if number in failed]

    def _copy(self, release: Release) -> Entry:
        message, token, delay = release.delivery.message, release.delivery.token, math.ceil(release.delay)
        delayed = 0 if self._fifo else min(MOST_DELAYED, delay)  # FIFO queues delay no single message
        due = time.time() + release.delay if delay > delayed else None
        packed = pack(message, self._settings.bytes_at_once, attempt=release.attempt, due=due)
        entry: Entry = {"MessageBody": packed.body, "MessageAttributes": packed.attributes}
        if self._fifo:
            entry["MessageDeduplicationId"] = names.deduplication_id(token.identity, token.receipt)
            entry["MessageGroupId"] = names.message_group(None, entry["MessageDeduplicationId"])
        elif delayed:
            entry["DelaySeconds"] = delayed
        return entry

    async def _delete(self, receipts: Sequence[str]) -> None:
        await self._batches(
            self._sqs.delete_message_batch,
            [{"ReceiptHandle": receipt} for receipt in receipts],
            "acknowledging",
        )

    async def _give_back(self, releases: Sequence[Release]) -> None:
        await self._hide([(each.delivery.token.receipt, _hidden_for(each.delay)) for each in releases])

    async def _hide(self, hidden: Sequence[tuple[str, int]], doing: str = "giving back") -> None:
        """Hide each for so many seconds; with 0 it is there for all."""
        entries = [{"ReceiptHandle": receipt, "VisibilityTimeout": seconds} for receipt, seconds in hidden]
        await self._batches(self._sqs.change_message_visibility_batch, entries, doing)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Hide them, and what waits here to be handed out, from others for another lease.

        SQS ends that twelve hours after their delivery, whatever we ask.
        """
        receipts = [*(delivery.token.receipt for delivery in deliveries), *self._arrived]
        await self._hide([(receipt, self._settings.options.lease) for receipt in receipts], "keeping")

    async def _batches(self, call: Callable[..., Any], entries: Sequence[Entry], doing: str) -> None:
        chunks = [entries[start : start + MOST] for start in range(0, len(entries), MOST)]
        doing = f"{doing} messages of {self.topic!r}"
        for start in range(0, len(chunks), AT_ONCE):
            await together([self._batch(call, chunk, doing) for chunk in chunks[start : start + AT_ONCE]])

    async def _batch(self, call: Callable[..., Any], entries: Sequence[Entry], doing: str) -> None:
        left = list(entries)
        for tried in range(1, TRIES + 1):
            numbered = [{"Id": str(number), **entry} for number, entry in enumerate(left)]
            try:
                answer = await bare(call(QueueUrl=self.url, Entries=numbered), doing)
            except ClientError as error:
                raise self._trouble(error, doing) from error
            left = [left[number] for number in self._to_repeat(answer.get("Failed") or (), doing)]
            if not left:
                return
            await asyncio.sleep(0.1 * tried)
        raise ConnectionLost(f"{doing}: AWS failed at {len(left)} of {len(entries)}")

    def _to_repeat(self, failed: Iterable[Entry], doing: str) -> list[int]:
        """The numbers of entries that may succeed if they are sent again; of the others, somebody else has the message."""
        again = []
        for failure in failed:
            if not failure.get("SenderFault"):
                again.append(int(failure["Id"]))
            elif failure.get("Code") not in STALE:
                log.warning("%s: %s: %s", doing, failure.get("Code"), failure.get("Message"))
        return again

    # --- closing

    async def close(self) -> None:
        """Give back what was not settled; what a wave still brings goes back when it comes."""
        if self._closed:
            return
        self._closed = True
        self._tell_closed(self)
        wave, self._wave = self._wave, None
        if self._subscription.ephemeral:
            await self._vanish(wave)
            return
        if wave is not None:
            self._linger(self.url, self._give_back_wave(wave))
        receipts = [*self._out, *(delivery.token.receipt for delivery in self._buffer)]
        self._out.clear()
        self._buffer.clear()
        self._arrived.clear()
        self.held.clear()
        with contextlib.suppress(ConnectionLost, TimeoutError):  # they come again by themselves
            async with asyncio.timeout(FAREWELL):
                await self._hide([(receipt, 0) for receipt in receipts])

    async def _give_back_wave(self, wave: asyncio.Task[list[Delivery]]) -> None:
        try:
            deliveries = await wave
            await self._hide([(delivery.token.receipt, 0) for delivery in deliveries])
        except asyncio.CancelledError:
            await _cancelled(wave)
            raise
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and all of it comes again by itself
            log.debug("%s: after closing: %r", self.topic, error)

    async def _vanish(self, wave: asyncio.Task[list[Delivery]] | None) -> None:
        if wave is not None:
            await _cancelled(wave)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self._topology.delete_subscribed(self.topic, self.url)
