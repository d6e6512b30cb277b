"""Bytes to typed payloads and back: the codecs, and how a codec of one's own is made known.

Nothing is imported before it is asked for: a codec whose library is not installed costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from things_kit.codecs.avro import Avro as Avro
    from things_kit.codecs.cloud_events import CloudEvents as CloudEvents
    from things_kit.codecs.json_codec import JSON as JSON
    from things_kit.codecs.memory_registry import MemoryRegistry as MemoryRegistry
    from things_kit.codecs.message_pack import MessagePack as MessagePack
    from things_kit.codecs.protobuf import Protobuf as Protobuf
    from things_kit.codecs.registered import register as register
    from things_kit.codecs.registry import Registry as Registry
    from things_kit.messaging.codec import Codec as Codec
    from things_kit.messaging.codec import Unprepared as Unprepared

_HOMES = {
    "Avro": "things_kit.codecs.avro",
    "CloudEvents": "things_kit.codecs.cloud_events",
    "Protobuf": "things_kit.codecs.protobuf",
    "JSON": "things_kit.codecs.json_codec",
    "MessagePack": "things_kit.codecs.message_pack",
    "MemoryRegistry": "things_kit.codecs.memory_registry",
    "Registry": "things_kit.codecs.registry",
    "register": "things_kit.codecs.registered",
    "Codec": "things_kit.messaging.codec",
    "Unprepared": "things_kit.messaging.codec",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the same names as above, for type checkers


def __getattr__(name: str) -> Any:
    """Import a codec when it is first asked for."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
