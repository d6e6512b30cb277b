"""Files of JSON or YAML, as what JSON can say."""

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final

from things_kit.cli.needs import application_kit
from things_kit.cli.running import WRONG_USE, CommandFailed

MOST: Final = 1_000_000
"""Values of a document in YAML, whose aliases may say the same again and again."""


def document_in(file: Path) -> Any:
    """What a file says. Raises CommandFailed where it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}", WRONG_USE) from error
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{file} is no text in UTF-8", WRONG_USE) from error
    try:
        return json.loads(text)
    except RecursionError:
        raise CommandFailed(f"{file} is nested too deeply", WRONG_USE) from None
    except ValueError:
        return _yaml(file, text)


def _yaml(file: Path, text: str) -> Any:
    with application_kit():
        import yaml  # noqa: PLC0415 - an extra
    try:
        return _plain(yaml.safe_load(text), iter(range(MOST)))
    except RecursionError:
        raise CommandFailed(f"{file} is nested too deeply", WRONG_USE) from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # the last three of its constructors
        why = str(error).partition("\n")[0]
        raise CommandFailed(f"{file} is neither JSON nor YAML: {why}", WRONG_USE) from error


def _plain(value: Any, left: Iterator[int]) -> Any:
    """What YAML makes of dates, bytes and keys, as JSON has it."""
    if next(left, None) is None:
        raise ValueError(f"it has more than {MOST:,} values")
    if isinstance(value, Mapping):
        return {_key(name): _plain(each, left) for name, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each, left) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date) else value


def _key(name: Any) -> str:
    if isinstance(name, str):
        return name
    return name.isoformat() if isinstance(name, date) else json.dumps(name, default=str)
