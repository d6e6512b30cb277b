"""`memory://`: the broker in this process, and the reference for what a driver is.

    memory://               a broker of its own
    memory://name           all that are opened under this name in this process share one

Options: `max_message_bytes` (16 MiB), and `retain` (3600 s): for so long a message is kept for groups yet to come,
after all groups there are have acknowledged it. One event loop at a time may use a name.
"""

from things_kit.brokers.memory.driver import MemoryDriver as MemoryDriver
from things_kit.brokers.memory.options import MemoryOptions as MemoryOptions
