"""One queue of SQS: requests of ten messages each, side by side."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from botocore.exceptions import ClientError

from things_kit.brokers.sqs import names
from things_kit.brokers.sqs.errors import ERRORS, MISSING, OVER_LIMIT, STALE, bare, code_of, repeated
from things_kit.brokers.sqs.options import LONGEST_HIDDEN, Settings
from things_kit.brokers.sqs.publisher import together
from things_kit.brokers.sqs.wire import Entry, pack
from things_kit.engine.clock import steady
from things_kit.engine.driver import ConnectionLost
from things_kit.messaging.errors import MessageTooLarge, PublishError
from things_kit.messaging.message import Message

log = logging.getLogger("things_kit.sqs")

MOST: Final = 10
"""Messages that a request may have."""

AT_ONCE: Final = 8
"""Requests at once that settle or extend."""

MOST_DELAYED: Final = 900
"""Seconds for which SQS can delay a message that is sent."""

BEYOND: Final = 5.0
"""Seconds that SQS may take for an answer beyond those that it was asked to wait: a connection that has fallen silent is
given up so soon, while others can still be told within half a minute."""

PAUSE: Final = 1.0
"""Seconds until SQS is asked again when too much is in flight."""

ATTRIBUTES: Final = ["SentTimestamp", "MessageGroupId", "ApproximateReceiveCount"]


class Copy(msgspec.Struct, frozen=True):
    """A copy of a message, which comes after `delay` seconds, and gives up its place in its key.

    Where the queue keeps an order, nothing with the same `name` is taken within five minutes.
    """

    message: Message
    delay: float
    attempt: int
    name: str
    suspect: int = 0


class Queue:
    """A queue, by its URL. `gone` is called when it turns out not to be there any more."""

    def __init__(
        self, settings: Settings, sqs: Any, topic: str, url: str, gone: Callable[[str], None]
    ) -> None:
        self.url = url
        self.topic = topic
        self.fifo = names.is_fifo(topic)
        self._settings = settings
        self._sqs = sqs
        self._gone = gone

    async def receive(self, size: int, wait: int) -> list[Entry]:
        """Up to ten messages, within so many seconds."""
        doing = f"receiving from {self.topic!r}"
        try:
            answer = await bare(
                self._sqs.receive_message(
                    QueueUrl=self.url,
                    MaxNumberOfMessages=size,
                    WaitTimeSeconds=wait,
                    VisibilityTimeout=self._settings.options.lease,
                    MessageAttributeNames=["All"],
                    MessageSystemAttributeNames=ATTRIBUTES,
                ),
                doing,
                wait + BEYOND,
            )
        except ClientError as error:
            if code_of(error) not in OVER_LIMIT:
                raise self._trouble(error, doing) from error
            log.warning("%s: SQS hands out nothing more: as much is in flight as it allows", self.topic)
            await asyncio.sleep(PAUSE)
            return []
        return list(answer.get("Messages") or ())

    def _trouble(self, error: ClientError, doing: str) -> Exception:
        if code_of(error) in MISSING:
            self._gone(self.topic)
            lost = ConnectionLost(f"{doing}: its queue was removed")
            lost.__cause__ = error
            return lost
        return ERRORS.translate(error, doing)

    async def delete(self, receipts: Iterable[str]) -> None:
        """Acknowledge these."""
        entries = [{"ReceiptHandle": receipt} for receipt in receipts]
        await self._batches(self._sqs.delete_message_batch, entries, "acknowledging")

    async def hide(self, hidden: Iterable[tuple[str, float]], doing: str = "giving back") -> None:
        """Hide each for so many seconds from now: never for less, but for more than SQS can; with 0 it is there for all."""
        entries = [
            {"ReceiptHandle": receipt, "VisibilityTimeout": min(LONGEST_HIDDEN, math.ceil(seconds))}
            for receipt, seconds in hidden
        ]
        await self._batches(self._sqs.change_message_visibility_batch, entries, doing)

    async def put_aside(self, copies: Sequence[Copy]) -> Sequence[Exception | None]:
        """Send copies of messages to this queue; one result each. Raises ConnectionLost."""
        results: list[Exception | None] = [None] * len(copies)
        entries: list[tuple[int, Entry]] = []
        for number, copy in enumerate(copies):
            try:
                entries.append((number, self._entry(copy)))
            except MessageTooLarge as error:
                results[number] = error
        for start in range(0, len(entries), MOST):
            some = entries[start : start + MOST]
            sent = await self._send_some([entry for _, entry in some])
            for (number, _), refusal in zip(some, sent, strict=True):
                results[number] = refusal
        return results

    async def _send_some(self, copies: Sequence[Entry]) -> Sequence[Exception | None]:
        doing = f"putting messages of {self.topic!r} aside"
        try:
            failed = await repeated(self._call(self._sqs.send_message_batch), copies, doing)
        except ClientError as error:
            trouble = self._trouble(error, doing)
            if isinstance(trouble, ConnectionLost):
                raise trouble from error
            refusal = PublishError(str(trouble))
            refusal.__cause__ = error
            return [refusal] * len(copies)
        return [
            ERRORS.refusal(failed[number], self.topic) if number in failed else None
            for number in range(len(copies))
        ]

    def _entry(self, copy: Copy) -> Entry:
        whole = math.ceil(copy.delay)
        delayed = 0 if self.fifo else min(MOST_DELAYED, whole)  # FIFO queues delay no single message
        due = steady() + copy.delay if whole > delayed else None
        limit = self._settings.bytes_at_once
        parcel = pack(copy.message, limit, attempt=copy.attempt, due=due, suspect=copy.suspect)
        entry: Entry = {"MessageBody": parcel.body, "MessageAttributes": parcel.attributes}
        if self.fifo:
            entry["MessageDeduplicationId"] = names.copy_id(copy.name)
            entry["MessageGroupId"] = names.message_group(None, copy.name)
        elif delayed:
            entry["DelaySeconds"] = delayed
        return entry

    # --- batches

    async def _batches(self, call: Callable[..., Any], entries: Sequence[Entry], doing: str) -> None:
        chunks = [entries[start : start + MOST] for start in range(0, len(entries), MOST)]
        doing = f"{doing} messages of {self.topic!r}"
        for start in range(0, len(chunks), AT_ONCE):
            await together([self._batch(call, chunk, doing) for chunk in chunks[start : start + AT_ONCE]])

    async def _batch(self, call: Callable[..., Any], entries: Sequence[Entry], doing: str) -> None:
        try:
            refused = await repeated(self._call(call), entries, doing)
        except ClientError as error:
            raise self._trouble(error, doing) from error
        for failure in refused.values():
            if failure.get("Code") not in STALE:  # else somebody else has the message
                log.warning("%s: %s: %s", doing, failure.get("Code"), failure.get("Message"))

    def _call(self, call: Callable[..., Any]) -> Callable[[Sequence[Entry]], Any]:
        return lambda entries: call(QueueUrl=self.url, Entries=entries)
