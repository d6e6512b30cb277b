"""What a `sqlite://` URL may say."""

# ruff: noqa: ASYNC240 - a test may block for the moment that a small file takes
from pathlib import Path

import pytest

from tests.brokers.sqlite.given import Open, driver
from things_kit.brokers.sqlite.driver import SQLiteDriver
from things_kit.engine.url import BrokerURL
from things_kit.messaging.errors import (
    ConfigError,
)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://events.db", 'write "sqlite:///events.db"'),
        ("sqlite://", "sqlite:///events.db"),
        ("sqlite:///", "sqlite:///events.db"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///a.db?lease=0", "lease"),
        ("sqlite:///a.db?retain=-1", "retain"),
        ("sqlite:///a.db?max_message_bytes=0", "max_message_bytes"),
        ("sqlite:///a.db?synchronous=off", "synchronous"),
        ("sqlite:///a.db?cache=1", "unknown option 'cache'"),
        ("sqlite:///a%00b", "NUL"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_a_sentence(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SQLiteDriver.from_url(BrokerURL.parse(url))


async def test_three_slashes_are_relative_and_four_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connect: Open
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = SQLiteDriver.from_url(BrokerURL.parse("sqlite:///here%20now.db"))
    await relative.open()
    await relative.close()
    await connect(path=tmp_path / "there.db")
    assert {path.name for path in tmp_path.iterdir()} >= {"here now.db", "there.db"}


async def test_capabilities_follow_the_options(file: Path) -> None:
    capabilities = driver(file, "?lease=2.5&max_message_bytes=1000").capabilities
    assert capabilities.lease == 2.5
    assert capabilities.max_message_bytes == 1000
    assert capabilities.emulated == ()
