"""Names of topics and groups as resources of Pub/Sub."""

import pytest

pytest.importorskip("google.pubsub_v1")

from hypothesis import given
from hypothesis import strategies as st

from things_kit import ConfigError
from things_kit.brokers.pubsub.names import subscription_id, topic_id, topic_of


def test_names_that_the_service_has_are_left_as_they_are() -> None:
    for name in ("orders", "a.b-c_d~e", "Orders-dlq", "x" * 255):
        assert topic_id(name) == name
    assert subscription_id("orders", "billing") == "orders+billing"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a+b", "a%2Bb"),
        ("7up", "tk~7up"),
        ("ab", "tk~ab"),
        ("google", "tk~google"),
        ("Goog", "tk~Goog"),
        ("tk~7up", "tk~tk~7up"),
        ("..", "tk~.."),
        ("ü", "tk~%C3%BC"),
    ],
)
def test_other_names_are_encoded(name: str, expected: str) -> None:
    assert topic_id(name) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_every_name_is_an_id_of_its_own(name: str) -> None:
    assert topic_of(topic_id(name)) == name


short_names = st.text(st.sampled_from("ab+%~/."), min_size=1, max_size=4)


@given(short_names, short_names, short_names, short_names)
def test_no_two_groups_share_a_subscription(topic: str, group: str, topic_2: str, group_2: str) -> None:
    same = (topic, group) == (topic_2, group_2)
    assert (subscription_id(topic, group) == subscription_id(topic_2, group_2)) is same


def test_names_that_are_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match="255 are the most"):
        topic_id("x" * 256)
    with pytest.raises(ConfigError, match="255 are the most"):
        subscription_id("x" * 200, "y" * 100)
