"""What a bridge publishes has a name that lasts, but for what is to be kept twice."""

from pathlib import Path

from things_kit import Message, connect
from things_kit.patterns.publish_names import PublishNames


def message(offset: int | None, topic: str = "orders", identity: str = "o-1") -> Message:
    return Message(topic, b"", offset=offset, id=identity)


async def opened(url: str) -> PublishNames:
    async with connect(url) as broker:
        names = PublishNames(broker)
        await names.open()
        return names


async def test_a_name_is_that_of_source_topic_position_and_id(tmp_path: Path) -> None:
    one, other = f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/other.db"
    names = await opened(one)
    name = names.of(message(1))
    assert name == (await opened(one)).of(message(1))
    others = [
        names.of(message(2)),
        names.of(message(1, "sales")),
        names.of(message(1, identity="o-2")),
        (await opened(other)).of(message(1)),
        (await opened(f"{one}?topic_prefix=test-")).of(message(1)),
    ]
    assert len({name, *others}) == 6
    assert None not in others


async def test_what_has_no_position_or_a_source_without_a_name_has_none(tmp_path: Path) -> None:
    assert (await opened(f"sqlite:///{tmp_path}/one.db")).of(message(None)) is None
    assert (await opened("memory://")).of(message(1)) is None


async def test_what_overtook_a_refused_message_is_not_taken_for_a_repeat(tmp_path: Path) -> None:
    names = await opened(f"sqlite:///{tmp_path}/one.db")
    names.change(message(1))
    assert names.of(message(1)) is None
    assert names.of(message(2))
