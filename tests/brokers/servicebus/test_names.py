"""What topics, groups and sessions are called."""

import pytest

from things_kit.brokers.servicebus import names


@pytest.mark.parametrize("name", ["orders", "Orders.v2", "a", "a_b-c.d", "x" * 50])
def test_a_name_that_service_bus_takes_is_taken_as_it_is(name: str) -> None:
    assert names.entity_of(name) == names.subscription_of(name) == name


def test_names_that_cannot_be_are_replaced_each_by_another() -> None:
    hostile = [
        "a/b",
        "a-b ",
        "a b",
        "ä",
        "-a",
        "a-",
        "a\nb",
        "a/subscriptions/b",
        "$default",
        "*",
        "x" * 300,
        "x" * 301,
    ]
    replaced = [names.subscription_of(name) for name in hostile]
    assert len(set(replaced)) == len(hostile)
    for name in replaced:
        assert len(name) <= 50
        assert name.replace(".", "a").replace("-", "a").isalnum()
        assert names.subscription_of(name) != name, "it would be taken for the one that it stands for"


def test_a_session_is_the_key_where_it_can_be() -> None:
    assert names.session_of(b"o-1", 0) == "o-1"
    keys = [b"", b"\xff", b"x" * 129, b"tk-free-1", b"a\nb"]
    sessions = {names.session_of(key, 0) for key in keys}
    assert len(sessions) == len(keys)
    assert all(session.startswith("tk-") and len(session) <= 128 for session in sessions)
    assert len({names.session_of(None, number) for number in range(100)}) == names.FREE_SESSIONS
