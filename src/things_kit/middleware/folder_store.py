"""Large values as files."""

import asyncio
import os
import shutil
from datetime import datetime
from pathlib import Path


class FolderStore:
    """A folder for each day, a file for each value; many processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, key: str, value: bytes, /) -> None:
        """Write it, and have the disk confirm it."""
        await asyncio.to_thread(self._write, self._folder / key, value)

    async def get(self, key: str, /) -> bytes | None:
        """Read it; None where the file is not there. A folder that is not there, such as not mounted, is an OSError."""
        return await asyncio.to_thread(self._read, self._folder / key)

    async def sweep(self, before: datetime, /) -> None:
        """Remove the folders of earlier days."""
        await asyncio.to_thread(self._remove, f"{before:%Y-%m-%d}")

    @staticmethod
    def _write(path: Path, value: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)  # there is never half a value under its name
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            self._folder.stat()
            return None

    def _remove(self, before: str) -> None:
        for day in self._folder.iterdir():
            if len(day.name) == len(before) and day.name < before and day.is_dir():
                shutil.rmtree(day, ignore_errors=True)
