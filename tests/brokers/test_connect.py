from importlib import metadata
from typing import Any, ClassVar, Self

import pytest

from things_kit import ConfigError, connect
from things_kit.brokers import connect as module
from things_kit.brokers.connect import BUILT_IN, BuiltIn, schemes
from things_kit.brokers.memory import MemoryDriver
from things_kit.engine.url import BrokerURL


class MarbleDriver(MemoryDriver):
    """What another package would bring."""

    urls: ClassVar[list[BrokerURL]] = []

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        cls.urls.append(url)
        return super().from_url(BrokerURL.parse("memory://"))


class EntryPoint:
    def load(self) -> type[MarbleDriver]:
        return MarbleDriver


class EntryPoints(list[EntryPoint]):
    names = frozenset({"marble"})


@pytest.fixture
def marble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of another package is registered for marble://."""

    def entry_points(*, group: str, name: str | None = None) -> EntryPoints:
        assert group == "things_kit.brokers"
        return EntryPoints([EntryPoint()] if name in {None, "marble"} else [])

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    if hasattr(module, "entry_points"):
        monkeypatch.setattr(module, "entry_points", entry_points)


@pytest.mark.usefixtures("marble")
async def test_a_driver_of_another_package_is_found_by_its_scheme() -> None:
    async with connect("marble://quarry/deep?x=1") as broker:
        assert repr(broker) == "<Broker marble://quarry/deep>"
    assert MarbleDriver.urls[-1].query == {"x": "1"}


@pytest.mark.usefixtures("marble")
def test_an_unknown_scheme_names_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown broker paper://; known are .*marble://, memory://"):
        connect("paper://x")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("rabbitmq", "amqp"),
        ("kafak", "kafka"),
        ("postgresql+asyncpg", "postgresql"),
        ("sqlite3", "sqlite"),
        ("service-bus", "servicebus"),
    ],
)
def test_an_unknown_scheme_says_what_was_meant(written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown broker .*://; did you mean {meant}://\\? known are"):
        connect(f"{written}://x")


def test_the_schemes_of_ours_are_known() -> None:
    assert {"memory", "sqlite"} <= set(schemes())


def test_a_missing_client_library_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = BuiltIn("no_such_client_library", "Driver", extra="marble")
    monkeypatch.setitem(BUILT_IN, "marble", missing)
    with pytest.raises(ConfigError) as raised:
        connect("marble://x")
    assert str(raised.value) == (
        "marble:// needs the package 'no_such_client_library', which is not installed: "
        'pip install "things-kit[marble]"'
    )


def test_a_module_of_ours_that_is_missing_is_a_fault_and_not_an_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        BUILT_IN, "marble", BuiltIn("things_kit.brokers.no_such_module", "Driver", extra="marble")
    )
    with pytest.raises(ModuleNotFoundError):
        connect("marble://x")


def test_connecting_does_nothing_yet() -> None:
    assert repr(connect("memory://name")) == "<Broker memory://name>"


@pytest.mark.parametrize("url", ["memory://a,b", "memory://me@name", "memory://name/path"])
def test_a_memory_url_has_a_name_at_most(url: str) -> None:
    with pytest.raises(ConfigError, match="expected memory:// or memory://name"):
        connect(url)


@pytest.mark.parametrize(
    "url",
    [
        "memory://me:SECRET@name",
        "paper://me:SECRET@host",
        "memory://?key=SECRET",
        "memory://me:SECRET@name?x=1",
    ],
)
def test_no_password_is_in_an_error(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        connect(url)
    error: Any = raised.value
    while error is not None:
        assert "SECRET" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
