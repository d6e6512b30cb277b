"""What a new project consists of: templates, filled in and written to a folder."""

import keyword
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Final

from things_kit.cli.new.places import BROKERS, in_cluster, in_compose, replicas, storage
from things_kit.cli.running import WRONG_USE, CommandFailed

SUFFIX: Final = ".tmpl"
"""Templates end so, or tools would take them for code of this package."""


def package_of(folder: Path) -> str:
    """The package of the project in this folder."""
    return folder.name.replace("-", "_")


def write(folder: Path, broker: str) -> list[Path]:
    """Write a project into a folder, which is made; its name is the folder's. Returns the files.

    Raises:
        CommandFailed: The name is none for a package, the broker is unknown, or the folder holds something.
    """
    name, place = folder.name, BROKERS.get(broker)
    package = package_of(folder)
    if (
        not re.fullmatch(r"[a-z]([a-z0-9_-]*[a-z0-9])?", name)
        or keyword.iskeyword(package)
        or package == "tests"
    ):
        raise CommandFailed(
            f"{name!r} is no name for a project: expected lower-case letters, digits and dashes, such as shop",
            WRONG_USE,
        )
    if place is None:
        raise CommandFailed(f"unknown broker {broker!r}; known are {', '.join(BROKERS)}", WRONG_USE)
    extras = ",".join(sorted({"app", "cli", "ops", *([place.extra] if place.extra else [])}))
    volumes, claim = storage(broker, name)
    words = {
        "name": name,
        "package": package,
        "broker": broker,
        "modules": ", ".join(sorted(["config", "logging", "ops", broker])),
        "address": place.address,
        "url": place.url,
        "extras": extras,
        "service": place.service,
        "compose": in_compose(broker),
        "replicas": replicas(broker),
        "cluster": in_cluster(broker),
        "volumes": volumes,
        "claim": claim,
        "owned": "/srv /data" if broker == "sqlite" else "/srv",
    }
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CommandFailed(f"{folder} exists and is not an empty folder: expected a new one")
        return _written(files(__package__) / "template", folder, words)
    except OSError as error:
        raise CommandFailed(f"{folder} cannot be written: {error.strerror}") from error


def _written(template: Traversable, folder: Path, words: dict[str, str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for source in sorted(template.iterdir(), key=lambda source: source.name):
        target = folder / source.name.replace("PACKAGE", words["package"]).removesuffix(SUFFIX)
        if source.is_dir():
            written += _written(source, target, words)
        else:
            target.write_text(
                Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8"
            )
            written.append(target)
    return written
