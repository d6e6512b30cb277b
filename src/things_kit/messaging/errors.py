"""The errors a user of the kit meets. A driver's own exception is always the `__cause__`."""

from collections.abc import Mapping


class ThingsKitError(Exception):
    """Any failure that this library reports."""


class ConfigError(ThingsKitError):
    """Something was asked for in a way that cannot be understood: a URL, an option, an argument, a setting."""


class BrokerUnavailable(ThingsKitError):
    """The broker is not there, or stayed away for longer than `publish_timeout`."""


class PublishError(ThingsKitError):
    """The broker, or the kit before it, refused messages.

    `failures` maps the index of each refused message of a batch to its own error; all others are confirmed.
    It is empty where a single message was refused.
    """

    def __init__(self, message: str, failures: Mapping[int, Exception] | None = None) -> None:
        super().__init__(message)
        self.failures: dict[int, Exception] = dict(failures or {})


class MessageTooLarge(PublishError):
    """A message is larger than this broker takes."""


class NobodyListens(PublishError):
    """No group has this topic yet, and the broker would drop the message. `?unrouted=drop` lets it."""


class ClosedError(ThingsKitError):
    """The broker or producer was closed before this call."""


class DecodeError(ThingsKitError):
    """A value is not what the handler's type says. Trying again cannot help: it goes to the dead letter."""


class RemoteError(ThingsKitError):
    """The handler of a request failed for good: its message went to the dead letter, or was discarded.

    Attributes:
        error_type: The qualified name of what the handler raised.
        error: Its text.
    """

    def __init__(self, error_type: str, error: str) -> None:
        super().__init__(f"{error_type}: {error}" if error else error_type)
        self.error_type = error_type
        self.error = error

    def __reduce__(self) -> tuple[type["RemoteError"], tuple[str, str]]:
        return RemoteError, (self.error_type, self.error)


class UnroutableError(ThingsKitError):
    """A router has no handler for the type of a message. Trying again cannot help: it goes to the dead letter."""


class UnsupportedError(ThingsKitError):
    """This broker cannot do what was asked. Raised at start, never later."""
