"""Names that are members of an Enum: each stands for its value, wherever it is given."""

from enum import Enum
from typing import Any

from tests.engine.scenario import Recorder, until, virtual
from things_kit import Broker, Message, Reject, Topic, connect
from things_kit.testing.stub import StubDriver, broker_of


class Names(str, Enum):  # noqa: UP042 - as it is often written; its text is not its value
    TOPIC = "orders"
    GROUP = "billing"
    DEAD = "dead-orders"
    HEADER = "type"
    TYPE = "order.created"
    ID = "o-1"


def types_of(message: Message) -> set[type]:
    texts = [message.topic, message.id, *message.headers, *message.headers.values()]
    return {type(text) for text in texts}


ENUMS = Message(Names.TOPIC, b"1", headers={Names.HEADER: Names.TYPE}, id=Names.ID)


@virtual
async def test_what_is_published_and_consumed_has_plain_names() -> None:
    driver = StubDriver()
    recorder = Recorder(lambda _: _rejected())
    async with broker_of(driver) as broker:
        await broker.declare(Names.TOPIC, groups=[Names.GROUP])
        await broker.producer().publish(ENUMS)
        arguments: dict[str, Any] = {"group": Names.GROUP, "dead_letter": Names.DEAD}
        async with broker.consumer(Names.TOPIC, handler=recorder, **arguments):
            await until(lambda: driver.topics.get("dead-orders"))
        assert await broker.lag(Names.TOPIC, group=Names.GROUP) == 0
        assert [type(name) for pair in driver.groups for name in pair] == [str] * 4
    assert {type(topic) for topic in driver.topics} == {str}
    (_, seen), (dead,) = recorder.seen[0], driver.topics["dead-orders"]
    assert types_of(seen) == types_of(dead) == {str}
    assert (seen.topic, seen.id, seen.headers) == ("orders", "o-1", {"type": "order.created"})


async def _rejected() -> None:
    raise Reject


async def test_a_topic_of_an_enum_has_a_plain_name() -> None:
    assert str(Topic(Names.TOPIC, bytes).name) == "orders"
    assert str(Topic("t", bytes).renamed(Names.TOPIC).name) == "orders"


async def test_a_message_to_come_is_named_and_cancelled_by_an_enum(tmp_path: Any) -> None:
    async def scheduled(broker: Broker) -> list[type]:
        return [type(each.schedule_id) for each in await broker.schedules(Names.TOPIC)]

    for url in ("memory://", f"sqlite:///{tmp_path}/events.db"):
        async with connect(url) as broker:
            await broker.producer().publish(ENUMS, after=1000, schedule_id=Names.ID)
            assert await scheduled(broker) == [str]
            assert await broker.cancel(Names.TOPIC, Names.ID)
