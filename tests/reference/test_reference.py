"""The reference says what the code does."""

import re

import pytest
import typer

from tests.reference import FOLDER, PAGES
from tests.reference.commands import commands
from things_kit.cli.app import app


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_reference_is_as_the_code_is(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "run `make reference`"


def test_every_argument_of_every_command_says_what_it_is() -> None:
    silent = [
        f"{words} {each.name}"
        for words, command in commands(typer.main.get_command(app))
        for each in command.params
        if not each.hidden and not each.help
    ]
    assert not silent


@pytest.mark.parametrize("name", PAGES)
def test_no_table_has_a_bar_between_backticks_where_its_backslash_would_be_seen(name: str) -> None:
    assert not re.search(r"`[^`\n]*\\\|[^`\n]*`", PAGES[name]())
