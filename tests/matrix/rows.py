"""What the suite is run against: a server, a Python, or versions of client libraries."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.matrix.suite import NEWEST, by_loader, mounted, programs, suite, visible, with_package
from things_kit.testing.servers.postgres import server_user
from things_kit.testing.servers.process import cached, run

ROOT: Final = Path(__file__).parents[2]

PARSER: Final = "3.6.6"
"""The version of `@asyncapi/parser`."""

EXTRAS: Final = "app,cli,kafka,nats,ops,otel,pubsub,rabbitmq,redis,reload,servicebus,sqs"

EMBEDDED: Final = ("tests/engine", "tests/messaging", "tests/codecs", "tests/app", "tests/conformance/test_memory.py", "tests/conformance/test_sqlite.py")  # fmt: skip
"""What needs no server."""

CLIENTS: Final = ("kafka", "rabbitmq", "nats", "redis", "sqs", "pubsub", "servicebus")


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
        prepare: Gets it ready.
        tests: Which tests are run.
        environment: What is set meanwhile.
    """

    name: str
    what: str
    prepare: Callable[[], Ready]
    tests: Sequence[str]
    environment: Mapping[str, str] = {}


# --- servers


def _of_broker(name: str) -> tuple[str, str]:
    return f"tests/conformance/test_{name}.py", f"tests/brokers/{name}"


def _redis() -> Ready:
    command = by_loader(suite(), "usr/bin/redis-server")
    return Ready(_version("Redis", command), path=programs(_folder("redis"), {"redis-server": command}))


def _valkey() -> Ready:
    command = by_loader(suite(), "usr/bin/valkey-server")
    return Ready(_version("Valkey", command), path=programs(_folder("valkey"), {"redis-server": command}))


def _nats() -> Ready:
    program = str(suite() / "usr/sbin/nats-server")
    return Ready(_version("NATS", program), path=programs(_folder("nats"), {"nats-server": program}))


def _rabbitmq() -> Ready:
    folder = suite()
    mounted(folder, Path(tempfile.gettempdir()))
    inside = f"chroot {folder}"
    path = programs(
        _folder("rabbitmq"),
        {
            "rabbitmq-server": f"{inside} /usr/lib/rabbitmq/bin/rabbitmq-server",
            "rabbitmqctl": f"{inside} /usr/lib/rabbitmq/bin/rabbitmqctl",
            "epmd": f"{inside} /usr/bin/epmd",
        },
    )
    package = run("chroot", folder, "dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server")
    version, _, _ = package.strip().partition("-")
    return Ready(f"RabbitMQ {version}", path=path)


def _postgres(release: str, major: int) -> Callable[[], Ready]:
    """In a namespace of its own, as it refuses to run as root, and nobody else may change the root of what he sees."""

    def prepare() -> Ready:
        inside = f"/usr/lib/postgresql/{major}/bin"
        row = _folder(f"postgres-{major}")
        folder = visible(with_package(release, f"postgresql-{major}"), row.with_name(f"{row.name}-root"))
        mounted(folder, Path(tempfile.gettempdir()), Path("/dev/shm"))
        _known(folder, server_user().pw_uid)
        enter = f"unshare --user --map-current-user --root {folder} --wd /"
        names = ("postgres", "initdb", "createdb", "dropdb", "pg_basebackup")
        path = programs(row, {name: f"{enter} {inside}/{name}" for name in names})
        return Ready(_version("PostgreSQL", str(path / "postgres")), path=path)

    return prepare


def _known(folder: Path, uid: int) -> None:
    """Have a name for this user, who is another one in the folder, or nobody."""
    users = folder / "etc/passwd"
    text = users.read_text()
    if not any(line.split(":")[2] == str(uid) for line in text.splitlines()):
        users.write_text(f"{text}server:x:{uid}:{uid}::/:/bin/sh\n")


# --- Pythons and clients


def _python(version: str) -> Callable[[], Ready]:
    """A Python that the system has, or the suite."""

    def prepare() -> Ready:
        for found in Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"):
            return _in_venv(f"python-{version}", str(found))
        return _in_suite(version)

    return prepare


def _in_venv(name: str, python: str, *options: str) -> Ready:
    def build(folder: Path) -> None:
        run(python, "-m", "venv", folder)
        _install((str(folder / "bin/python"),), *options)

    command = (str(cached(f"matrix-{name}", build) / "bin/python"),)
    return Ready(_said(*command, "--version"), command)


