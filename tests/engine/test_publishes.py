"""Names for publishes."""

from datetime import UTC, datetime

import msgspec
import pytest

from things_kit import Message
from things_kit.engine import publishes
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.outbound import prepare
from things_kit.engine.publishes import Named, PublishIds

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def order(value: bytes = b"x", **fields: str) -> Message:
    return Message("orders", value, b"k", fields, timestamp=NOW, id="o-1")


def sent(ids: PublishIds, *messages: Message) -> list[str]:
    with ids.of(messages) as given:
        return given


def lost(ids: PublishIds, *messages: Message) -> list[str]:
    with pytest.raises(ConnectionLost), ids.of(messages) as given:
        raise ConnectionLost("away")
    return given


def test_every_publish_has_an_id_of_its_own() -> None:
    ids = PublishIds()
    assert len({*sent(ids, order(), order()), *sent(ids, order())}) == 3


def test_what_was_lost_has_its_id_again_and_again_until_it_is_confirmed() -> None:
    ids = PublishIds()
    first = lost(ids, order(b"1"), order(b"2"))
    assert lost(ids, order(b"1"), order(b"2")) == first
    assert sent(ids, order(b"1"), order(b"2")) == first
    assert not {*first} & {*sent(ids, order(b"1"), order(b"2"))}


def test_what_was_lost_has_its_id_in_whatever_company_it_is_sent_again() -> None:
    ids = PublishIds()
    first = lost(ids, order(b"1"), order(b"2"))
    again = sent(ids, order(b"0"), order(b"2"), order(b"1"))
    assert again[1:] == [first[1], first[0]]


def test_equal_messages_of_a_lost_publish_keep_ids_of_their_own() -> None:
    ids = PublishIds()
    first = lost(ids, order(), order())
    assert sent(ids, order(), order()) == first


@pytest.mark.parametrize(
    "other",
    [order(b"y"), order(b"x", type="created"), order().replace(topic="sales"), order().replace(key=b"l")],
)
def test_another_message_of_the_same_id_is_another_publish(other: Message) -> None:
    ids = PublishIds()
    assert sent(ids, other) != lost(ids, order())


def test_what_nobody_sends_again_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishes, "MOST", 2)
    ids = PublishIds()
    first = lost(ids, order(b"1"), order(b"2"), order(b"3"))
    assert sent(ids, order(b"2"), order(b"3")) == first[1:]
    assert sent(ids, order(b"1")) != first[:1]


def test_what_a_driver_has_kept_with_its_name_may_be_published_again() -> None:
    (ready,), refused = prepare([Named("orders", b"", publish="relay-1")], None)
    assert type(ready) is Message
    assert not refused


def test_a_publish_that_has_a_name_keeps_it_and_the_others_get_an_id() -> None:
    ids = PublishIds()
    named = Named(**msgspec.structs.asdict(order()), publish="relay-1")
    free = Named(**msgspec.structs.asdict(order()))
    first = lost(ids, named, free)
    assert first[0] == "relay-1"
    assert sent(ids, free, named) == [first[1], "relay-1"]
    assert sent(ids, named, free)[1] != first[1]
