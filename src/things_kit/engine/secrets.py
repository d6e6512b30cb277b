"""What must not be read in logs, errors and reprs."""

import re
from typing import Any, Final, get_args

HIDDEN: Final = "…"
"""What stands where something secret was."""

_NAMES: Final = r"(?:password|passwd|passphrase|secret|token|credentials?|access_?key|api_?key|signature|sig)"
_MASKS: Final = (
    (re.compile(r"(?<=://)[^\s/'\"@]+@"), f"{HIDDEN}@"),
    (re.compile(rf"(?i)([\w.-]*{_NAMES}[\"']?\s*=\s*[\"']?)[^\s\"'&;,]+"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)([\"'][\w.-]*{_NAMES}[\"']\s*:\s*[bru]?[\"'])[^\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\b(?:Bearer|Basic|SharedAccessSignature)\s+)[^\s'\"]+"), rf"\1{HIDDEN}"),
)


def masked(text: str) -> str:
    """A text of a client's or server's, without the logins, keys and tokens that such texts are known to quote."""
    for pattern, instead in _MASKS:
        text = pattern.sub(instead, text)
    return text


class Secret:
    """A text that neither `repr`, `str` nor a format shows: a password or key among a driver's options.

    A field of a msgspec Struct may be a `Secret`, or `Secret | None`: `BrokerURL.options` makes it of the option's text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for whom it was given to."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __bool__(self) -> bool:
        return bool(self._text)


def is_secret(kind: Any) -> bool:
    """Whether a field of that type holds a `Secret`: what is wrong with its value must not be said by quoting it."""
    return kind is Secret or Secret in get_args(kind)


def secrets_of(kind: type, value: Any) -> Any:
    """The `dec_hook` by which msgspec makes Secrets."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise NotImplementedError
