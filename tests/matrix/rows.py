"""What the suite is run against: a server, a Python, or versions of client libraries."""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from tests.matrix.apart import temporary
from tests.matrix.suite import NEWEST, bind, by_loader, mounted, programs, suite, with_package
from things_kit.testing.servers.kafka import KafkaServer
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.postgres import PostgresServer, server_user
from things_kit.testing.servers.process import ServerProcess, ServerUnavailable, cached, run
from things_kit.testing.servers.pubsub import PubSubEmulator
from things_kit.testing.servers.rabbitmq import RabbitMQServer
from things_kit.testing.servers.redis import RedisServer
from things_kit.testing.servers.servicebus import ServiceBusServer
from things_kit.testing.servers.sqs import SQSServer

ROOT: Final = Path(__file__).parents[2]

PARSER: Final = "3.6.6"
"""The version of `@asyncapi/parser`."""

EXTRAS: Final = "app,cli,kafka,nats,ops,otel,postgres,pubsub,rabbitmq,redis,reload,s3,servicebus,sqs"
"""What `make test` has installed beside the group of the developers."""

EMBEDDED: Final = ("tests/engine", "tests/messaging", "tests/codecs", "tests/app", "tests/conformance/test_memory.py", "tests/conformance/test_sqlite.py")  # fmt: skip
"""What needs no server."""

PYTHONS: Final[Mapping[str, Sequence[str]]] = {
    "3.12": (),
    "3.13": (),
    "3.14": (),
    "3.15": ("kafka", "s3", "sqs"),
}
"""Those beside the lowest, which runs this; each with the extras that are left out, as not all that they need has a wheel for it yet."""

CLIENTS: Final[Mapping[str, type[ServerProcess]]] = {
    "kafka": KafkaServer,
    "rabbitmq": RabbitMQServer,
    "nats": NATSServer,
    "redis": RedisServer,
    "sqs": SQSServer,
    "pubsub": PubSubEmulator,
    "servicebus": ServiceBusServer,
    "postgres": PostgresServer,
}
"""The servers whose clients are run in their lowest versions."""


EVERY_ON_NATS: Final = (
    "tests/patterns/test_every_processes.py"
    "::test_of_five_processes_one_is_frozen_and_one_killed_and_no_planned_time_is_lost[nats]"
)
"""Which needs a server from 2.12 on."""

ON_UVLOOP: Final = ("memory", "sqlite", "redis", "rabbitmq", "nats", "postgres")
"""The embedded brokers, and those whose clients work on the event loop and not in threads of their own."""


class Ready(msgspec.Struct, frozen=True):
    """What a row is run with.

    Attributes:
        version: What was found, as it says itself.
        python: Which Python runs pytest, as a command.
        path: What goes to the front of the search path.
    """

    version: str
    python: Sequence[str] = (sys.executable,)
    path: Path | None = None


