"""What the services say to each other, and all that they share."""

from dataclasses import dataclass

from things_kit import Topic


@dataclass
class Order:
    """What a customer buys."""

    id: str
    customer: str
    cents: int


orders = Topic("orders", Order, key="customer")
"""The orders of one customer are billed in the order in which they were placed."""
