"""What the URL may say."""

import msgspec


class MemoryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of `memory://`."""

    max_message_bytes: int = 16 * 1024 * 1024
    retain: float = 3600.0

    def __post_init__(self) -> None:
        if self.max_message_bytes < 1 or self.retain < 0:
            raise ValueError("max_message_bytes must be from 1, and retain from 0 seconds")
