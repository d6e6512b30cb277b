"""The pages of docs/reference are written from the code, by `make reference`."""

from collections.abc import Callable
from pathlib import Path

from tests.reference.commands import commands_page
from tests.reference.configuration import configuration_page
from tests.reference.consumer import consumer_page

FOLDER = Path(__file__).parent.parent.parent / "docs" / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "consumer.md": consumer_page,
    "commands.md": commands_page,
    "configuration.md": configuration_page,
}
