"""Real brokers as processes of this machine, for tests: started in seconds, killed and paused at will.

    from things_kit.testing.servers.kafka import KafkaServer

    with KafkaServer() as server:
        ...                       # server.url
        server.kill()
        server.start()            # the same port, the same data

What a server needs is fetched once and kept in `~/.cache/things-kit`, or where $THINGS_KIT_SERVERS says. Where it
cannot be had, `ServerUnavailable` says what is missing. `Shared` lets all who test on one machine use one server.
"""

from things_kit.testing.servers.process import ServerProcess, ServerUnavailable
from things_kit.testing.servers.shared import Shared

__all__ = ["ServerProcess", "ServerUnavailable", "Shared"]
