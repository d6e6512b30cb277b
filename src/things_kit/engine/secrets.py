"""What must not be read in logs, errors and reprs."""

import re
from typing import Final

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
