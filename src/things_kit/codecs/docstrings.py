"""What a schema says of a type: the docstring of its class."""

from typing import Any


def docstring(cls: Any) -> str:
    """What a class says of itself: "" for what it inherits, and for what a dataclass writes by itself."""
    own = getattr(cls, "__dict__", {}).get("__doc__")
    # From Python 3.15 on a dataclass writes it when it is asked
    said = own if own is None or isinstance(own, str) else cls.__doc__
    text = (said or "").strip()
    return "" if text.startswith(f"{getattr(cls, '__name__', '')}(") else text
