"""What survives a kill: a record for each change, read back at the start."""

import pickle
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any


class Journal:
    """Records in a file; nothing is written while it is read back."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: FileIO | None = None

    def read(self) -> Iterator[list[Any]]:
        """All records so far; a last one that was cut short is dropped. From then on `write` writes."""
        if self._path is None:
            return
        with self._path.open("ab+") as file:
            file.seek(0)
            while True:
                good = file.tell()
                try:
                    record = pickle.load(file)  # noqa: S301 - our own file
                except (EOFError, pickle.UnpicklingError):
                    file.truncate(good)
                    break
                yield record
        self._file = FileIO(self._path, "ab")

    def write(self, *record: Any) -> None:
        """Keep a record; it is with the operating system when this returns."""
        if self._file is not None:
            self._file.write(pickle.dumps(list(record)))