class Row(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes:
        name: By which it is asked for.
        what: In words.
        prepare: Gets it ready, in the folder of the row.
        tests: Which tests are run.
        environment: What is set meanwhile.
    """

    name: str
    what: str
    prepare: Callable[[Path], Ready]
    tests: Sequence[str]
    environment: Mapping[str, str] = {}


# --- servers


def _of_broker(name: str) -> tuple[str, str]:
    return f"tests/conformance/test_{name}.py", f"tests/brokers/{name}"


def _redis(place: Path) -> Ready:
    command = by_loader(suite(), "usr/bin/redis-server")
    return Ready(_version("Redis", command), path=programs(place / "bin", {"redis-server": command}))


def _valkey(place: Path) -> Ready:
    command = by_loader(suite(), "usr/bin/valkey-server")
    return Ready(_version("Valkey", command), path=programs(place / "bin", {"redis-server": command}))


def _nats(place: Path) -> Ready:
    program = str(suite() / "usr/sbin/nats-server")
    return Ready(_version("NATS", program), path=programs(place / "bin", {"nats-server": program}))


def _rabbitmq(place: Path) -> Ready:
    folder = suite()
    mounted(folder, temporary(place))
    inside = f"chroot {folder}"
    path = programs(
        place / "bin",
        {
            "rabbitmq-server": f"{inside} /usr/lib/rabbitmq/bin/rabbitmq-server",
            "rabbitmqctl": f"{inside} /usr/lib/rabbitmq/bin/rabbitmqctl",
            "epmd": f"{inside} /usr/bin/epmd",
        },
    )
    package = run("chroot", folder, "dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server")
    version, _, _ = package.strip().partition("-")
    return Ready(f"RabbitMQ {version}", path=path)


def _postgres(release: str, major: int) -> Callable[[Path], Ready]:
    """In a namespace of its own, as it refuses to run as root, and nobody else may change the root of what he sees."""

    def prepare(place: Path) -> Ready:
        folder = place / "root"  # under a name that every user may follow: a cache is its owner's alone
        bind(with_package(release, f"postgresql-{major}"), folder)
        mounted(folder, temporary(place))
        run("mount", "-t", "tmpfs", "tmpfs", folder / "dev/shm")
        _known(folder, server_user().pw_uid)
        enter = f"unshare --user --map-current-user --root {folder} --wd /"
        inside = f"/usr/lib/postgresql/{major}/bin"
        names = ("postgres", "initdb", "createdb", "dropdb", "pg_basebackup")
        path = programs(place / "bin", {name: f"{enter} {inside}/{name}" for name in names})
        return Ready(_version("PostgreSQL", str(path / "postgres")), path=path)

    return prepare


def _known(folder: Path, uid: int) -> None:
    """Have a name for this user, who is another one in the folder, or nobody."""
    users = folder / "etc/passwd"
    text = users.read_text()
    if not any(line.split(":")[2] == str(uid) for line in text.splitlines()):
        users.write_text(f"{text}server:x:{uid}:{uid}::/:/bin/sh\n")


# --- Pythons and clients


def _python(version: str, without: Sequence[str]) -> Callable[[Path], Ready]:
    """A Python that the system has, or the suite; without the extras that it cannot have yet."""

    def prepare(place: Path) -> Ready:
        extras = ",".join(extra for extra in EXTRAS.split(",") if extra not in without)
        for found in Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"):
            return _in_venv(version, str(found), extras)
        return _in_suite(version, extras, place)

    return prepare


def _every_python(place: Path) -> Ready:
    """All of them side by side, as programs that the tests find."""
    pythons = {version: _python(version, without)(place) for version, without in PYTHONS.items()}
    commands = {f"matrix-python-{version}": " ".join(ready.python) for version, ready in pythons.items()}
    versions = [sys.version.split()[0], *(ready.version.split()[-1] for ready in pythons.values())]
    return Ready(", ".join(versions), path=programs(place / "bin", commands))


def _lacking(extras: Sequence[str]) -> str:
    named = ", ".join(f"`{extra}`" for extra in extras)
    return f", without the extras {named}" if extras else ""


def _in_venv(version: str, python: str, extras: str) -> Ready:
    def build(folder: Path) -> None:
        run(python, "-m", "venv", folder)
        _install((str(folder / "bin/python"),), extras)

    command = (str(cached(f"matrix-python-{version}-{_dependencies()}", build) / "bin/python"),)
    return Ready(_said(*command, "--version"), command)


def _in_suite(version: str, extras: str, place: Path) -> Ready:
    folder = suite()
    mounted(folder, temporary(place), ROOT)
    for name in ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        ours, theirs = Path("/", name), folder / name
        if ours.exists() and not (theirs.exists() and theirs.read_bytes() == ours.read_bytes()):
            theirs.write_bytes(ours.read_bytes())
    venv = f"/opt/{version}-{_dependencies()}"
    # chroot begins in the root of the other system, where pytest would find no settings
    command = ("chroot", str(folder), "env", f"--chdir={ROOT}", f"{venv}/bin/python")

    def build(_: Path) -> None:
        run("chroot", folder, f"/usr/bin/python{version}", "-m", "venv", "--clear", venv)
        _install(command, extras)

    cached(f"matrix-python-{version}-{_dependencies()}", build)
    return Ready(_said(*command, "--version"), command)


def _install(python: Sequence[str], extras: str) -> None:
    pip = (*python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--upgrade", "pip>=25.1")
    # Pyright runs on Node, which another system need not have; nor has it a compiler for the aiohttp that a tool is bound to
    wanted = (f"{ROOT}[{extras}]", "--group", f"{ROOT / 'pyproject.toml'}:dev", "pyright[nodejs]")
    run(*pip, *wanted, env={**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"})
    run(*python, "-m", "pip", "uninstall", "--quiet", "-y", "things-kit")  # it is run from its sources


def _dependencies() -> str:
    """Another word for each change of what is to be installed."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = said["project"]
    named = [project["dependencies"], project["optional-dependencies"], said["dependency-groups"]]
    return hashlib.sha256(repr(named).encode()).hexdigest()[:8]


def _uvloop(place: Path) -> Ready:
    for name in ON_UVLOOP:
        if name in CLIENTS:
            _fetch(CLIENTS[name], place / f"fetched-{name}")
    return Ready(version("uvloop"))


def _lowest(place: Path) -> Ready:
    """The lowest versions that pyproject.toml allows, as uv finds them."""

    def build(folder: Path) -> None:
        run(sys.executable, "-m", "venv", folder)
        python = str(folder / "bin/python")
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        uv = (python, "-m", "uv", "pip", "install", "--quiet", "--python", python)
        run(*pip, "uv", "pip>=25.1")
        run(*uv, "--resolution", "lowest-direct", f"{ROOT}[{EXTRAS},testing]")
        run(*pip, "pytest-timeout", "pytest-xdist", "sqlalchemy[asyncio]", "aiosqlite", "httpx")
        run(python, "-m", "pip", "uninstall", "--quiet", "-y", "things-kit")

    for kind in CLIENTS.values():
        _fetch(kind, place / f"fetched-{kind.name}")
    command = (str(cached(f"matrix-lowest-{_dependencies()}", build) / "bin/python"),)
    return Ready(_versions(command), command)


def _fetch(kind: type[ServerProcess], folder: Path) -> None:
    """Have what a server needs while there is a network: the tests of a row have none."""
    server = kind(folder)
    folder.mkdir()
    with contextlib.suppress(ServerUnavailable):  # then its tests are skipped, and say why
        server.prepare()
        server.command()
    shutil.rmtree(folder)


def _versions(python: Sequence[str]) -> str:
    clients = (
        "confluent-kafka",
        "pika",
        "nats-py",
        "redis",
        "aiobotocore",
        "google-cloud-pubsub",
        "azure-servicebus",
        "asyncpg",
    )
    program = (
        f"from importlib.metadata import version; print(*(n + ' ' + version(n) for n in {clients}), sep=', ')"
    )
    return _said(*python, "-c", program)


def _version(product: str, command: str) -> str:
    found = re.search(r"(?:v=?|\) )(\d[\d.]*)", _said(*command.split(), "--version"))
    return f"{product} {found[1] if found else '?'}"


def _said(*command: str) -> str:
    return run(*command).strip().splitlines()[0]


# --- AsyncAPI


def _asyncapi_parser(place: Path) -> Ready:
    """AsyncAPI's own parser, from the package registry of Node."""
    package = f"@asyncapi/parser@{PARSER}"

    def build(folder: Path) -> None:
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, package)

    modules = cached(f"matrix-asyncapi-parser-{PARSER}", build) / "node_modules"
    script = ROOT / "tests/matrix/asyncapi_parser.js"
    command = f"env NODE_PATH={modules} node {script}"
    return Ready(
        f"{package}, Node {_said('node', '--version')}",
        path=programs(place / "bin", {"asyncapi-parser": command}),
    )


