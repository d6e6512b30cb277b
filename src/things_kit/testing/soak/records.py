"""What the processes of a soak write down: files to which lines are only ever added, one for each process."""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal[
    "publishing", "published", "unpublished",
    "began", "done", "failed", "cancelled", "spoiled",
    "buried", "replayed", "lag", "pulse", "said", "ill", "ready", "ending",
    "started", "told", "ended", "fault", "over", "seen", "recovered", "phase",
]  # fmt: skip
"""What happened. The first three are a producer's, the next two lines a member's, the last line the soak's own."""

SUFFIX: Final = ".jsonl"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened in one process.

    Attributes:
        kind: What.
        at: When, by the clock that all processes of a machine share (`time.monotonic`).
        by: In which process: its role, and how often it was started, such as `ordered-1.3`.
        id: Of a message, or of a fault.
        group: Of the group that it happened to.
        key: Of a message; empty where it has none.
        place: Of a message among all of its key, from 1.
        attempt: As the handler saw it.
        text: An error's type, a line of the library's log, the name of a fault.
        figures: Numbers by name: a lag, a size, an exit code.
    """

    kind: Kind
    at: float
    by: str = ""
    id: str = ""
    group: str = ""
    key: str = ""
    place: int = 0
    attempt: int = 0
    text: str = ""
    figures: Mapping[str, float] = {}


class Journal:
    """The file of one process. Each line is in the hands of the system before `add` returns, so that a kill loses none."""

    def __init__(self, folder: Path, by: str) -> None:
        self.by = by
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(folder / f"{by}{SUFFIX}", flags, 0o644)
        self._encoder = msgspec.json.Encoder()

    def add(
        self,
        kind: Kind,
        id: str = "",  # noqa: A002 - the message's id
        *,
        group: str = "",
        key: str = "",
        place: int = 0,
        attempt: int = 0,
        text: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> Entry:
        """Write down what happens now."""
        entry = Entry(kind, time.monotonic(), self.by, id, group, key, place, attempt, text, figures or {})
        os.write(self._file, self._encoder.encode(entry) + b"\n")
        return entry

    def close(self) -> None:
        """Nothing more happens."""
        os.close(self._file)


class Follower:
    """Reads what was added to all files of a folder since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._decoder = msgspec.json.Decoder(Entry)

    def news(self) -> list[Entry]:
        """The new entries, in the order in which they happened."""
        entries: list[Entry] = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            read = self._read.get(path, 0)
            if path.stat().st_size == read:
                continue
            with path.open("rb") as file:
                file.seek(read)
                data = file.read()
            whole = data.rfind(b"\n") + 1  # the last line may be half there
            self._read[path] = read + whole
            entries += map(self._decoder.decode, data[:whole].splitlines())
        return in_order(entries)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """As they happened, by the common clock."""
    return sorted(entries, key=lambda entry: entry.at)


def read(folder: Path) -> list[Entry]:
    """All that was written down in a folder, in the order in which it happened."""
    return Follower(folder).news()
