"""A topic's contract as one value: what its messages carry, and how they are written."""

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import repeat
from types import MappingProxyType
from typing import Any, Final, Generic, NoReturn, TypeVar, overload

from things_kit.messaging.codec import Codec, Encode, Stamping, bare, default_codec
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.headers import SharedHeaders
from things_kit.messaging.keys import Key, Keys, key_bytes, keys_of
from things_kit.messaging.kinds import checked_kinds, is_raw, outer_classes
from things_kit.messaging.message import RESERVED_PREFIX, Message
from things_kit.messaging.names import CONTENT_TYPE, SCHEMA_VERSION
from things_kit.messaging.plain import plain
from things_kit.messaging.transform import Transform, topic_transforms, transformed
from things_kit.messaging.versions import Upcaster, check_versions

T = TypeVar("T")


class Unset:
    """Nothing was said, where None means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()

LONGEST_NAME: Final = 200
"""Characters of a type that are shown: it may be nested without end."""

_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


class Topic(Generic[T]):
    """What the messages of a topic carry: a frozen value, made at import, that knows no broker.

    It serves wherever a topic's name is asked for. Several types are named in the brackets, and mapped from the value of
    a header to the exact class:

        orders = Topic("orders", Order, key="id")
        shop = Topic[Created | Cancelled]("shop", {"order.created": Created, "order.cancelled": Cancelled}, by="type")

    Attributes:
        name: The topic's name.
        kinds: The type of its payloads, under None; of several, by the header's value.
        by: The header that names the type, where there are several.
        key: What the key is made of: an attribute's name, a function of the payload, or None.
        headers: Headers that every message has.
        codec: How payloads become bytes; None for topics of `bytes` and `str`, whose payloads are the bytes.
        version: The version that its messages are written by; None where nothing is written or read.
        upcasters: By the value in `kinds`, the functions from one version to the next.
        accept_newer: Whether messages of a newer version are decoded as if they were of this one.
        reply: The type of what answers a request, where the contract says so.
        transforms: What is done to its values.
    """

    __slots__ = (
        "_classes", "_encode", "_headers", "_keys", "_stamp", "_typed", "accept_newer", "by", "codec", "headers", "key",
        "kinds", "name", "reply", "transforms", "upcasters", "version",
    )  # fmt: skip

    name: str
    kinds: Mapping[str | None, Any]
    by: str | None
    key: str | Callable[[Any], Any] | None
    headers: Mapping[str, str]
    codec: Codec | None
    version: int | None
    upcasters: Mapping[str | None, Mapping[int, Upcaster]]
    accept_newer: bool
    reply: Any
    transforms: tuple[Transform, ...]

    _encode: Encode
    _stamp: (
        Callable[[Any, str | None, datetime | None], tuple[bytes, Mapping[str, str], str, datetime]] | None
    )
    _keys: Keys | None
    _headers: SharedHeaders
    _classes: tuple[type, ...] | None
    _typed: Mapping[type, SharedHeaders] | None

    @overload
    def __init__(
        self,
        name: str,
        type: type[T],
        *,
        key: str | Callable[[T], Key] | None = None,
        headers: Mapping[str, str] = ...,
        codec: Codec | None = None,
        version: int | None = None,
        upcast: Mapping[int, Upcaster] = ...,
        accept_newer: bool = False,
        reply: Any = None,
        transforms: Sequence[Transform] = (),
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        type: Mapping[str, type[T]],
        *,
        by: str,
        key: str | Callable[[T], Key] | None = None,
        headers: Mapping[str, str] = ...,
        codec: Codec | None = None,
        version: int | None = None,
        upcast: Mapping[str, Mapping[int, Upcaster]] = ...,
        accept_newer: bool = False,
        reply: Any = None,
        transforms: Sequence[Transform] = (),
    ) -> None: ...

    def __init__(
        self,
        name: str,
        type: Any,  # noqa: A002 - the word for it
        *,
        by: str | None = None,
        key: str | Callable[[Any], Any] | None = None,
        headers: Mapping[str, str] = _NOTHING,
        codec: Codec | None = None,
        version: int | None = None,
        upcast: Mapping[Any, Any] = _NOTHING,
        accept_newer: bool = False,
        reply: Any = None,
        transforms: Sequence[Transform] = (),
    ) -> None:
        """Make the contract.

        Args:
            name: The topic's name.
            type: The type of its payloads, or a mapping from the header's value to a class.
            by: The header that names the type, for a mapping.
            key: An attribute's name or a function of the payload: what the key is made of.
            headers: Headers that every message gets.
            codec: How payloads become bytes; JSON where None.
            version: The version that messages are written by.
            upcast: By version, a function from its plain values (a dict) to those of the next; with a mapping, by the
                header's value first.
            accept_newer: Decode messages of newer versions too, as if they were of this one.
            reply: The type of what answers a request; None where nothing is said of it.
            transforms: What is done to values once the message is made, from left to right, and undone by consumers.

        Raises:
            ConfigError: Any of it cannot be, such as a type that the codec cannot write.
        """
        name = plain(name)
        kinds, by = checked_kinds(name, type, by)
        raw = is_raw(kinds)
        _check_codec(name, codec, raw=raw)
        if raw and (version is not None or upcast):
            raise ConfigError(f"the topic {name!r} is raw: it has no versions")
        values = {
            "name": name,
            "kinds": MappingProxyType(kinds),
            "by": by,
            "key": key,
            "headers": MappingProxyType(dict(headers)),
            "codec": None if raw else codec or default_codec(),
            "version": version,
            "upcasters": MappingProxyType(check_versions(name, kinds, version, upcast)),
            "accept_newer": accept_newer,
            "reply": reply,
            "transforms": topic_transforms(name, transforms),
            "_keys": None if key is None else keys_of(key, kinds, name),
            "_classes": outer_classes(kinds),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        self._check_headers(headers, f"the topic {name!r}")
        written = {CONTENT_TYPE: self.content_type, **headers, **self._versioned()}
        object.__setattr__(self, "_headers", SharedHeaders(written))
        typed = None if by is None else _headers_by_class(by, kinds, written)
        object.__setattr__(self, "_typed", typed)
        self._compile()

    def _versioned(self) -> dict[str, str]:
        return {} if self.version is None else {SCHEMA_VERSION: str(self.version)}

    def _compile(self) -> None:
        stamp = encode = None
        try:
            if self.codec is None:
                encode = _raw_encoder(self.kinds[None])
            else:
                encode = self.codec.encoder(self)
                if isinstance(self.codec, Stamping):
                    stamp = self.codec.stamper(self)
                for kind in self.kinds.values():
                    self.codec.decoder(kind, self)
        except ConfigError as error:
            raise ConfigError(f"the topic {self.name!r}: {error}") from error
        except (TypeError, NameError, ValueError, RecursionError) as error:
            kinds = ", ".join(map(_name, self.kinds.values()))
            why = "its types are nested too deeply" if isinstance(error, RecursionError) else error
            raise ConfigError(
                f"the topic {self.name!r} cannot carry {kinds} as {self.content_type}: {why}"
            ) from error
        object.__setattr__(self, "_encode", encode)
        object.__setattr__(self, "_stamp", stamp)

    @property
    def content_type(self) -> str:
        """What the header `content-type` of its messages says."""
        if self.codec is None:
            return "application/octet-stream" if self.kinds[None] is bytes else "text/plain; charset=utf-8"
        return self.codec.content_type

    # --- messages

    def message(
        self,
        payload: T,
        /,
        *,
        key: Key | Unset = UNSET,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,  # noqa: A002 - as in Message
        timestamp: datetime | None = None,
    ) -> Message:
        """The message that carries this payload, not published. `key=None` means none, whatever the topic says.

        Raises:
            TypeError: The payload is not of the topic's type, or cannot be written, or its key can be none.
            ConfigError: The headers say what only the topic may say; or what the codec needs was not fetched yet.
        """
        value, written, chosen_id, time = self._written(payload, id, timestamp)
        if headers:
            self._check_headers(headers, f"the message for {self.name!r}")
            written = {**written, **headers}
        if not isinstance(key, Unset):
            made = key_bytes(key)
        else:
            made = None if self._keys is None else self._keys.of(payload)
        message = Message(self.name, value, made, written, timestamp=time, id=chosen_id)
        return transformed(message, self.transforms) if self.transforms else message

    def messages(self, payloads: Iterable[T], /) -> list[Message]:
        """The messages that carry these payloads, such as for `publish_batch`. Raises what `message` does."""
        bytes_of = getattr(self._encode, "bytes_of", None)
        if bytes_of is None or self._stamp is not None or self.transforms:
            return [self.message(payload) for payload in payloads]
        payloads = list(payloads)
        headers = self._headers_of_all(payloads)
        keys = repeat(None) if self._keys is None else self._keys.of_all(payloads)
        # One after the other, with nothing kept for all of them in between: memory is what many messages cost most
        return list(map(Message, repeat(self.name), map(bytes_of, payloads), keys, headers))

    def _headers_of_all(self, payloads: Sequence[T]) -> Iterable[SharedHeaders]:
        """The headers of each. Raises TypeError for a payload that is not of the topic's type."""
        found = {*map(type, payloads)}
        if self._typed is not None:
            if not found <= self._typed.keys():
                self._refuse(next(each for each in payloads if type(each) not in self._typed))
            return map(self._typed.__getitem__, map(type, payloads))
        if self._classes is not None and not found.issubset(self._classes):  # else none is looked at alone
            for payload in payloads:
                if not isinstance(payload, self._classes):
                    self._refuse(payload)
        return repeat(self._headers)

    def _written(
        self, payload: T, chosen_id: str | None, time: datetime | None
    ) -> tuple[bytes, Mapping[str, str], str | None, datetime | None]:
        headers: SharedHeaders | None = self._headers
        if self._typed is not None:
            headers = self._typed.get(type(payload))
        elif self._classes is not None and not isinstance(payload, self._classes):
            headers = None
        if headers is None:
            self._refuse(payload)
        if self._stamp is not None:
            data, more, chosen_id, time = self._stamp(payload, chosen_id, time)
        else:
            data, more = self._encode(payload)
        return data, {**headers, **more} if more else headers, chosen_id, time

    def _refuse(self, payload: object) -> NoReturn:
        kinds = " or ".join(map(_name, self.kinds.values()))
        raise TypeError(f"the topic {self.name!r} carries {kinds}, not {type(payload).__name__}")

    def _check_headers(self, headers: Mapping[str, str], what: str) -> None:
        ours = {CONTENT_TYPE, SCHEMA_VERSION, (self.by or "").lower()}
        for header, text in headers.items():
            if not isinstance(header, str) or not isinstance(text, str):
                raise ConfigError(f"{what} sets the header {header!r} to {text!r}: both are text")
            if header.lower() in ours:
                raise ConfigError(f"{what} sets the header {header!r}, which its contract writes")
            if header.startswith(RESERVED_PREFIX):
                raise ConfigError(f"{what} sets the header {header!r}, which is for drivers")

    # --- the value

    def renamed(self, name: str) -> "Topic[T]":
        """The same contract under another name, such as to consume dead letters typed. Raises ConfigError."""
        kinds: Any = self.kinds[None] if self.by is None else self.kinds
        upcast: Any = self.upcasters.get(None, {}) if self.by is None else self.upcasters
        make: Any = Topic
        renamed: Topic[T] = make(
            name, kinds, by=self.by, key=self.key, headers=self.headers, codec=self.codec, version=self.version,
            upcast=upcast, accept_newer=self.accept_newer, reply=self.reply,
            transforms=self.transforms,
        )  # fmt: skip
        return renamed

    async def prepare(self) -> None:
        """Get what encoding needs from elsewhere, such as from a schema registry; publish and consumers do it too.

        Raises:
            BrokerUnavailable: It was not there for 30 seconds.
            ConfigError: It does not let us in, or has what does not fit.
        """
        if self.codec is not None:
            await self.codec.prepare(self)

    def _identity(self) -> tuple[Any, ...]:
        return (
            self.name, dict(self.kinds), self.by, self.key, dict(self.headers), self.codec, self.version,
            dict(self.upcasters), self.accept_newer, self.reply, self.transforms,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Topic) else NotImplemented

    def __hash__(self) -> int:
        return hash((Topic, self.name))

    def __repr__(self) -> str:
        kinds = self.kinds[None] if self.by is None else dict(self.kinds)
        return f"Topic({self.name!r}, {_name(kinds)})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Topic is frozen: {name!r} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Topic is frozen: {name!r} cannot be deleted")

    def __copy__(self) -> "Topic[T]":
        return self

    def __deepcopy__(self, memo: object) -> "Topic[T]":
        return self


