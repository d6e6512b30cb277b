"""`things-kit demo`."""

import os
import shlex
import shutil
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer

from things_kit.brokers.connect import connect
from things_kit.cli.demo.audit import Audit
from things_kit.cli.demo.inventory import inventory
from things_kit.cli.demo.plan import GROUP, Plan
from things_kit.cli.demo.planted import Planted
from things_kit.cli.demo.screen import Screen
from things_kit.cli.demo.verdict import checks
from things_kit.cli.printing import terminal
from things_kit.cli.running import CommandFailed, run
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import ConfigError

MISSED_SOON: Final[dict[str, dict[str, str]]] = {
    "sqlite": {"lease": "2"},
    "postgres": {"lease": "2"},
    "postgresql": {"lease": "2"},
    "kafka": {"session_timeout": "6"},
}
"""Options by which brokers give a killed worker's messages to another within seconds; their own defaults are longer."""


def demo(
    broker: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A broker of yours; without it, an embedded one in a new folder."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=32, help="Worker processes.")] = 3,
    limit: Annotated[
        int | None, typer.Option(min=0, help="At most so many files of the environment.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep the folder and the topics, to look at them.")
    ] = True,
) -> None:
    """Audit this Python environment with worker processes, kill one of them, and lose nothing.

    Every file that the installed distributions recorded is a message, and the workers verify them. Some faults
    are planted, in a folder of the demo's own. It fails if its own counts do not add up.
    """
    run(lambda: _demo(broker, workers, limit, keep=keep))


async def _demo(given: str | None, workers: int, limit: int | None, *, keep: bool) -> None:
    if given is not None and BrokerURL.parse(given).scheme == "memory":
        raise ConfigError(
            "memory:// lives in one process, and the demo's workers are processes: give it another broker"
        )
    folder = Path(tempfile.mkdtemp(prefix="things-kit-"))
    try:
        await _audited(given, workers, limit, folder, keep=keep)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def impatient(url: str) -> str:
    """The URL, with a dead process missed soon where it does not say when itself: an audience is waiting."""
    parsed = BrokerURL.parse(url)
    for name, value in MISSED_SOON.get(parsed.scheme, {}).items():
        if name not in parsed.query:
            url += f"{'&' if '?' in url else '?'}{name}={value}"
    return url


async def _audited(given: str | None, workers: int, limit: int | None, folder: Path, *, keep: bool) -> None:
    database = f"sqlite:///{quote(str(folder / 'demo.db'))}"
    plan = Plan(impatient(given or database), f"audit-{uuid.uuid4().hex[:6]}")
    shown = database if given is None else BrokerURL.parse(given).display
    screen = Screen(terminal())
    entries = inventory()[:limit]
    async with connect(plan.url) as broker:
        audit = Audit(broker, plan, entries, Planted(folder / "planted"), folder)
        distributions = len({entry.distribution for entry in entries})
        screen.title(len(entries), distributions, len(audit.planted.entries), shown)
        async with screen.following(audit):
            await audit.run(workers, screen.say)
        results = checks(audit)
        screen.page(audit, results)
        if not keep:
            for topic in (plan.topic, plan.reports, plan.dead_letters):
                await broker.remove(topic)
    if keep:
        note = "" if given in {None, shown} else "(with the login and the options of your URL)"
        screen.next(_commands(shown, plan), note)
    if not all(check.ok for check in results):
        raise CommandFailed("the demo's counts do not add up: see what is marked above")


def _commands(url: str, plan: Plan) -> list[tuple[str, str]]:
    program, place = _program(), shlex.quote(url)
    return [
        (f"{program} dlq list {place} {plan.dead_letters}", "what failed, and why"),
        (
            f"{program} dlq replay {place} {plan.dead_letters} --error-type FileMissing",
            "give them another chance",
        ),
        (f"{program} lag {place} {plan.topic} {GROUP}", "which now wait for a worker"),
    ]


def _program() -> str:
    """How to call this command line from the same shell."""
    found = shutil.which("things-kit")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "things-kit"
    script = Path(sys.executable).parent / "things-kit"
    called = script if script.exists() else None
    if called is None:
        return f"{shlex.quote(_short(Path(sys.executable)))} -m things_kit.cli"
    return shlex.quote(_short(called))


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