ROWS: Final = (
    Row("redis-8", "Redis 8", _redis, _of_broker("redis")),
    Row("valkey-9", "Valkey 9", _valkey, _of_broker("redis")),
    Row("nats-2.15", "NATS 2.15", _nats, [*_of_broker("nats"), EVERY_ON_NATS]),
    Row("rabbitmq-4.3", "RabbitMQ 4.3", _rabbitmq, _of_broker("rabbitmq")),
    Row("postgres-13", "PostgreSQL 13", _postgres("bullseye", 13), _of_broker("postgres")),
    Row("postgres-17", "PostgreSQL 17", _postgres("trixie", 17), _of_broker("postgres")),
    Row("postgres-18", "PostgreSQL 18", _postgres(NEWEST, 18), _of_broker("postgres")),
    *(
        Row(f"python-{version}", f"Python {version}{_lacking(without)}", _python(version, without), EMBEDDED)
        for version, without in PYTHONS.items()
    ),
    Row("histories", "1,000 simulated histories, the same on each Python", _every_python, ["tests/testing/simulation/test_each_python.py"]),
    Row("uvloop", "uvloop", _uvloop, [f"tests/conformance/test_{name}.py" for name in ON_UVLOOP], {"PYTEST_ADDOPTS": "-p tests.uvloop"}),
    Row("asyncapi", "AsyncAPI's own parser, which reads our documents", _asyncapi_parser, ["tests/contracts/test_asyncapi_parser.py"]),
    Row("lowest", "the lowest clients that `pyproject.toml` allows", _lowest, [f"tests/conformance/test_{name}.py" for name in CLIENTS]),
)  # fmt: skip
