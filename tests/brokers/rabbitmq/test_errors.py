"""What RabbitMQ says, and whether it ends what runs or is waited out."""

import pytest

pytest.importorskip("pika")

from things_kit import ConfigError
from things_kit.brokers.rabbitmq.amqp.channel import Closed
from things_kit.brokers.rabbitmq.driver import RabbitMQDriver
from things_kit.brokers.rabbitmq.errors import ERRORS, OPENING, lost, missing
from things_kit.brokers.rabbitmq.link import Link
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.url import BrokerURL

closed = Closed


@pytest.mark.parametrize(
    "error",
    [
        closed(404, "NOT_FOUND - no queue 'g.orders' in vhost '/'"),
        closed(404, "NOT_FOUND - no exchange 'orders' in vhost '/'"),
        closed(403, "ACCESS_REFUSED - access to queue 'g.orders' in vhost '/' refused for user 'alice'"),
        closed(406, "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'g.orders' in vhost '/'"),
        closed(406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'o' in vhost '/': received 'a' but current is 'b'"),
    ],
)  # fmt: skip
def test_what_only_a_person_can_mend_is_said_at_once(error: Exception) -> None:
    assert isinstance(ERRORS.translate(error, "asking"), ConfigError)


@pytest.mark.parametrize(
    "error",
    [
        closed(404, "NOT_FOUND - home node 'rabbit@a' of durable queue 'g.orders' in vhost '/' is down or inaccessible"),
        closed(404, "NOT_FOUND - queue 'g.orders' in vhost '/' process is stopped by supervisor"),
        closed(403, "ACCESS_REFUSED - queue 'g.orders' in vhost '/' in exclusive use"),
        closed(405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'g.orders'"),
        closed(541, "INTERNAL_ERROR"),
        ConnectionResetError("cut"),
        OverflowError("a connection has 2047 channels at most"),
        TimeoutError(),
    ],
)  # fmt: skip
def test_what_may_pass_is_an_outage_and_no_news_for_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(ERRORS.translate(error, "asking"), ConnectionLost)
    assert not missing(error)
    assert not caplog.records


@pytest.mark.parametrize(
    "said",
    [
        "NOT_ALLOWED - access to vhost '/' refused for user 'alice': connection limit (2) is reached",
        "INTERNAL_ERROR - access to vhost '/' refused for user 'alice': vhost '/' is down",
    ],
)
def test_a_virtual_host_that_lets_nobody_in_for_now_is_waited_for(said: str) -> None:
    error = Closed(530, said)
    assert isinstance(OPENING.translate(error, "amqp://localhost/"), ConnectionLost)


@pytest.mark.parametrize(
    "said",
    [
        "NOT_ALLOWED - vhost /nowhere not found",
        "NOT_ALLOWED - access to vhost '/' refused for user 'alice'",
    ],
)
def test_a_virtual_host_that_lets_this_user_never_in_is_said_at_once(said: str) -> None:
    error = Closed(530, said)
    assert isinstance(OPENING.translate(error, "amqp://localhost/"), ConfigError)


def test_a_wrong_login_is_said_at_once_and_one_that_was_cut_short_is_not() -> None:
    wrong = Closed(403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN")
    assert isinstance(OPENING.translate(wrong, "amqp://localhost/"), ConfigError)
    assert isinstance(OPENING.translate(ConnectionResetError("it hung up"), "a"), ConnectionLost)


def test_what_ends_a_channel_is_an_outage_whatever_it_is() -> None:
    refused = closed(403, "ACCESS_REFUSED - access to queue 'g.orders' in vhost '/' refused for user 'alice'")
    answer = lost(refused)
    assert (type(answer), answer.__cause__) == (ConnectionLost, refused)
    assert "access to queue" in str(answer)


async def test_a_question_over_which_the_client_fails_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_: Link) -> None:
        raise AssertionError("our own")

    monkeypatch.setattr(Link, "channel", fails)
    driver = RabbitMQDriver.from_url(BrokerURL.parse("amqp://localhost/"))
    with pytest.raises(ConnectionLost, match="our own"):
        await driver.declare("orders", [])
    assert "AssertionError" in caplog.text
