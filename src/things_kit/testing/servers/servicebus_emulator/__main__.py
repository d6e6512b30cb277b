"""Serve until killed; at SIGUSR1 all connections are broken."""

import argparse
import signal
from pathlib import Path

from proton.reactor import Container

from things_kit.testing.servers.servicebus_emulator.amqp import Door
from things_kit.testing.servers.servicebus_emulator.entities import Namespace
from things_kit.testing.servers.servicebus_emulator.journal import Journal
from things_kit.testing.servers.servicebus_emulator.management import Management, restore, serve
from things_kit.testing.servers.servicebus_emulator.wire import Login


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("admin", type=int)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--login", default="Root:c2VjcmV0", help="NAME:KEY that is let in")
    options = parser.parse_args()
    login = Login(*options.login.split(":", 1))
    namespace = Namespace(Journal(options.journal))
    door = Door(namespace, options.port, login)
    management = Management(namespace, door)
    restore(namespace, management)
    serve(management, door, options.admin, login)
    signal.signal(signal.SIGUSR1, lambda *_: door.calls.put(door.cut))
    Container(door).run()


if __name__ == "__main__":
    main()
