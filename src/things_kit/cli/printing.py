"""Everything that the command line prints goes through here: nothing printed can steer a terminal."""

import errno
import json
import os
import re
import sys
from typing import Any, Final

from rich.console import Console

JOINERS: Final = "\u200c\u200d"
"""Not printable by themselves, but they hold emoji and Indic and Persian words together, and steer nothing."""


class OutputClosed(Exception):
    """Who read our output has gone, as `head` does: no reason to complain, nor to go on."""


class Terminal(Console):
    """A console that leaves it to us what a closed pipe means; Rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise OutputClosed."""
        raise OutputClosed


def terminal(*, stderr: bool = False) -> Terminal:
    """A console for people. Give it `Text`, or text without markup: values may hold what looks like markup."""
    return Terminal(stderr=stderr, markup=False, highlight=False, emoji=False)


def safe(text: str) -> str:
    r"""The text with everything that a terminal would obey, or not show, as a visible escape such as `\x1b`."""
    return text if text.isprintable() else "".join(map(_visible, text))


def without_login(text: str) -> str:
    """The text without the logins of the URLs in it."""
    return re.sub(r"(://)[^/\s'\"]*@", r"\1", text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 message`, `2 messages`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def as_json(data: Any) -> str:
    """One line of JSON with nothing in it that a terminal obeys or that ends a line."""
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(data, ensure_ascii=ascii_only)
    return text if text.isprintable() else "".join(map(_escaped, text))


def say(line: str) -> None:
    """A line to standard output, at once. Raises OutputClosed if nobody reads any more."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError as error:
        # Windows calls a closed pipe an invalid argument.
        if error.errno in {errno.EPIPE, errno.EINVAL}:
            raise OutputClosed from None
        raise


def complain(sentence: str) -> None:
    """A sentence to standard error, after the program's name."""
    sys.stderr.write(f"things-kit: {safe(without_login(sentence))}\n")
    sys.stderr.flush()


def forget_output() -> None:
    """Point standard output nowhere, so that the interpreter does not complain of a closed pipe when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _visible(char: str) -> str:
    if char.isprintable() or char in JOINERS:
        return char
    return char.encode("unicode_escape").decode("ascii")


def _escaped(char: str) -> str:
    if char.isprintable() or char in JOINERS:
        return char
    # json leaves DEL as it is, and writes everything above as one or two \u escapes.
    return f"\\u{ord(char):04x}" if ord(char) < 0x80 else json.dumps(char)[1:-1]
