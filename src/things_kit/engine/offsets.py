"""Which offsets of a partition are finished, for brokers that can only commit "everything before this one"."""

import base64
import binascii
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

Range = tuple[int, int]
"""Offsets from the first, up to but without the second."""

Mark = tuple[int, str]
"""What is committed of a partition: an offset, and metadata."""

PREFIX: Final = "tk2:"
"""What our metadata begins with: run lengths as MessagePack, deflated, in Base64."""

LIMIT: Final = 3500
"""Bytes of metadata. Brokers take 4096 (`offset.metadata.max.bytes`) unless they were told otherwise."""

MOST_OFFSET: Final = (1 << 63) - 1

MOST_BYTES: Final = 1 << 20
"""What deflated metadata may unpack to: ours stays far below, and a stranger's must not fill the memory."""


class Offsets:
    """The offsets of one partition that were handed out, and what of them is not finished.

    Offsets are received in ascending order and finished in any. A gap between two that were received holds nothing
    back: compaction and transactions leave offsets without a message.

    One thread receives and marks, another finishes: every step is a single operation on a dictionary.

    Attributes:
        unfinished: The offsets that were received and are not finished, ascending.
        end: The offset after the last one that was received; None while nothing is known of the partition.
        ahead: What was finished before, beyond what was received again by now: not to be handed out.
    """

    def __init__(self, end: int | None = None, ahead: Iterable[Range] = ()) -> None:
        self.unfinished: dict[int, None] = {}
        self.end = end
        self.ahead: deque[Range] = deque(ahead)

    def __repr__(self) -> str:
        return f"<Offsets {len(self.unfinished)} unfinished before {self.end}>"

    @classmethod
    def restored(cls, committed: int, metadata: str | None) -> "Offsets":
        """Those of a partition that somebody else worked on, from what was committed."""
        return cls(committed, decode(committed, metadata))

    def receive(self, offset: int) -> bool:
        """Take note of the next offset. False if it was finished before: then nobody may get it again."""
        self.end = offset + 1
        if self.ahead and self._was_finished(offset):
            return False
        self.unfinished[offset] = None
        return True

    def receive_all(self, offsets: Sequence[int]) -> bool:
        """The same of many, unless any may have been finished before: then each is to be asked for, and none is noted."""
        if self.ahead:
            return False
        self.unfinished.update(dict.fromkeys(offsets))
        self.end = offsets[-1] + 1
        return True

    def _was_finished(self, offset: int) -> bool:
        ahead = self.ahead
        while ahead and ahead[0][1] <= offset:
            ahead.popleft()
        return bool(ahead) and ahead[0][0] <= offset

    def skip(self, end: int) -> None:
        """Take note that nothing before this offset is still to come: what is there is no message."""
        if end > (self.end or 0):
            self.end = end
            while self.ahead and self.ahead[0][1] <= end:
                self.ahead.popleft()

    def finish(self, offset: int) -> None:
        """Nobody needs this one again. Finishing it twice is fine."""
        self.unfinished.pop(offset, None)

    @property
    def committable(self) -> int | None:
        """The first offset that is not finished: all before it are. It never goes back."""
        return next(iter(list(self.unfinished)), self.end)

    def mark(self, limit: int = LIMIT) -> Mark | None:
        """What to commit, and metadata of at most `limit` bytes that says what is finished beyond it.

        None while there is nothing to commit.
        """
        end, unfinished = self.end, list(self.unfinished)  # copied at once: another thread may finish
        if end is None:
            return None
        ahead = [(max(start, end), stop) for start, stop in self.ahead if stop > end]
        if not unfinished and ahead and ahead[0][0] == end:
            end = ahead.pop(0)[1]
        if not unfinished and not ahead:
            return end, ""
        committable = unfinished[0] if unfinished else end
        return committable, encode(committable, [*_between(unfinished, end), *ahead], limit)


def encode(committed: int, finished: Sequence[Range], limit: int = LIMIT) -> str:
    """Ranges beyond an offset as text; if they do not fit, as many of the lowest as do."""
    text = _encoded(committed, finished)
    if len(text) <= limit:
        return text
    fits, too_many = 0, len(finished)
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if len(_encoded(committed, finished[:count])) <= limit:
            fits = count
        else:
            too_many = count
    return _encoded(committed, finished[:fits]) if fits else ""


def decode(committed: int, metadata: str | None) -> list[Range]:
    """The ranges that `encode` wrote. Of metadata that is not ours: none."""
    if not metadata or not metadata.startswith(PREFIX):
        return []
    try:
        deflated = base64.b64decode(metadata[len(PREFIX) :], validate=True)
        numbers = _numbers.decode(zlib.decompressobj().decompress(deflated, MOST_BYTES))
    except (binascii.Error, zlib.error, msgspec.MsgspecError, ValueError):
        return []
    ranges, offset = [], committed
    for unfinished, finished in zip(numbers[::2], numbers[1::2], strict=False):
        start = offset + unfinished
        offset = start + finished
        if finished:
            ranges.append((start, offset))
    return ranges


def _between(unfinished: Sequence[int], end: int) -> list[Range]:
    """The finished ranges between these offsets, up to the end."""
    edges = zip(unfinished, [*unfinished[1:], end], strict=False)
    return [(offset + 1, following) for offset, following in edges if following > offset + 1]


def _encoded(committed: int, finished: Sequence[Range]) -> str:
    if not finished:
        return ""
    numbers, offset = [], committed
    for start, stop in finished:
        numbers += [start - offset, stop - start]
        offset = stop
    return PREFIX + base64.b64encode(zlib.compress(msgspec.msgpack.encode(numbers))).decode()


_numbers: Final = msgspec.msgpack.Decoder(list[Annotated[int, msgspec.Meta(ge=0, le=MOST_OFFSET)]])
