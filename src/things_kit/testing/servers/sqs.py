"""SQS and SNS on this machine: ministack, an emulator of AWS."""

import http.client
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self
from urllib.parse import quote, urlsplit

from things_kit.testing.servers.containers import InContainer, RunningServer, address, container_or_process
from things_kit.testing.servers.process import ServerProcess, cached, run

VERSION: Final = "1.5.33"

IMAGE: Final = f"ministackorg/ministack:{VERSION}"

REGION: Final = "us-east-1"

PORT: Final = 4566
"""Where it listens in a container."""

ACCOUNT: Final = "000000000000"
"""The number of the account that everything in it belongs to."""


class SQSServer(ServerProcess):
    """SQS and SNS on 127.0.0.1, in memory: what is there survives a polite stop, but no kill.

    Any credentials will do. It looks for messages ten times a second while somebody waits for them. Needs an
    installer of Python packages that can reach its index, once: the emulator wants versions of its own, and so has an
    environment of its own.
    """

    name: ClassVar[str] = "sqs"

    def __init__(
        self,
        folder: Path | None = None,
        ports: Sequence[int] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, ports)
        self._settings = dict(settings or {})

    @property
    def endpoint(self) -> str:
        """What AWS's own clients take (`endpoint_url`)."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def url(self) -> str:
        """What `connect` takes."""
        return sqs_url(self.endpoint)

    def prepare(self) -> None:
        """Install it where it is missing."""
        _installation()

    def command(self) -> Sequence[str | Path]:
        """The emulator, in the foreground."""
        return [_installation() / "bin" / "ministack"]

    def environment(self) -> Mapping[str, str]:
        """Where it listens, and where it keeps what it has when it is asked to stop."""
        return {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.ports[0]),
            "MINISTACK_HOST": "127.0.0.1",
            "SERVICES": "sqs,sns",
            "LOG_LEVEL": "WARNING",
            "PERSIST_STATE": "1",
            "STATE_DIR": str(self.folder / "state"),
            "TMPDIR": str(self.folder),
            **self._settings,
        }

    def check(self) -> None:
        """ListQueues has an answer."""
        ask_for_queues(self.endpoint)


def ask_for_queues(endpoint: str) -> None:
    """Whether SQS answers. Raises OSError or ValueError if it does not."""
    host = urlsplit(endpoint).netloc
    asked = http.client.HTTPConnection(host, timeout=5)
    headers = {"X-Amz-Target": "AmazonSQS.ListQueues", "Content-Type": "application/x-amz-json-1.0"}
    try:
        asked.request("POST", "/", json.dumps({"MaxResults": 1}), headers)
        answer = asked.getresponse()
        answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"it speaks no HTTP: {error}") from error
    finally:
        asked.close()
    if answer.status != http.client.OK:
        raise ValueError(f"ListQueues answered with {answer.status}")


def sqs_url(endpoint: str) -> str:
    """What `connect` takes for an endpoint."""
    return f"sqs://{REGION}?endpoint={quote(endpoint, safe=':/')}"


class RunningSQS(RunningServer, Protocol):
    """An SQS and SNS that somebody started for a test."""

    @property
    def endpoint(self) -> str:
        """What AWS's own clients take (`endpoint_url`)."""


class SQSInContainer(InContainer):
    """The same emulator as Docker runs it, through testcontainers."""

    @property
    def endpoint(self) -> str:
        """What AWS's own clients take (`endpoint_url`)."""
        return f"http://{address(self._container, PORT)}"

    def wait(self, patience: float = 60.0) -> Self:
        """Until it answers. Raises OSError or ValueError if it does not in time, and then it is ended."""
        ends = time.monotonic() + patience
        while True:
            try:
                ask_for_queues(self.endpoint)
            except (OSError, ValueError):
                if time.monotonic() > ends:
                    self.terminate()
                    raise
                time.sleep(0.1)
            else:
                return self


def start_sqs_container() -> RunningSQS:
    """SQS and SNS of the caller's own: in a container where Docker and testcontainers are, else as a local process.

    Raises:
        ServerUnavailable: There is neither Docker nor what the process needs.
    """
    return container_or_process(
        "core.container",
        lambda module: module.DockerContainer(IMAGE).with_exposed_ports(PORT).with_env("SERVICES", "sqs,sns"),
        lambda container: sqs_url(f"http://{address(container, PORT)}"),
        SQSServer,
        lambda container, url: SQSInContainer(container, url).wait(),
    )


def _installation() -> Path:
    """An environment of the emulator's own."""
    return cached(f"ministack-{VERSION}", _install)


def _install(folder: Path) -> None:
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", f"ministack=={VERSION}")
