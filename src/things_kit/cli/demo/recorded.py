"""A file that an installed distribution recorded: the demo's payload, and how it is verified."""

import hashlib
from pathlib import Path

import msgspec


class FileMissing(Exception):
    """The file is not there. It may come: worth another attempt."""


class FileChanged(Exception):
    """The file is not the one that was recorded. It may be one that an installer is about to replace."""


class RecordedFile(msgspec.Struct, frozen=True):
    """What the installer wrote down of a file.

    Attributes:
        path: Where it is.
        sha256: The digest that it had, in hexadecimal.
        size: Its size in bytes, where recorded.
    """

    path: str
    sha256: str
    size: int | None = None

    def verify(self) -> None:
        """Read the file and compare.

        Raises:
            FileMissing: It is not there.
            FileChanged: It has another digest.
        """
        try:
            with Path(self.path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise FileMissing(f"{self.path} is recorded, but not there") from None
        if digest != self.sha256:
            raise FileChanged(
                f"{self.path} has the SHA-256 {digest[:12]}..., recorded is {self.sha256[:12]}..."
            )
