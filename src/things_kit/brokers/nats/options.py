"""What a `nats://` URL says, and which names JetStream can have."""

import functools
import hashlib
import ssl
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from things_kit.engine.addresses import addresses
from things_kit.engine.tls import TLSOptions, check_tls, tls_context
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

PORT: Final = 4222

SEED: Final = b"SU"
"""How the seed of a user's nkey begins. A file with a JWT begins with dashes."""


class NATSOptions(TLSOptions, frozen=True):
    """The options of a `nats://` or `tls://` URL, beside those of TLS.

    Attributes:
        stream: The stream in which all topics of this URL are; it is created if it is missing, and given the subjects
            that it lacks. By default each topic has the stream that already takes its subject, or one of its own.
        replicas: Copies of streams that are created.
        storage: Where streams that are created keep their messages: a "memory" stream is lost with its server.
        max_age: Seconds for which such streams keep messages, handled or not; 0 for ever.
        max_bytes: Bytes that such a stream may hold; -1 for no bound.
        discard: What a full stream does: "old" deletes the oldest, handled or not, "new" refuses to take more.
        duplicate_window: Seconds for which such streams remember what was published, and keep it only once.
        deduplicate: What is kept once: each "publish", however often it had to be sent, or each "id" of a message.
        lease: Seconds after which what a dead process held is handed to another (the consumer's `ack_wait`).
        max_message_bytes: The largest value, key and headers together; by default what the server takes.
        domain: The JetStream domain, for leaf nodes.
        credentials: File with a user's JWT and nkey seed, or with the seed alone.
    """

    stream: str | None = None
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    max_age: float = 0.0
    max_bytes: int = -1
    discard: Literal["old", "new"] = "old"
    duplicate_window: float = 120.0
    deduplicate: Literal["publish", "id"] = "publish"
    lease: float = 10.0
    max_message_bytes: int | None = None
    domain: str | None = None
    credentials: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= 5:
            raise ValueError("replicas must be from 1 to 5")
        if not 0 <= self.max_age < 1e9 or not (self.max_bytes == -1 or self.max_bytes > 0):
            raise ValueError("max_age must be from 0 seconds, and max_bytes -1 or more than 0")
        if not 0.1 <= self.duplicate_window < 1e9 or not 0.1 <= self.lease <= 86_400:
            raise ValueError("duplicate_window and lease must be from 0.1 seconds, and lease at most a day")
        if self.max_age and self.duplicate_window > self.max_age:
            raise ValueError("duplicate_window must not be longer than max_age")
        if self.max_message_bytes is not None and self.max_message_bytes < 1:
            raise ValueError("max_message_bytes must be more than 0")
        for name in ("stream", "domain"):
            text = getattr(self, name)
            if text is not None and (not text or escaped(text, also="=") != text):
                raise ValueError(f"{name} must be a name of letters, digits, '-', '_' and '='")


class Settings(msgspec.Struct, frozen=True):
    """A URL, understood."""

    url: BrokerURL
    options: NATSOptions
    servers: Sequence[str]

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """Raises ConfigError if it is no URL of NATS, an option is unknown, or a file cannot be read."""
        servers = [str(each) for each in addresses(url, PORT)]
        options = url.options(NATSOptions)
        check_tls(url, options)
        return cls(url, options, servers)

    @property
    def encrypted(self) -> bool:
        """Whether nothing may be said in the clear."""
        return self.url.scheme == "tls"

    @property
    def api(self) -> str:
        """What the subjects of JetStream's API begin with."""
        return f"$JS.{self.options.domain}.API" if self.options.domain else "$JS.API"

    def tls(self) -> ssl.SSLContext | None:
        """What TLS needs; None where nothing was said of it. Raises ConfigError for files that cannot be used."""
        options = self.options
        if not (self.encrypted or options.ca or options.cert):
            return None
        return tls_context(self.url, options)

    def credentials(self) -> dict[str, str]:
        """How nats-py is told of the file. Raises ConfigError if it or the package nkeys is missing."""
        path = self.options.credentials
        if path is None:
            return {}
        if find_spec("nkeys") is None:
            raise ConfigError(
                f"{self.url.display}: the option 'credentials' needs a package that is not installed: pip install nkeys"
            )
        try:
            begins = Path(path).read_bytes()[:2]
        except OSError as error:
            raise ConfigError(
                f"{self.url.display}: the file of credentials cannot be read: {error}"
            ) from error
        return {"nkeys_seed" if begins == SEED else "user_credentials": path}


# --- names

LONGEST: Final = 160
"""Letters of a name that are kept where it is too long for a file's name; the rest is a digest."""

_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_RESERVED: Final = ("$", "_INBOX.", "_R_.", "tk-suspects.", "tk-later.")


def escaped(name: str, also: str = "") -> str:
    """A name as streams and consumers can have it: no two names give the same.

    Letters, digits, '-' and '_' stay; of all else the bytes are `=XX`. What is too long ends in `=h` and a digest,
    which no escape can look like.
    """
    text = "".join(
        letter if letter in _PLAIN or letter in also else "".join(f"={byte:02X}" for byte in letter.encode())
        for letter in name
    )
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}=h{hashlib.sha256(name.encode()).hexdigest()[:40]}"
    return text


def later_subjects(stream: str, topic: str | None = None) -> str:
    """The subjects on which a stream keeps messages for later, those of one topic or of all."""
    return f"tk-later.{stream}.>" if topic is None else f"tk-later.{stream}.{escaped(topic)}.>"


def durable_names(stream: str, topic: str, group: str) -> tuple[str, ...]:
    """What the consumer of a topic's group may be called, the last being what a new one is called.

    In a stream that has the topic's own name that is the group. Any other stream may have several topics, and their
    groups of one name must be several consumers: such a name has the topic behind `=t`, which no escape looks like. There,
    too, a consumer may have the group's name alone, if somebody created it so.
    """
    plain = escaped(group)
    if stream == escaped(topic):
        return (plain,)
    joint = f"{plain}=t{escaped(topic)}"
    if len(joint) > LONGEST:
        digest = hashlib.sha256(f"{len(group)} {group} {topic}".encode()).hexdigest()
        joint = f"{joint[:LONGEST]}=k{digest[:40]}"
    return plain, joint


def check_topic(topic: str) -> None:
    """Raises ConfigError for what cannot be one subject of NATS."""
    if not _can_be_subject(topic):
        raise ConfigError(
            f"NATS cannot have a topic {topic!r}: a subject is words with single dots between them, up to 1000 bytes, "
            "without '*', '>', whitespace and control characters, and does not begin with '$' or '_INBOX.'"
        )


@functools.lru_cache(1000)  # it is asked at each publish
def _can_be_subject(topic: str) -> bool:
    return (
        all(topic.split("."))
        and not {"*", ">"} & set(topic)
        and not any(letter.isspace() or not (letter.isprintable() or ord(letter) > 0x9F) for letter in topic)
        and not topic.startswith(_RESERVED)
        and len(topic.encode()) <= 1000
    )
