"""Patterns above the engine, each a handler or a function of its own."""

from things_kit.patterns.inbox import Inbox
from things_kit.patterns.outbox import Outbox

__all__ = ["Inbox", "Outbox"]
