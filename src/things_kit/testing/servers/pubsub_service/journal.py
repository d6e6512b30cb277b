"""What has happened, written down."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec


class Journal:
    """What has happened, so that a service that was killed goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def write(self, *entry: object) -> None:
        """Note one thing; a killed process has written what it had noted."""
        encoded = msgspec.msgpack.encode(entry)
        os.write(self._file, struct.pack(">I", len(encoded)) + encoded)

    def read(self) -> Iterable[list[Any]]:
        """All that was noted."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            while len(head := file.read(4)) == 4:
                yield msgspec.msgpack.decode(file.read(struct.unpack(">I", head)[0]))
