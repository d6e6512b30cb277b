"""An outbox's relay as a part of an app."""

from typing import TYPE_CHECKING

from things_kit.app.app import App
from things_kit.app.lifecycle import Hook, Lifecycle
from things_kit.app.parts import Invoke, caller
from things_kit.engine.broker import Broker
from things_kit.modules.broker_module import GRACE
from things_kit.modules.instruments import Instruments
from things_kit.patterns.bridge import DRAIN

if TYPE_CHECKING:
    from things_kit.patterns.outbox.relay import Relay


class RelayPart(Invoke):
    """Starts and stops a relay with the app; if it breaks, the app ends with that."""

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay
        super().__init__(self._begin, caller(4))

    def _begin(self, lifecycle: Lifecycle, instruments: Instruments | None) -> None:
        relay = self.relay
        relay.instruments = tuple(instruments or ())
        lifecycle.append(
            Hook(
                on_start=relay.start,
                on_stop=relay.stop,
                watch=relay.wait,
                start_timeout=None,  # `publish_timeout` bounds it, while a broker is away
                stop_timeout=DRAIN + GRACE,
                together=True,
                says=lambda: f"relaying {relay.display}",
                tally=lambda: {"relayed": relay.moved},
                label=f"the relay of {', '.join(relay.topics)}",
            )
        )


def relays_of(app: App) -> list["Relay"]:
    """The relays that are parts of an app, in their order."""
    return [placed.part.relay for placed in app if isinstance(placed.part, RelayPart)]


def brokers_of(app: App) -> list[Broker]:
    """All brokers that a running app has open, those of its relays too."""
    opened = [*app.made(Broker), *(broker for relay in relays_of(app) for broker in relay.brokers)]
    return list({id(broker): broker for broker in opened}.values())
