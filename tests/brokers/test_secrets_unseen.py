"""What is secret in a URL is seen in no repr of anything that is made of it."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from things_kit import connect

SECRET = "hush-hush-hush"

URLS = [
    f"kafka://me:{SECRET}@host?conf.ssl.key.password={SECRET}",
    f"amqp://me:{SECRET}@host/v",
    f"nats://me:{SECRET}@host",
    f"nats://{SECRET}@host",
    f"redis://me:{SECRET}@host",
    f"redis://me:{SECRET}@host?sentinel=main&sentinel_password={SECRET}",
    f"servicebus://NAME.servicebus.windows.net?key_name=Root&key={SECRET}",
]


def ours(thing: Any, seen: set[int]) -> Iterator[Any]:
    """This, and all that is of this project in it."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if type(thing).__module__.startswith("things_kit"):
        yield thing
    elif not isinstance(thing, dict | list | tuple | set | frozenset):
        return
    parts: list[Any] = list(thing.values()) if isinstance(thing, dict) else []
    if isinstance(thing, list | tuple | set | frozenset):
        parts += thing
    parts += getattr(thing, "__dict__", {}).values()
    if isinstance(thing, msgspec.Struct):
        parts += [getattr(thing, name) for name in thing.__struct_fields__]
    for part in parts:
        yield from ours(part, seen)


@pytest.mark.parametrize("url", URLS)
async def test_a_secret_is_in_no_repr(url: str) -> None:
    things = list(ours(connect(url), set()))
    assert len(things) > 3
    for thing in things:
        for shown in (repr(thing), str(thing), pretty_repr(thing)):
            assert SECRET not in shown, f"{type(thing).__qualname__} shows it"
