"""What is the memory driver's own; what it shares with all others is in the conformance suite."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from things_kit import ConfigError, Message, connect
from things_kit.brokers.memory import MemoryDriver
from things_kit.engine.collected import collect
from things_kit.engine.driver import ConnectionLost, Release, Subscription
from things_kit.engine.url import BrokerURL
from things_kit.testing import run_virtual


def driver(query: str = "") -> MemoryDriver:
    return MemoryDriver.from_url(BrokerURL.parse(f"memory://{query}"))


def message(value: str, key: str | None = None, **fields: Any) -> Message:
    return Message("t", value.encode(), None if key is None else key.encode(), id=value, **fields)


async def filled(*messages: Message, query: str = "") -> MemoryDriver:
    memory = driver(query)
    await memory.declare("t", ["g"])
    assert await memory.send(messages) == [None] * len(messages)
    return memory


def values(deliveries: Any) -> list[bytes]:
    return [delivery.message.value for delivery in deliveries]


KEYED = Subscription(topic="t", group="g")


async def test_a_nameless_broker_is_its_own_and_a_name_is_shared() -> None:
    name = uuid4().hex
    first, second, other = (MemoryDriver.from_url(BrokerURL.parse(f"memory://{n}")) for n in (name, name, ""))
    for each in (first, other):
        await each.declare("t", ["g"])
    await first.send([message("1")])
    assert await second.lag("t", "g") == 1
    assert await other.lag("t", "g") == 0


async def test_a_lane_goes_to_one_receiver_at_a_time() -> None:
    memory = await filled(message("1", "k"), message("2", "k"), message("x", "other"))
    first, second = await collect(memory, KEYED), await collect(memory, KEYED)
    (head,) = await first.receive(1, 0)
    assert values(await second.receive(10, 0)) == [b"x"]
    await first.settle([head], [])
    assert values(await second.receive(10, 0)) == [b"2"]


async def test_a_released_message_holds_back_its_lane_until_it_is_due() -> None:
    memory = await filled(message("1", "k"), message("2", "k"))
    receiver = await collect(memory, KEYED)
    one, two = await receiver.receive(10, 0)
    await receiver.settle([], [Release(one, 0.05, 2), Release(two)])
    assert await receiver.receive(10, 0) == []
    (again,) = await receiver.receive(10, 5)
    assert (again.message.value, again.message.attempt) == (b"1", 2)
    await receiver.settle([again], [])
    assert values(await receiver.receive(10, 0)) == [b"2"]


async def test_a_message_put_aside_lets_its_lane_go_on() -> None:
    memory = await filled(message("1", "k"), message("2", "k"))
    receiver = await collect(memory, KEYED)
    (one,) = await receiver.receive(1, 0)
    await receiver.settle([], [Release(one, 0.05, 2, aside=True)])
    assert values(await receiver.receive(10, 0)) == [b"2"]
    assert values(await receiver.receive(10, 5)) == [b"1"]


async def test_what_a_closed_receiver_had_goes_to_the_next_in_order() -> None:
    memory = await filled(*(message(str(n), f"k{n % 2}") for n in range(6)))
    first, second = await collect(memory, KEYED), await collect(memory, KEYED)
    await first.receive(10, 0)
    assert await second.receive(10, 0) == []
    await first.close()
    await first.close()
    got = values(await second.receive(10, 0))
    assert sorted(got) == [str(n).encode() for n in range(6)]
    assert [v for v in got if int(v) % 2] == [b"1", b"3", b"5"]


async def test_a_delivery_of_a_closed_receiver_is_settled_with_nobody() -> None:
    memory = await filled(message("1", "k"))
    first, second = await collect(memory, KEYED), await collect(memory, KEYED)
    stale = await first.receive(10, 0)
    await first.close()
    (fresh,) = await second.receive(10, 0)
    await first.settle(stale, [])
    assert await memory.lag("t", "g") == 1
    await second.settle([fresh], [])
    assert await memory.lag("t", "g") == 0


async def test_lag_counts_what_is_not_acknowledged_and_for_this_group() -> None:
    memory = await filled(
        message("1"),
        message("2", headers={"replay-group": "other"}),
        message("3", headers={"replay-group": "g"}),
    )
    assert await memory.lag("t", "g") == 2
    assert await memory.lag("t", "other") == 2
    assert await memory.lag("t", "third") == 1
    assert await memory.lag("nothing", "g") == 0
    receiver = await collect(memory, KEYED)
    one, three = await receiver.receive(10, 0)
    assert values([one, three]) == [b"1", b"3"]
    assert await memory.lag("t", "g") == 2
    await receiver.settle([one], [Release(three)])
    assert await memory.lag("t", "g") == 1


async def test_a_removed_topic_is_a_lost_connection() -> None:
    memory = await filled(message("1"))
    receiver = await collect(memory, KEYED)
    deliveries = await receiver.receive(1, 0)
    waiting = asyncio.create_task(receiver.receive(1, 10))
    await asyncio.sleep(0)
    await memory.remove("t")
    await memory.remove("t")
    with pytest.raises(ConnectionLost, match="'t' was removed"):
        await waiting
    with pytest.raises(ConnectionLost, match="'t' was removed"):
        await receiver.settle(deliveries, [])
    await receiver.close()


async def test_a_group_that_may_not_be_created_must_be_there() -> None:
    memory = await filled()
    with pytest.raises(ConfigError, match="no group 'new' of a topic 't': declare it first"):
        await collect(memory, Subscription(topic="t", group="new", create=False))


async def test_an_ephemeral_group_begins_now_and_vanishes() -> None:
    memory = await filled(message("1"))
    receiver = await collect(memory, Subscription(topic="t", group="mine", ephemeral=True))
    await memory.send([message("2")])
    assert values(await receiver.receive(10, 0)) == [b"2"]
    await receiver.close()
    assert await memory.lag("t", "mine") == 2  # as of a group that does not exist


async def test_a_new_group_may_begin_at_the_latest() -> None:
    memory = await filled(message("1"))
    receiver = await collect(memory, Subscription(topic="t", group="late", start="latest"))
    await memory.send([message("2")])
    assert values(await receiver.receive(10, 0)) == [b"2"]


async def test_headers_of_the_sender_are_copied() -> None:
    headers = {"a": "b"}
    memory = await filled(message("1", headers=headers))
    headers["a"] = "changed"
    (delivery,) = await (await collect(memory, KEYED)).receive(1, 0)
    assert delivery.message.headers == {"a": "b"}


def test_what_is_old_and_acknowledged_is_dropped() -> None:
    async def scenario() -> None:
        memory = await filled(message("1"), query="?retain=100")
        receiver = await collect(memory, KEYED)
        await receiver.settle(await receiver.receive(1, 0), [])
        await asyncio.sleep(200)
        await memory.send([message("2")])
        assert await memory.lag("t", "new") == 1
        await asyncio.sleep(200)
        await memory.send([message("3")])
        assert await memory.lag("t", "new") == 2  # 1 is gone; 2 is kept though old: it is not acknowledged
        got = await receiver.receive(10, 0)
        assert values(got) == [b"2", b"3"]
        await receiver.settle(got, [])
        assert await memory.lag("t", "g") == 0

    run_virtual(scenario())


async def test_nothing_needs_to_be_retained() -> None:
    memory = await filled(message("1"), query="?retain=0")
    receiver = await collect(memory, KEYED)
    assert values(await receiver.receive(10, 0)) == [b"1"]
    assert await memory.send([message("2")]) == [None]


@pytest.mark.parametrize("query", ["max_message_bytes=0", "retain=-1", "max_message_bytes=x", "colour=red"])
def test_an_option_that_makes_no_sense_is_refused(query: str) -> None:
    with pytest.raises(ConfigError):
        connect(f"memory://?{query}")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_each_key_comes_in_order_and_nothing_is_lost(data: st.DataObject) -> None:
    """Two receivers take, acknowledge, release and close at random; what is acknowledged is in order by key."""

    async def scenario() -> None:
        total = data.draw(st.integers(1, 25))
        memory = await filled(*(message(str(n), data.draw(st.sampled_from("abc"))) for n in range(total)))
        receivers = [await collect(memory, KEYED) for _ in range(2)]
        out: list[list[Any]] = [[], []]
        done: list[Message] = []
        for _ in range(data.draw(st.integers(0, 40))):
            who = data.draw(st.integers(0, 1))
            step = data.draw(st.sampled_from(["take", "take", "acknowledge", "release", "close"]))
            if step == "take":
                out[who] += await receivers[who].receive(data.draw(st.integers(1, 6)), 0)
                keys = [{each.message.key for each in held} for held in out]
                assert not keys[0] & keys[1]
            elif step == "acknowledge" and out[who]:
                head = out[who].pop(0)
                await receivers[who].settle([head], [])
                done.append(head.message)
            elif step == "release" and out[who]:
                head = out[who][0]
                lane = [each for each in out[who] if each.message.key == head.message.key]
                out[who] = [each for each in out[who] if each not in lane]
                delay = data.draw(st.sampled_from([0.0, 1.0]))
                await receivers[who].settle(
                    [], [Release(head, delay, 2), *(Release(each) for each in lane[1:])]
                )
            elif step == "close":
                await receivers[who].close()
                out[who] = []
                receivers[who] = await collect(memory, KEYED)
            if data.draw(st.booleans()):
                await asyncio.sleep(0.6)
        for who in (0, 1):
            await receivers[who].close()
        rest = await collect(memory, KEYED)
        while await memory.lag("t", "g"):
            for each in await rest.receive(100, 10):
                done.append(each.message)
                await rest.settle([each], [])
        assert sorted(int(m.value) for m in done) == list(range(total))
        for key in (b"a", b"b", b"c"):
            order = [int(m.value) for m in done if m.key == key]
            assert order == sorted(order)

    run_virtual(scenario())
