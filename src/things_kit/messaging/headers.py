"""The headers that all messages of a kind have, once for all of them."""

from typing import Any, NoReturn


class SharedHeaders(dict[str, str]):
    """Headers of many messages at once: a dict that nobody can change, as none of them is alone with it.

    What is made of it, such as by `{**headers, "more": ""}`, `|`, `copy` and pickling, is a plain dict.
    """

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "the headers of a message cannot be changed: message.replace(headers={**message.headers, ...}) is a copy with others"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        return dict, (dict(self),)
