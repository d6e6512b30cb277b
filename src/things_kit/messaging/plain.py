"""Text that is more than text, such as a member of an Enum that is a `str` too."""

from typing import Any


def plain(text: Any) -> Any:
    """The text alone: `f"{Topics.ORDERS}"` is not the value of a `class Topics(str, Enum)`, and some clients take no subclass.

    What is no text is returned as it is.
    """
    return str.__str__(text) if isinstance(text, str) else text
