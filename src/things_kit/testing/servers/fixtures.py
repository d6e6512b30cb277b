"""Fixtures of servers, for test modules that name what they need.

`kafka = shared(KafkaServer, "kafka")` is one for all tests, also those of other processes; with
`own_kafka = own(KafkaServer)` a module has one of its own, which it may kill.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from things_kit.testing.servers.process import ServerProcess, ServerUnavailable
from things_kit.testing.servers.shared import Shared

ServerT = TypeVar("ServerT", bound=ServerProcess)


def shared(kind: Callable[[Path, list[int] | None], ServerT], name: str) -> Any:
    """A fixture of the server that all share; it is ended by the last."""

    @pytest.fixture(scope="session")
    def server() -> Iterator[ServerT]:
        users = Shared(kind, name)
        try:
            running = users.acquire()
        except ServerUnavailable as reason:
            unavailable(reason)
        try:
            yield running
        finally:
            users.release()

    return server


def own(kind: Callable[[], ServerT]) -> Any:
    """A fixture of a server of the module's own."""

    @pytest.fixture(scope="module")
    def server() -> Iterator[ServerT]:
        running = kind()
        try:
            try:
                running.start()
            except ServerUnavailable as reason:
                unavailable(reason)
            yield running
        finally:
            running.terminate()

    return server


def unavailable(reason: ServerUnavailable) -> None:
    """Skip the test, or fail it where CI=true: on a laptop tests may do without a server, there they may not."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))
