"""How large a message is, as brokers' limits are meant."""

from things_kit.messaging.message import Message


def message_bytes(message: Message) -> int:
    """The bytes of value, key and headers, which count towards the largest that a broker takes."""
    headers = sum(header_bytes(name, text) for name, text in message.headers.items())
    return len(message.value) + len(message.key or b"") + headers


def header_bytes(name: str, text: str) -> int:
    """The bytes of a header's name and value in UTF-8."""
    return len(name.encode()) + len(text.encode())
