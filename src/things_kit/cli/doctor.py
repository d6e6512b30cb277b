"""`things-kit doctor`: what is wrong with a broker, or with the installation, and what to do about it."""

import platform
import re
import sqlite3
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, Final

import msgspec
import typer
from rich.text import Text

from things_kit.brokers.connect import connect, schemes
from things_kit.cli.looking import creating_nothing
from things_kit.cli.options import JsonFlag
from things_kit.cli.printing import as_json, safe, say, terminal, without_login
from things_kit.cli.running import FAILED, WRONG_USE, CommandFailed, run
from things_kit.engine.diagnosis import diagnose
from things_kit.engine.facts import Finding, Level, Question

COLOURS: Final[dict[Level, str]] = {"ok": "green", "warning": "yellow", "error": "bold red"}
EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
NAME: Final = re.compile(r"[\w.-]+")


def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]", help="The broker; without it, the installation is looked at.", show_default=False
        ),
    ] = None,
    *,
    topic: Annotated[str | None, typer.Option(metavar="TOPIC", help="A topic that is consumed.")] = None,
    group: Annotated[str | None, typer.Option(metavar="GROUP", help="The group that consumes it.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Handler calls at once, over all processes.")
    ] = None,
    retry_span: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="From the first to the last attempt at a message, at most."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Look for what would lose or hold up messages, and say what to do about it.

    Exit code 1 if there is an error among the findings.
    """
    question = Question(topic, group, concurrency, retry_span)
    run(lambda: _doctor(url, question, json=json))


async def _doctor(url: str | None, question: Question, *, json: bool) -> None:
    if url is None:
        if question != Question():
            raise CommandFailed("--topic and the like ask about a broker: give its URL", WRONG_USE)
        findings = installation()
    else:
        question.check()
        broker = connect(creating_nothing(url))
        try:
            findings = await diagnose(broker, question, declares=connect(url).url.engine.declare)
        finally:
            await broker.close()
    for finding in findings:
        if json:
            say(as_json(msgspec.to_builtins(finding)))
        else:
            terminal().print(_line(finding), soft_wrap=True)
    if any(finding.level == "error" for finding in findings):
        raise CommandFailed(code=FAILED)


def _line(finding: Finding) -> Text:
    text = Text()
    text.append(f"{finding.level:<7}", COLOURS[finding.level]).append("  ")
    text.append(_shown(finding.subject), "bold").append(f": {_shown(finding.what)}")
    if finding.remedy:
        text.append(f"\n{'':9}{_shown(finding.remedy)}", "dim")
    return text


def _shown(text: str) -> str:
    return safe(without_login(text))


# --- the installation


def installation() -> list[Finding]:
    """What is installed of that which things-kit can use. Nothing that is missing is wrong."""
    findings = [
        Finding("ok", "Python", f"{platform.python_version()} on {platform.system()}."),
        _ourselves(),
        Finding("ok", "sqlite://", f"SQLite {sqlite3.sqlite_version}, a part of Python."),
    ]
    findings += [_extra(extra, needed) for extra, needed in _extras().items()]
    known = ", ".join(f"{scheme}://" for scheme in schemes())
    return [*findings, Finding("ok", "brokers", f"Known URLs are {known}.")]


def _ourselves() -> Finding:
    try:
        return Finding("ok", "things-kit", f"Version {version('things-kit')}.")
    except PackageNotFoundError:
        remedy = 'Install it with `pip install "things-kit[cli]"`.'
        return Finding("warning", "things-kit", "It runs, but is not installed.", remedy)


def _extras() -> dict[str, list[str]]:
    """What each extra needs, by the metadata of the package: `kafka` needs `confluent-kafka`."""
    extras: dict[str, list[str]] = {}
    try:
        requirements = requires("things-kit") or []
    except PackageNotFoundError:
        return extras
    for requirement in requirements:
        extra, name = EXTRA.search(requirement), NAME.match(requirement)
        if extra and name:
            extras.setdefault(extra[1], []).append(name[0])
    return extras


def _extra(extra: str, needed: list[str]) -> Finding:
    subject = f"extra {extra}"
    found, missing = [], []
    for name in needed:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = f'If you need it: `pip install "things-kit[{extra}]"`.'
        return Finding("ok", subject, f"Not installed: {', '.join(missing)}.", remedy)
    return Finding("ok", subject, f"Installed: {', '.join(found)}.")
