"""A small distribution with known faults, in a folder of the demo's own: the audit must find exactly these."""

import base64
import hashlib
from pathlib import Path
from typing import Final

from things_kit.cli.demo.inventory import Entry, inventory

NAME: Final = "planted"
CHANGED: Final = ("changed-1.txt", "changed-2.txt", "changed-3.txt")
MISSING: Final = ("missing-1.txt", "missing-2.txt")
LATE: Final = "late.txt"


class Planted:
    """Plants the distribution in a folder.

    Attributes:
        entries: What it recorded.
        expected: By path, the type of error that the audit must end with.
        late: The path of a file that is not there until `arrive` is called.
    """

    def __init__(self, folder: Path) -> None:
        self._home = folder / NAME
        self._home.mkdir(parents=True)
        files = (*CHANGED, *MISSING, LATE)
        self._record(folder / f"{NAME}-1.0.dist-info", files)
        for file in CHANGED:
            (self._home / file).write_text("not what was recorded\n")
        self.entries: list[Entry] = inventory([str(folder)])
        kinds = dict.fromkeys(CHANGED, "FileChanged") | dict.fromkeys(MISSING, "FileMissing")
        self.expected = {str(self._home / file): kind for file, kind in kinds.items()}
        self.late = str(self._home / LATE)

    def arrive(self) -> None:
        """Put the late file in its place, whole at once."""
        draft = self._home / f"{LATE}.draft"
        draft.write_bytes(_content(LATE))
        draft.replace(self.late)

    def _record(self, info: Path, files: tuple[str, ...]) -> None:
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        lines = []
        for file in files:
            content = _content(file)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            lines.append(f"{NAME}/{file},sha256={digest},{len(content)}\n")
        (info / "RECORD").write_text("".join(lines))


def _content(file: str) -> bytes:
    return f"{file}, as it was recorded\n".encode()
