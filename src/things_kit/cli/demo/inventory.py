"""The files to audit: what the installed distributions recorded."""

import base64
import csv
import os
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from itertools import zip_longest

import msgspec

from things_kit.cli.demo.recorded import RecordedFile


class Entry(msgspec.Struct, frozen=True):
    """A recorded file and the distribution that recorded it."""

    distribution: str
    file: RecordedFile


def inventory(path: list[str] | None = None) -> list[Entry]:
    """All files that the distributions on the path (`sys.path` if None) recorded with a SHA-256.

    The distributions take turns, as they would if each of them sent its own.
    """
    found: dict[str, Distribution] = {}
    for distribution in distributions() if path is None else distributions(path=path):
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(name, distribution)  # the first on the path is the one that is imported
    columns = [list(_entries(name, distribution)) for name, distribution in sorted(found.items())]
    return [entry for turn in zip_longest(*columns) for entry in turn if entry is not None]


def _entries(name: str, distribution: Distribution) -> Iterator[Entry]:
    # Not `distribution.files`: from Python 3.12 on that leaves out what is missing, which is what an audit is for
    for path, digest, size in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        algorithm, _, encoded = digest.partition("=")
        if algorithm == "sha256":
            sha256 = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
            place = os.path.normpath(str(distribution.locate_file(path)))
            yield Entry(name, RecordedFile(place, sha256, int(size) if size else None))