def _in_suite(version: str) -> Ready:
    folder = suite()
    mounted(folder, Path(tempfile.gettempdir()), ROOT)
    for name in ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            (folder / name).write_bytes(Path("/", name).read_bytes())
    # chroot begins in the root of the other system, where pytest would find no settings
    command = ("chroot", str(folder), "env", f"--chdir={ROOT}", f"/opt/{version}/bin/python")

    def build(_: Path) -> None:
        run("chroot", folder, f"/usr/bin/python{version}", "-m", "venv", f"/opt/{version}")
        _install(command)

    cached(f"matrix-python-{version}", build)
    return Ready(_said(*command, "--version"), command)


def _install(python: Sequence[str], *options: str) -> None:
    pip = (*python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--upgrade", "pip>=25.1")
    run(*pip, *options, f"{ROOT}[{EXTRAS}]", "--group", f"{ROOT / 'pyproject.toml'}:dev")
    run(*python, "-m", "pip", "uninstall", "--quiet", "-y", "things-kit")  # it is run from its sources


def _lowest() -> Ready:
    """The lowest versions that pyproject.toml allows, as uv finds them."""

    def build(folder: Path) -> None:
        run(sys.executable, "-m", "venv", folder)
        python = folder / "bin/python"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv", "pip>=25.1")
        with_extras = f"{ROOT}[{EXTRAS},testing]"
        run(
            python,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--resolution",
            "lowest-direct",
            with_extras,
        )
        run(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "pytest-timeout",
            "pytest-xdist",
            "sqlalchemy[asyncio]",
            "aiosqlite",
            "httpx",
        )
        run(python, "-m", "pip", "uninstall", "--quiet", "-y", "things-kit")

    command = (str(cached("matrix-lowest", build) / "bin/python"),)
    return Ready(_versions(command), command)


def _versions(python: Sequence[str]) -> str:
    clients = (
        "confluent-kafka",
        "pika",
        "nats-py",
        "redis",
        "aiobotocore",
        "google-cloud-pubsub",
        "azure-servicebus",
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


def _folder(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"things-kit-matrix-{os.getuid()}" / name


# --- AsyncAPI


def _asyncapi_parser() -> Ready:
    """AsyncAPI's own parser, from the package registry of Node."""
    package = f"@asyncapi/parser@{PARSER}"

    def build(folder: Path) -> None:
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, package)

    modules = cached(f"matrix-asyncapi-parser-{PARSER}", build) / "node_modules"
    script = ROOT / "tests/matrix/asyncapi_parser.js"
    command = f"env NODE_PATH={modules} node {script}"
    return Ready(
        f"{package}, Node {_said('node', '--version')}",
        path=programs(_folder("asyncapi"), {"asyncapi-parser": command}),
    )


ROWS: Final = (
    Row("redis-8", "Redis 8", _redis, _of_broker("redis")),
    Row("valkey-9", "Valkey 9", _valkey, _of_broker("redis")),
    Row("nats-2.15", "NATS 2.15", _nats, _of_broker("nats")),
    Row("rabbitmq-4.3", "RabbitMQ 4.3", _rabbitmq, _of_broker("rabbitmq")),
    Row("postgres-13", "PostgreSQL 13", _postgres("bullseye", 13), _of_broker("postgres")),
    Row("postgres-17", "PostgreSQL 17", _postgres("trixie", 17), _of_broker("postgres")),
    Row("postgres-18", "PostgreSQL 18", _postgres(NEWEST, 18), _of_broker("postgres")),
    Row("python-3.12", "Python 3.12", _python("3.12"), EMBEDDED),
    Row("python-3.13", "Python 3.13", _python("3.13"), EMBEDDED),
    Row("python-3.14", "Python 3.14", _python("3.14"), EMBEDDED),
    Row("python-3.15", "Python 3.15", _python("3.15"), EMBEDDED),
    Row("asyncapi", "AsyncAPI's own parser, which reads our documents", _asyncapi_parser, ["tests/contracts/test_asyncapi_parser.py"]),
    Row("lowest", "the lowest clients that `pyproject.toml` allows", _lowest, [f"tests/conformance/test_{name}.py" for name in CLIENTS]),
)  # fmt: skip