def _check_codec(topic: str, codec: object, *, raw: bool) -> None:
    if codec is None:
        return
    if raw:
        raise ConfigError(f"the topic {topic!r} is raw: its payloads are the bytes, and no codec writes them")
    if isinstance(codec, type) or not isinstance(codec, Codec):
        hint = " (it is a class: pass an instance)" if isinstance(codec, type) else ""
        raise ConfigError(f"the codec of the topic {topic!r} is no Codec but {codec!r}{hint}")


def _headers_by_class(
    by: str, kinds: Mapping[str | None, Any], headers: Mapping[str, str]
) -> dict[type, SharedHeaders]:
    return {kind: SharedHeaders({**headers, by: value or ""}) for value, kind in kinds.items()}


def _raw_encoder(kind: Any) -> Encode:
    return bare((lambda payload: payload) if kind is bytes else lambda payload: payload.encode())


def _name(kind: Any) -> str:
    if isinstance(kind, type) and typing.get_origin(kind) is None:
        return kind.__qualname__
    try:
        text = str(kind)
    except RecursionError:  # nested so deeply that it has no text; newer Pythons have one, of any length
        return "what it is given"
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def topic_name(topic: "str | Topic[Any]") -> str:
    """The name of a topic that was given by its name or by its contract."""
    return topic.name if isinstance(topic, Topic) else plain(topic)
