"""What `publish` is given fits together, or is refused in a sentence that says how it is written."""

from typing import Any

import pytest

from things_kit import Message, Topic
from things_kit.testing import MockProducer

orders = Topic("orders", bytes)


@pytest.mark.parametrize(
    ("arguments", "fields", "sentence"),
    [
        (
            ("orders", b"1"),
            {},
            "publish takes a Message, or a Topic and a payload, not str: publish(Message(",
        ),
        ((Message("orders", b""), b"1"), {}, "publish takes a payload for a Topic alone"),
        ((Message("orders", b""),), {"key": "k"}, "publish takes key= for a Topic alone"),
        ((Message("orders", b""),), {"aftr": 5}, "publish has no argument 'aftr'"),
        ((orders, b"1"), {"aftr": 5}, "publish has no argument 'aftr'"),
        ((orders,), {}, "needs a payload"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_arguments_that_do_not_go_together_are_refused(
    arguments: tuple[Any, ...], fields: dict[str, Any], sentence: str
) -> None:
    publish: Any = MockProducer().publish
    with pytest.raises(TypeError) as raised:
        await publish(*arguments, **fields)
    assert sentence in str(raised.value)
