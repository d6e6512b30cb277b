"""How each RabbitMQ is asked to wait for handlers that take long, as tried on 3.10, 4.0 and 4.3."""

import pytest

pytest.importorskip("pika")

from things_kit.brokers.rabbitmq.renewal import FOREVER, Patience, server_version


@pytest.mark.parametrize("version", [(), (3, 10), (3, 11), (3, 12), (4, 0), (4, 2)])
@pytest.mark.parametrize("kind", ["quorum", "classic", None])
def test_before_4_3_a_group_renews_what_it_holds_and_asks_for_nothing(
    version: tuple[int, ...], kind: str | None
) -> None:
    patience = Patience(version, ephemeral=False, kind=kind)
    assert (patience.renews, patience.of_queue, patience.of_consumer) == (True, {}, {})


@pytest.mark.parametrize("version", [(4, 3), (4, 10), (5, 0)])
@pytest.mark.parametrize(
    ("kind", "asked"), [("quorum", FOREVER), ("classic", {}), ("stream", {}), (None, FOREVER)]
)
def test_from_4_3_on_only_consumers_of_quorum_queues_have_to_ask_and_nothing_is_renewed(
    version: tuple[int, ...], kind: str | None, asked: object
) -> None:
    patience = Patience(version, ephemeral=False, kind=kind)
    assert (patience.renews, patience.of_queue, patience.of_consumer) == (False, {}, asked)


@pytest.mark.parametrize(
    ("version", "renews", "of_queue"),
    [
        ((), True, {}),
        ((3, 11), True, {}),
        ((3, 12), False, FOREVER),
        ((4, 2), False, FOREVER),
        ((4, 3), False, {}),
    ],
)
def test_an_exclusive_queue_asks_where_it_can_and_must(
    version: tuple[int, ...], renews: bool, of_queue: object
) -> None:
    patience = Patience(version, ephemeral=True, kind="quorum")
    assert (patience.renews, patience.of_queue, patience.of_consumer) == (renews, of_queue, {})


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ({"product": "RabbitMQ", "version": "4.3.6"}, (4, 3)),
        ({"product": "RabbitMQ", "version": "3.10.8+deb"}, (3, 10)),
        ({"product": "RabbitMQ", "version": "4.4.0-beta.1"}, (4, 4)),
        ({"product": "RabbitMQ"}, ()),
        ({"product": "LavinMQ", "version": "2.1.0"}, ()),
        ({}, ()),
    ],
)
def test_a_version_is_known_where_it_is_one_of_rabbitmq(said: dict[str, str], version: object) -> None:
    assert server_version(said) == version
