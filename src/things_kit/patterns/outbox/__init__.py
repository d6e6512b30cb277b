"""Publishing in the caller's own transaction: see `publishing`."""

from things_kit.patterns.outbox.publishing import Outbox

__all__ = ["Outbox"]
