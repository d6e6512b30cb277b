"""What topics, groups, keys and ids are called at AWS."""

import pytest

pytest.importorskip("aiobotocore")

from hypothesis import given
from hypothesis import strategies as st

from things_kit import ConfigError
from things_kit.brokers.sqs import names


class TestNames:
    def test_usual_names_stay_as_they_are(self) -> None:
        assert names.topic_name("order_events-2") == "order_events-2"
        assert names.topic_name("orders.fifo") == "orders.fifo"
        assert names.queue_name("orders", "billing") == "orders_-_billing"

    def test_other_characters_are_written_in_digits(self) -> None:
        assert names.topic_name("orders.created") == "orders_-2E-created"
        assert names.topic_name("a.b.fifo") == "a_-2E-b.fifo"

    @given(st.lists(st.text("a_-.2E注", min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
    def test_different_names_stay_different(self, pair: list[str]) -> None:
        assert names.escaped(pair[0]) != names.escaped(pair[1])

    @given(st.lists(st.tuples(st.text("a_-.h", min_size=1, max_size=4), st.text("a_-.h", min_size=1, max_size=4)), min_size=2, max_size=2, unique=True))  # fmt: skip
    def test_no_two_groups_share_a_queue(self, pairs: list[tuple[str, str]]) -> None:
        first, second = (names.queue_name(*pair) for pair in pairs)
        assert first != second

    @pytest.mark.parametrize("topic", ["x" * 300, "x" * 300 + ".fifo", "注" * 60, ".fifo"])
    def test_a_topic_that_sns_cannot_have_is_refused(self, topic: str) -> None:
        with pytest.raises(ConfigError, match="SNS cannot have a topic"):
            names.topic_name(topic)

    def test_a_queue_whose_name_would_be_too_long_ends_in_a_hash(self) -> None:
        queues = {names.queue_name("t" * 70, f"group-{number}") for number in range(3)}
        assert len(queues) == 3
        assert all(len(queue) == names.LONGEST_QUEUE for queue in queues)
        assert all(names.belongs(queue, "t" * 70) for queue in queues)

    def test_a_fifo_topic_has_fifo_queues(self) -> None:
        queue = names.queue_name("orders.fifo", "a.b")
        assert queue == "orders_-_a_-2E-b.fifo"
        assert len(names.queue_name("o" * 100 + ".fifo", "g")) == names.LONGEST_QUEUE

    def test_an_ephemeral_queue_is_told_from_those_of_groups(self) -> None:
        queue = names.ephemeral_queue_name("orders.fifo")
        assert names.is_ephemeral(queue)
        assert names.belongs(queue, "orders.fifo")
        assert not names.is_ephemeral(names.queue_name("orders.fifo", "-e-" + "0" * 32))

    def test_a_queue_of_others_is_not_ours(self) -> None:
        assert not names.belongs("audit", "orders")
        assert not names.belongs("orders-2_-_billing", "orders")

    def test_a_key_is_its_message_group_where_it_can_be(self) -> None:
        assert names.message_group(b"o-1", "id") == "o-1"
        strange = [b"", b"\xff", b"a b", b"x" * 129, b"tk-free-1", "ü".encode()]
        groups = {names.message_group(key, "id") for key in strange}
        assert len(groups) == len(strange)
        assert all(group.startswith("tk-key-") and len(group) <= names.LONGEST_ID for group in groups)

    def test_messages_without_a_key_have_groups_of_their_own(self) -> None:
        assert names.message_group(None, "1") != names.message_group(None, "2")

    def test_an_id_is_the_deduplication_id_where_it_can_be(self) -> None:
        assert names.deduplication_id("o-1", None) == "o-1"
        assert names.deduplication_id("with space", None).startswith("tk-id-")

    def test_what_is_published_again_while_it_is_in_hand_is_no_duplicate(self) -> None:
        again = names.deduplication_id("o-1", "receipt")
        assert again != "o-1"
        assert again == names.deduplication_id("o-1", "receipt")
        assert again != names.deduplication_id("o-1", "another")
