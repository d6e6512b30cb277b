"""Why a broker cannot be reached, in words that people search for."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from things_kit.engine.addresses import Address

PATIENCE: Final = 2.0
"""Seconds for a connection of our own, which only finds out whether there can be one."""


def reason_of(error: BaseException) -> str:
    """What an error says, and the operating system's word for it where that is missing."""
    text = str(error) or type(error).__name__
    for cause in _causes(error):
        word = word_of(cause)
        if word is not None:
            return text if word.lower() in text.lower() else f"{text} ({word})"
    return text


def word_of(error: BaseException) -> str | None:
    """What keeps a connection from being made: "connection refused", "unknown host"."""
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if (
        isinstance(error, OSError) and error.errno and error.errno in errno.errorcode
    ):  # some clients put a resolver's code there
        return os.strerror(error.errno).lower()
    return None


async def why_unreachable(address: Address) -> str | None:
    """Why no connection can be made to a server whose client does not tell; None if one can be made."""
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(*address)
    except TimeoutError:
        return f"{address}: no answer to an attempt to connect within {PATIENCE:g} s"
    except OSError as error:
        return f"{address}: {word_of(error) or error}"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or for."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
