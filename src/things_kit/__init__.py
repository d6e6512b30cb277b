"""Things-Kit: write a handler once, run it on any broker with the same guarantees."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from things_kit.app.lifecycle import Hook as Hook
    from things_kit.app.lifecycle import Lifecycle as Lifecycle
    from things_kit.app.parts import invoke as invoke
    from things_kit.app.parts import provide as provide
    from things_kit.app.wiring import WiringError as WiringError
    from things_kit.brokers.connect import connect as connect
    from things_kit.engine.broker import Broker as Broker
    from things_kit.engine.driver import Capabilities as Capabilities
    from things_kit.messaging.consumer import Consumer as Consumer
    from things_kit.messaging.errors import BrokerUnavailable as BrokerUnavailable
    from things_kit.messaging.errors import ClosedError as ClosedError
    from things_kit.messaging.errors import ConfigError as ConfigError
    from things_kit.messaging.errors import DecodeError as DecodeError
    from things_kit.messaging.errors import MessageTooLarge as MessageTooLarge
    from things_kit.messaging.errors import NobodyListens as NobodyListens
    from things_kit.messaging.errors import PublishError as PublishError
    from things_kit.messaging.errors import RemoteError as RemoteError
    from things_kit.messaging.errors import ThingsKitError as ThingsKitError
    from things_kit.messaging.errors import UnroutableError as UnroutableError
    from things_kit.messaging.errors import UnsupportedError as UnsupportedError
    from things_kit.messaging.handler import Handle as Handle
    from things_kit.messaging.handler import Handler as Handler
    from things_kit.messaging.handler import Middleware as Middleware
    from things_kit.messaging.health import ConsumerHealth as ConsumerHealth
    from things_kit.messaging.health import Health as Health
    from things_kit.messaging.message import Message as Message
    from things_kit.messaging.outcomes import BatchError as BatchError
    from things_kit.messaging.outcomes import Reject as Reject
    from things_kit.messaging.outcomes import Retry as Retry
    from things_kit.messaging.policy import DISCARD as DISCARD
    from things_kit.messaging.policy import Batch as Batch
    from things_kit.messaging.policy import RetryPolicy as RetryPolicy
    from things_kit.messaging.producer import Producer as Producer
    from things_kit.messaging.schedule import Schedule as Schedule
    from things_kit.messaging.topic import Topic as Topic
    from things_kit.modules.application import App as App
    from things_kit.modules.application import module as module
    from things_kit.patterns.router import MessageRouter as MessageRouter

_HOMES = {
    "things_kit.app.lifecycle": ("Hook", "Lifecycle"),
    "things_kit.app.parts": ("invoke", "provide"),
    "things_kit.app.wiring": ("WiringError",),
    "things_kit.brokers.connect": ("connect",),
    "things_kit.engine.broker": ("Broker",),
    "things_kit.engine.driver": ("Capabilities",),
    "things_kit.messaging.consumer": ("Consumer",),
    "things_kit.messaging.errors": (
        "BrokerUnavailable", "ClosedError", "ConfigError", "DecodeError", "MessageTooLarge", "NobodyListens",
        "PublishError", "RemoteError", "ThingsKitError", "UnroutableError", "UnsupportedError",
    ),
    "things_kit.messaging.handler": ("Handle", "Handler", "Middleware"),
    "things_kit.messaging.health": ("ConsumerHealth", "Health"),
    "things_kit.messaging.message": ("Message",),
    "things_kit.messaging.outcomes": ("BatchError", "Reject", "Retry"),
    "things_kit.messaging.policy": ("DISCARD", "Batch", "RetryPolicy"),
    "things_kit.messaging.producer": ("Producer",),
    "things_kit.messaging.schedule": ("Schedule",),
    "things_kit.messaging.topic": ("Topic",),
    "things_kit.modules.application": ("App", "module"),
    "things_kit.patterns.router": ("MessageRouter",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605 - the same names as above, for type checkers
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: asyncio alone costs more than all of ours."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
