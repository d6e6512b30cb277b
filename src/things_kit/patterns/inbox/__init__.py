"""Handling each message once, in one transaction with its mark: see `handling`."""

from things_kit.patterns.inbox.handling import Inbox

__all__ = ["Inbox"]
