"""The rules of subscriptions: true, false, and the part of SQL that compares properties."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Properties = Mapping[str, Any]
Rule = Callable[[Properties], bool]

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+)|(?P<mark><>|!=|[=()])|\[(?P<quoted>[^]]+)\]|(?P<word>[A-Za-z_]\w*))"
)


class SqlFilter:
    """`NOT EXISTS([a]) OR [a] = 'x' AND b <> 1`, read by recursive descent."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        end = 0
        text = text.strip()
        while end < len(text):
            found = _TOKEN.match(text, end)
            if found is None:
                raise ValueError(f"cannot read the filter at: {text[end:]}")
            end = found.end()
            kind = str(found.lastgroup)
            self._tokens.append((kind, found[kind]))
        self._place = 0
        self._rule = self._either()
        if self._place < len(self._tokens):
            raise ValueError(f"cannot read the filter: {text}")

    def __call__(self, properties: Properties) -> bool:
        """Whether it lets a message in; what is unknown does not."""
        return self._rule(properties) is True

    def _next(self, *words: str) -> bool:
        if self._place < len(self._tokens) and self._tokens[self._place][1].upper() in words:
            self._place += 1
            return True
        return False

    def _either(self) -> Callable[[Properties], bool | None]:
        left = self._both()
        while self._next("OR"):
            left = _or(left, self._both())
        return left

    def _both(self) -> Callable[[Properties], bool | None]:
        left = self._one()
        while self._next("AND"):
            left = _and(left, self._one())
        return left

    def _one(self) -> Callable[[Properties], bool | None]:
        if self._next("NOT"):
            inner = self._one()
            return lambda properties: None if (known := inner(properties)) is None else not known
        if self._next("("):
            inner = self._either()
            self._expect(")")
            return inner
        if self._next("EXISTS"):
            self._expect("(")
            name = self._take()[1]
            self._expect(")")
            return lambda properties: properties.get(name) is not None
        return self._comparison()

    def _comparison(self) -> Callable[[Properties], bool | None]:
        left, (_, mark), right = self._value(), self._take(), self._value()
        if mark not in {"=", "<>", "!="}:
            raise ValueError(f"this filter compares by = and <> only, not by {mark}")

        def compare(properties: Properties) -> bool | None:
            one, other = left(properties), right(properties)
            return None if one is None or other is None else (one == other) is (mark == "=")

        return compare

    def _value(self) -> Callable[[Properties], Any]:
        kind, text = self._take()
        if kind == "text":
            plain = text[1:-1].replace("''", "'")
            return lambda _: plain
        if kind == "number":
            number = int(text)
            return lambda _: number
        return lambda properties: properties.get(text)

    def _take(self) -> tuple[str, str]:
        if self._place >= len(self._tokens):
            raise ValueError("the filter ends too early")
        self._place += 1
        return self._tokens[self._place - 1]

    def _expect(self, mark: str) -> None:
        if self._take()[1] != mark:
            raise ValueError(f"expected {mark} in the filter")


def _or(
    left: Callable[[Properties], bool | None], right: Callable[[Properties], bool | None]
) -> Callable[[Properties], bool | None]:
    def either(properties: Properties) -> bool | None:
        known = {left(properties), right(properties)}
        return True if True in known else None if None in known else False

    return either


def _and(
    left: Callable[[Properties], bool | None], right: Callable[[Properties], bool | None]
) -> Callable[[Properties], bool | None]:
    def both(properties: Properties) -> bool | None:
        known = {left(properties), right(properties)}
        return False if False in known else None if None in known else True

    return both


def rule(kind: str, expression: str) -> Rule:
    """A rule by the name of its type. Raises ValueError for what this stand-in does not know."""
    if kind in {"TrueFilter", "FalseFilter"}:
        return lambda _: kind == "TrueFilter"
    if kind == "SqlFilter":
        return SqlFilter(expression)
    raise ValueError(f"this stand-in has no rules of the type {kind}")
