"""Encrypts values."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from things_kit.messaging.errors import ConfigError, DecodeError
from things_kit.messaging.message import Message
from things_kit.messaging.names import ENCRYPTED_TOPIC, ORIGINAL_TOPIC
from things_kit.messaging.topic import Topic, topic_name
from things_kit.messaging.transform import Applied, Transform

TOKEN: Final = "aes-gcm"  # noqa: S105 - no secret, but the word in the header
NONCE: Final = 12
KEY: Final = 32
LONGEST_NAME: Final = 255


class encrypt(Transform):  # noqa: N801 - it is used as a function
    """A transform that encrypts values with AES-GCM, 256 bits.

    A value is bound to its message's id and to the topic that it was encrypted for: moved to another message or topic it
    is a `DecodeError`, as when it was tampered with. Key and headers are not protected: anybody at the broker reads them.

    Args:
        keys: By name, 32 random bytes each. The first encrypts, all decrypt: put a new one in front to rotate.
        topics: Other topics whose values are accepted, by their names or as Topics: for bridges that rename, and `replay(to=)`.
        required: Whether plain values are refused.

    Raises:
        ConfigError: A key is not 32 bytes, there is none, `topics` names something else, or the extra `encrypt` is not installed.
    """

    tokens: Final = frozenset({TOKEN})

    def __init__(
        self, keys: Mapping[str, bytes], topics: Iterable[str | Topic[Any]] = (), *, required: bool = False
    ) -> None:
        if not isinstance(required, bool):
            raise ConfigError(f"encrypt(required=) is True or False; it is {required!r}")
        self._required = required
        self._topics = _names(topics)
        self._keys = {_name(name): _cipher(name, key) for name, key in _items(keys)}
        self._first = next(iter(self._keys))

    @property
    def required(self) -> bool:
        """Whether plain values are refused."""
        return self._required

    def __repr__(self) -> str:
        return f"encrypt({', '.join(name.decode() for name in self._keys)})"

    def apply(self, message: Message, /) -> Applied:
        """Encrypt the value with the first key."""
        nonce = secrets.token_bytes(NONCE)
        sealed = self._keys[self._first].encrypt(nonce, message.value, _bound(message, message.topic))
        value = bytes((len(self._first),)) + self._first + nonce + sealed
        return message.replace(
            value=value, headers={**message.headers, ENCRYPTED_TOPIC: message.topic}
        ), TOKEN

    def undo(self, message: Message, token: str, /) -> Message:
        """Decrypt the value. Raises DecodeError, which never says what was in it."""
        topic = message.headers.get(ENCRYPTED_TOPIC, "")
        if topic not in {message.topic, message.headers.get(ORIGINAL_TOPIC), *self._topics}:
            raise DecodeError(
                f"the value was encrypted for the topic {topic!r}, not {message.topic!r}: name it in encrypt(topics=)"
            )
        size = 1 + message.value[0] if message.value else 1
        name, nonce = message.value[1:size], message.value[size : size + NONCE]
        cipher = self._keys.get(name)
        if cipher is None:
            raise DecodeError(f"the value was encrypted with a key that is not here: {name[:40]!r}")
        try:
            value = cipher.decrypt(nonce, message.value[size + NONCE :], _bound(message, topic))
        except Exception:  # noqa: BLE001 - whatever is wrong with it, that is all to be said
            raise DecodeError("the value cannot be decrypted: it, its id or its topic was changed") from None
        headers = {name: text for name, text in message.headers.items() if name != ENCRYPTED_TOPIC}
        return message.replace(value=value, headers=headers)


def _bound(message: Message, topic: str) -> bytes:
    """What belongs to the value without being in it: lengths first, so that nothing can move from one to the other."""
    parts = [(message.id or "").encode(), topic.encode()]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _names(topics: object) -> frozenset[str]:
    if isinstance(topics, str | Topic):
        raise ConfigError(f"encrypt(topics=) is a list of topics: write topics=[{topics!r}]")
    names: list[Any] = [topic_name(each) for each in topics] if isinstance(topics, Iterable) else [topics]
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"encrypt(topics=) is a list of topics; in it is {name!r}")
    return frozenset(names)


def _items(keys: object) -> Iterable[tuple[str, bytes]]:
    if not isinstance(keys, Mapping) or not keys:
        raise ConfigError("encrypt takes a mapping from a key's name to its 32 bytes, with one at least")
    return keys.items()


def _name(name: object) -> bytes:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise ConfigError(f"the name of a key is a text of up to {LONGEST_NAME} bytes; it is {name!r}")
    return name.encode()


def _cipher(name: str, key: object) -> Any:
    if not isinstance(key, bytes) or len(key) != KEY:
        raise ConfigError(f"the key {name!r} must be {KEY} bytes")
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError('cryptography is not installed: pip install "things-kit[encrypt]"') from None
    return AESGCM(key)
