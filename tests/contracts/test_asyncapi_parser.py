"""Documents as AsyncAPI's own parser reads them: in `make matrix`, which installs it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.test_asyncapi import MADE, document_of

PARSER = shutil.which("asyncapi-parser")

pytestmark = pytest.mark.skipif(PARSER is None, reason="asyncapi-parser is not installed: make matrix has it")


def parsed(documents: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What it says of each."""
    files = [folder / f"{number}.json" for number in range(len(documents))]
    for file, document in zip(files, documents, strict=True):
        file.write_text(json.dumps(document))
    done = subprocess.run(
        [str(PARSER), *map(str, files)], capture_output=True, text=True, timeout=100, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_parser_finds_all_that_a_document_says_and_no_fault(tmp_path: Path) -> None:
    documents = [document_of(made) for made in MADE]
    for document, found in zip(documents, parsed(documents, tmp_path), strict=True):
        assert found["errors"] == []
        assert found["addresses"] == [each["address"] for each in document["channels"].values()]
        names = {message["name"] for message in document["components"]["messages"].values()}
        assert set(found["messages"]) == names


def test_the_parser_would_say_what_is_wrong(tmp_path: Path) -> None:
    wrong = document_of(MADE[0])
    del wrong["info"]
    (found,) = parsed([wrong], tmp_path)
    assert "info" in found["errors"][0]
