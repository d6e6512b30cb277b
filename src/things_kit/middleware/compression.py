"""Compresses values."""

import importlib
import sys
import zlib
from typing import Any, Final, Literal

from things_kit.messaging.errors import ConfigError, DecodeError
from things_kit.messaging.message import Message
from things_kit.messaging.transform import Applied, Transform

LIMIT: Final = 64 * 2**20
GZIP: Final = 16 + zlib.MAX_WBITS
"""What tells zlib to write and read gzip's format."""


class compress(Transform):  # noqa: N801 - it is used as a function
    """A transform that compresses values, and unpacks what either algorithm has packed.

    Args:
        algorithm: "zstd", which needs the extra `compress` before Python 3.14, or "gzip".
        above: Values of so many bytes or fewer are left as they are, as are those that would not get smaller.
        limit: What unpacks to more than so many bytes is a `DecodeError`.

    Raises:
        ConfigError: The algorithm is unknown, or not installed.
    """

    tokens: Final = frozenset({"zstd", "gzip"})
    required: Final = False

    def __init__(
        self, algorithm: Literal["zstd", "gzip"] = "zstd", *, above: int = 1024, limit: int = LIMIT
    ) -> None:
        if not isinstance(algorithm, str) or algorithm not in self.tokens:
            raise ConfigError(f'compress takes "zstd" or "gzip"; it was given {algorithm!r}')
        for name, number in (("above", above), ("limit", limit)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ConfigError(f"compress({name}=) is a number of bytes; it is {number!r}")
        if not limit:
            raise ConfigError("compress(limit=0) would unpack nothing")
        self._algorithm = algorithm
        self._above = above
        self._limit = limit
        self._zstd = _zstd()
        if self._zstd is None and algorithm == "zstd":
            raise ConfigError('zstd is not installed: pip install "things-kit[compress]"')

    def apply(self, message: Message, /) -> Applied:
        """Compress the value, if that makes it smaller."""
        value = message.value
        if len(value) <= self._above:
            return None
        packed = _gzip(value) if self._algorithm == "gzip" else self._zstd.compress(value)
        return None if len(packed) >= len(value) else (message.replace(value=packed), self._algorithm)

    def undo(self, message: Message, token: str, /) -> Message:
        """Unpack the value. Raises DecodeError for what is no such thing, is cut off, or is too large."""
        try:
            value = self._unpacked(message.value, token)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(f"the value cannot be unpacked as {token}: {error}") from error
        return message.replace(value=value)

    def _unpacked(self, packed: bytes, token: str) -> bytes:
        """Frame by frame, as one may follow the other."""
        parts: list[bytes] = []
        size = 0
        while packed or not parts:
            unpacker = self._unpacker(token)
            part = unpacker.decompress(packed, self._limit - size + 1)
            size += len(part)
            if size > self._limit:
                raise DecodeError(f"the value unpacks to more than {self._limit} bytes")
            if not unpacker.eof:
                raise DecodeError(f"the value is cut off: its {token} has no end")
            parts.append(part)
            packed = unpacker.unused_data
        return b"".join(parts)

    def _unpacker(self, token: str) -> Any:
        if token == "gzip":  # noqa: S105 - no secret, but the word in the header
            return zlib.decompressobj(GZIP)
        if self._zstd is None:
            raise DecodeError('the value is packed as zstd, which is not installed: "things-kit[compress]"')
        return self._zstd.ZstdDecompressor()


def _gzip(value: bytes) -> bytes:
    packer = zlib.compressobj(wbits=GZIP)
    return packer.compress(value) + packer.flush()


def _zstd() -> Any:
    """The module for zstd; None where there is none."""
    try:
        return importlib.import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
    except ImportError:
        return None
