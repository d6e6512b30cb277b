"""Why a broker cannot be reached, in words."""

import errno
import logging
import socket

import pytest

from tests.engine.scenario import virtual
from things_kit import BrokerUnavailable
from things_kit.engine.addresses import Address
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.reasons import reason_of, why_unreachable
from things_kit.testing.stub import StubDriver, broker_of


def _caused(text: str, cause: Exception) -> Exception:
    error = ConnectionLost(text)
    error.__cause__ = RuntimeError("in between")
    error.__cause__.__context__ = cause
    return error


def _resolving(error: OSError) -> OSError:
    """As aiohttp says it: an error with the resolver's code for its number, raised for the resolver's."""
    error.__cause__ = socket.gaierror(-2, "x")
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionLost("away"), "away"),
        (_caused("no server", OSError(errno.ECONNREFUSED, "x")), "no server (connection refused)"),
        (_caused("no server", socket.gaierror(-2, "x")), "no server (unknown host)"),
        (_caused("no server", _resolving(OSError(-2, "x"))), "no server (unknown host)"),
        (_caused("Connection refused", OSError(errno.ECONNREFUSED, "x")), "Connection refused"),
    ],
)
def test_the_systems_word_is_added_where_it_is_missing(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


async def test_a_connection_of_our_own_finds_out_what_a_client_hides() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert await why_unreachable(Address("127.0.0.1", port)) == f"127.0.0.1:{port}: connection refused"
        closed.listen()
        assert await why_unreachable(Address("127.0.0.1", port)) is None


@virtual
async def test_a_broker_that_is_away_at_the_start_is_reported_soon_and_every_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = StubDriver()
    driver.fail("open", *[_caused("no server", OSError(errno.ECONNREFUSED, "x"))] * 100)
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnavailable, match="connection refused"):
        await broker_of(driver).open()
    said = [record.getMessage() for record in caplog.records if "is not there" in record.getMessage()]
    assert said[0] == (
        "stub://stub is not there: no server (connection refused); waiting for it for another 28 s"
    )
    assert len(said) == 3
