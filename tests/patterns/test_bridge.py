"""The bridge: what it acknowledges and when, and what it does with a target that is away or refuses."""

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine.scenario import until, virtual
from tests.middleware.test_throttle import most_in
from things_kit import Batch, Broker, Capabilities, ConfigError, Message, PublishError, RetryPolicy, connect
from things_kit.engine.driver import ConnectionLost
from things_kit.engine.url import BrokerURL
from things_kit.messaging import names
from things_kit.middleware import MemoryStore, deduplicate, throttle
from things_kit.patterns.bridge import Bridge
from things_kit.patterns.far_side import waves
from things_kit.testing.stub import BARE, NATIVE_DELAY, NATIVE_LANES, StubDriver

KINDS = pytest.mark.parametrize("native", [BARE, NATIVE_DELAY, NATIVE_LANES], ids=["bare", "delay", "lanes"])


class Sides:
    """A source and a target, each a stub, and a bridge of the topic `t` between them."""

    def __init__(self, native: Capabilities = NATIVE_LANES) -> None:
        self.source, self.target = StubDriver(native), StubDriver()
        self.near = Broker(self.source, BrokerURL.parse("stub://near"))
        self.far = Broker(self.target, BrokerURL.parse("stub://far"))

    async def __aenter__(self) -> "Sides":
        await self.near.open()
        await self.far.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.near.close()
        await self.far.close()

    def bridge(self, *topics: str, **options: Any) -> Bridge:
        return Bridge(self.near, self.far, topics or ["t"], **options)

    def put(self, *values: str, key: str | None = None) -> None:
        for value in values:
            self.source.put(message(value, key))

    def arrived(self, key: str | None = None) -> list[bytes]:
        wanted = None if key is None else key.encode()
        return [m.value for m in self.target.topics.get("t", []) if wanted is None or m.key == wanted]

    @property
    def acknowledged(self) -> list[bytes]:
        return [m.value for m in self.source.acknowledged]


def message(value: str, key: str | None = None, topic: str = "t", **more: Any) -> Message:
    return Message(topic, value.encode(), None if key is None else key.encode(), id=value, **more)


def limited(driver: StubDriver, size: int | None) -> None:
    driver.capabilities = msgspec.structs.replace(driver.capabilities, max_message_bytes=size)


# --- what is moved


@virtual
async def test_a_message_arrives_as_it_was_but_for_its_place() -> None:
    sent = Message(
        "t",
        b"\xff\x00",
        b"\xfe",
        {"naïve": "a\nb", "": ""},
        3,
        0,
        datetime(1999, 1, 2, 3, 4, 5, 678000, UTC),
        "i",
    )
    async with Sides() as sides:
        sides.source.put(sent, Message("t", b"", id="e", timestamp=datetime(2030, 1, 1, tzinfo=UTC)))
        async with sides.bridge(rename={"t": "u"}) as bridge:
            await bridge.until_empty()
        assert bridge.moved == 2
        (published,) = sides.target.batches
    assert published[0] == sent.replace(topic="u", partition=None, offset=None)
    assert published[1] == Message("u", b"", timestamp=datetime(2030, 1, 1, tzinfo=UTC), id="e")


@virtual
async def test_nothing_is_acknowledged_before_the_target_has_confirmed_it() -> None:
    async with Sides() as sides:
        sides.put("1", "2")
        confirm = sides.target.hold("send")
        async with sides.bridge():
            await until(lambda: sides.target.attempted)
            await asyncio.sleep(100)
            assert sides.acknowledged == []
            confirm.set()
            await until(lambda: len(sides.acknowledged) == 2)


@virtual
async def test_what_was_not_confirmed_when_it_stops_stays_at_the_source() -> None:
    async with Sides() as sides:
        sides.put("1", "2")
        confirm = sides.target.hold("send")
        bridge = sides.bridge()
        await bridge.start()
        await until(lambda: sides.target.attempted)
        await bridge.stop()
        assert sides.acknowledged == []
        assert await bridge.lag() == 2
        confirm.set()


@virtual
async def test_a_bridge_goes_on_where_its_group_stopped() -> None:
    async with Sides() as sides:
        sides.put("1", "2")
        async with sides.bridge() as first:
            await first.until_empty()
        sides.put("3")
        async with sides.bridge() as second:
            await second.until_empty()
        assert (first.moved, second.moved) == (2, 1)
        assert sides.arrived() == [b"1", b"2", b"3"]


@virtual
async def test_two_topics_may_become_one() -> None:
    async with Sides() as sides:
        sides.source.put(message("1", topic="a"), message("2", topic="b"))
        async with sides.bridge("a", "b", rename={"a": "t", "b": "t"}) as bridge:
            await bridge.until_empty()
        assert sorted(sides.arrived()) == [b"1", b"2"]


@virtual
async def test_groups_of_the_target_are_declared_before_the_first_message() -> None:
    async with Sides() as sides:
        sides.put("1")
        async with sides.bridge(target_groups=["billing"]) as bridge:
            await bridge.until_empty()
        assert len(sides.target.groups["t", "billing"].pending) == 1


@virtual
async def test_a_message_replayed_for_the_bridge_is_for_everybody_at_the_target() -> None:
    async with Sides(BARE) as sides:
        sides.source.put(
            message("mine", headers={"replay-group": "bridge", "a": "b"}),
            message("theirs", headers={"replay-group": "billing"}),
        )
        async with sides.bridge() as bridge:
            await bridge.until_empty()
        ((published,),) = sides.target.batches
    assert (published.value, published.headers) == (b"mine", {"a": "b"})


# --- a target that refuses


@KINDS
@virtual
async def test_what_follows_a_message_too_large_waits_for_it_and_others_flow(native: Capabilities) -> None:
    async with Sides(native) as sides:
        limited(sides.target, 50)
        sides.put("1", "2" * 100, "3", "4", key="k")
        sides.put("x", key="other")
        async with sides.bridge() as bridge:
            await until(lambda: b"x" in sides.arrived())
            await asyncio.sleep(300)
            assert sides.arrived("k") == [b"1"]
            assert bridge.held == 1
            limited(sides.target, None)
            await bridge.until_empty()
        assert sides.arrived("k") == [b"1", b"2" * 100, b"3", b"4"]
        assert (bridge.moved, bridge.held) == (5, 0)


@KINDS
@virtual
async def test_what_overtook_a_refused_message_is_sent_again_behind_it_and_only_once(
    native: Capabilities,
) -> None:
    async with Sides(native) as sides:
        sides.target.refuse = lambda m: PublishError("no") if m.value == b"2" else None
        sides.put("1", "2", "3", "4", key="k")
        async with sides.bridge() as bridge:
            await asyncio.sleep(600)
            assert sides.arrived() == [b"1", b"3", b"4"]  # the target took them in one call; it could
            assert sides.acknowledged == [b"1"]
            sides.target.refuse = lambda m: None
            await bridge.until_empty()
        assert sides.arrived() == [b"1", b"3", b"4", b"2", b"3", b"4"]


@virtual
async def test_keys_of_two_topics_that_become_one_do_not_hold_each_other() -> None:
    async with Sides() as sides:
        limited(sides.target, 50)
        sides.source.put(message("1" * 100, "k", "a"), message("2", "k", "b"))
        async with sides.bridge("a", "b", rename={"a": "t", "b": "t"}) as bridge:
            await until(lambda: sides.arrived("k") == [b"2"])
            limited(sides.target, None)
            await bridge.until_empty()
        assert sides.arrived("k") == [b"2", b"1" * 100]


@virtual
async def test_it_is_said_that_messages_are_held_but_not_of_each(caplog: pytest.LogCaptureFixture) -> None:
    async with Sides() as sides:
        limited(sides.target, 50)
        sides.put(*(f"{number}" * 100 for number in range(50)))
        with caplog.at_level(logging.WARNING, logger="things_kit"):
            async with sides.bridge() as bridge:
                await until(lambda: bridge.held == 50)
                said = [record.getMessage() for record in caplog.records]
                assert len(said) == 1
                assert "stub://far refuses message" in said[0]
                assert "of t" in said[0]
                await asyncio.sleep(100)
        assert "held: 50" in caplog.records[-1].getMessage()


@KINDS
@virtual
async def test_nothing_is_given_up_unasked(native: Capabilities) -> None:
    async with Sides(native) as sides:
        sides.target.refuse = lambda m: PublishError("no")
        sides.put("1")
        async with sides.bridge() as bridge:
            await asyncio.sleep(3600)
            assert (sides.acknowledged, bridge.held) == ([], 1)


@KINDS
@virtual
async def test_with_a_dead_letter_what_is_too_large_goes_there_at_once(native: Capabilities) -> None:
    async with Sides(native) as sides:
        limited(sides.target, 50)
        sides.put("1", "2" * 100, "3", key="k")
        async with sides.bridge(dead_letter="{topic}-refused") as bridge:
            await asyncio.wait_for(bridge.until_empty(), 5)
        assert sides.arrived() == [b"1", b"3"]
        (dead,) = sides.source.topics["t-refused"]
        assert (dead.value, dead.key, dead.id) == (b"2" * 100, b"k", "2" * 100)
        assert dead.headers[names.ORIGINAL_TOPIC] == "t"
        assert dead.headers[names.CONSUMER_GROUP] == "bridge"
        assert "MessageTooLarge" in dead.headers[names.ERROR_TYPE]
        assert ("t-refused", names.DEAD_LETTER_GROUP) in sides.source.groups
        assert (bridge.moved, bridge.dead_lettered, bridge.held) == (2, 1, 0)


@KINDS
@virtual
async def test_with_a_dead_letter_other_refusals_are_tried_first_and_their_followers_are_spared(
    native: Capabilities,
) -> None:
    async with Sides(native) as sides:
        sides.target.refuse = lambda m: PublishError("no") if m.value == b"2" else None
        sides.put("1", "2", "3", key="k")
        async with sides.bridge(
            dead_letter="{topic}-refused", retry=RetryPolicy(attempts=3, first=1.0)
        ) as bridge:
            await bridge.until_empty()
        assert [dead.value for dead in sides.source.topics["t-refused"]] == [b"2"]
        assert sides.arrived()[-1] == b"3"
        assert (bridge.moved, bridge.dead_lettered) == (2, 1)


@virtual
async def test_a_message_whose_dead_letter_is_refused_is_kept() -> None:
    async with Sides() as sides:
        limited(sides.target, 50)
        sides.put("1" * 100)
        sides.source.refuse = lambda m: PublishError("no") if m.topic == "t-refused" else None
        async with sides.bridge(dead_letter="{topic}-refused") as bridge:
            await asyncio.sleep(100)
            assert sides.acknowledged == []
            sides.source.refuse = lambda m: None
            await bridge.until_empty()
        assert len(sides.source.topics["t-refused"]) == 1


# --- brokers that go away


@virtual
async def test_while_the_target_is_away_it_waits_and_then_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with Sides() as sides:
        sides.put("1", "2", key="k")
        sides.target.fail("send", *[ConnectionLost("it is down")] * 200)
        async with sides.bridge() as bridge:
            await asyncio.sleep(100)
            assert sides.acknowledged == []
            assert bridge.trouble == "stub://far is away"
            await bridge.until_empty()
            assert bridge.trouble is None
        assert sides.arrived() == [b"1", b"2"]
    assert len([r for r in caplog.records if "the bridge waits for it" in r.getMessage()]) == 1


@KINDS
@virtual
async def test_a_source_that_is_cut_off_loses_nothing(native: Capabilities) -> None:
    async with Sides(native) as sides:
        sides.put("1", "2", key="k")
        confirm = sides.target.hold("send")
        async with sides.bridge() as bridge:
            await until(lambda: sides.target.attempted)
            sides.source.cut()
            confirm.set()
            await bridge.until_empty()
        assert list(dict.fromkeys(sides.arrived())) == [b"1", b"2"]


# --- flow control


@KINDS
@virtual
async def test_under_a_throttle_no_second_has_more_than_its_rate_and_keys_keep_their_order(
    native: Capabilities,
) -> None:
    moved: list[float] = []

    async def told(_: Message, error: Exception | None) -> None:
        assert error is None
        moved.append(asyncio.get_running_loop().time())

    async with Sides(native) as sides:
        for number in range(60):
            sides.put(str(number), key=f"k{number % 3}")
        async with sides.bridge(max_in_flight=40, middleware=[throttle(10)], told=told) as bridge:
            await bridge.until_empty()
        for key in range(3):
            assert sides.arrived(f"k{key}") == [b"%d" % number for number in range(key, 60, 3)]
    assert most_in(moved, 1.0) == 10


async def test_a_throttle_below_what_is_moved_in_one_go_is_refused_at_start() -> None:
    async with Sides() as sides:
        sides.put("1")
        with pytest.raises(ConfigError, match="a batch of 500 messages would never begin"):
            await sides.bridge(middleware=[throttle(10)]).start()


@virtual
async def test_with_deduplicate_what_is_at_the_source_twice_is_moved_once_and_what_is_refused_later() -> None:
    refused: list[bytes] = []

    def once(each: Message) -> Exception | None:
        if each.value != b"2" or refused:
            return None
        refused.append(each.value)
        return PublishError("not yet")

    async with Sides() as sides:
        sides.target.refuse = once
        sides.put("1", "2", "1", "2")
        async with sides.bridge(middleware=[deduplicate(MemoryStore())]) as bridge:
            await bridge.until_empty()
        assert sorted(sides.arrived()) == [b"1", b"2"]
        assert bridge.held == 0


# --- the end


@virtual
async def test_a_source_that_cannot_say_what_is_left_is_empty_after_a_while() -> None:
    async with Sides(Capabilities(delay=True, lag=False)) as sides:
        sides.put("1")
        async with sides.bridge() as bridge:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await bridge.until_empty()
            assert 5 <= loop.time() - began < 6
            assert await bridge.lag() is None
        assert bridge.moved == 1


@virtual
async def test_a_source_is_not_empty_while_a_refused_message_waits() -> None:
    async with Sides(Capabilities(delay=True, attempts=True, lag=False)) as sides:
        sides.target.refuse = lambda m: PublishError("no")
        sides.put("1")
        async with sides.bridge() as bridge:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bridge.until_empty(), 1000)


@virtual
async def test_it_is_said_when_nothing_comes_of_what_is_counted_as_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Sides() as sides:
        sides.put("1")
        other = asyncio.Event()
        consumer = sides.near.consumer(
            "t", group="bridge", handler=lambda messages: other.wait(), batch=Batch()
        )
        async with consumer, sides.bridge() as bridge:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bridge.until_empty(), 25)
            other.set()
        said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(
        "stub://near counts 1 as left for the group 'bridge', but none has come for 10 s"
    )


@virtual
async def test_waiting_ends_when_it_is_stopped() -> None:
    async with Sides() as sides:
        sides.put("1")
        sides.target.refuse = lambda m: PublishError("no")
        async with sides.bridge() as bridge:
            waiting = asyncio.create_task(bridge.until_empty())
            await asyncio.sleep(1)
            await bridge.stop()
            await asyncio.wait_for(waiting, 1)


# --- what cannot be meant


async def test_a_topic_that_the_source_has_not_is_refused_and_not_made() -> None:
    async with connect("memory://") as source, connect("memory://") as target:
        await source.declare("orders")
        with pytest.raises(ConfigError, match="'ordres'"):
            await Bridge(source, target, ["orders", "ordres"]).start()
        with pytest.raises(ConfigError, match="'ordres'"):
            await Bridge(source, target, ["ordres"]).start()


async def test_messages_may_not_come_round_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, same, other = (
        connect("sqlite:///a.db"),
        connect(f"sqlite:///{tmp_path}/a.db"),
        connect("sqlite:///b.db"),
    )
    async with one, same, other:
        for target in (one, same):
            with pytest.raises(ConfigError, match=r"messages of 'a' would come round to 'a' again"):
                Bridge(one, target, ["a"])
        with pytest.raises(ConfigError, match="come round"):
            Bridge(one, same, ["a", "b"], rename={"a": "b", "b": "a"})
        with pytest.raises(ConfigError, match="come round"):
            Bridge(one, same, ["a", "b", "c"], rename={"a": "b", "b": "c"})
        Bridge(one, same, ["a", "b"], rename={"a": "b", "b": "c"})
        Bridge(one, other, ["a"])


async def test_messages_may_not_come_round_by_a_prefix(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    async with connect(url) as one, connect(f"{url}?topic_prefix=test-") as prefixed:
        with pytest.raises(ConfigError, match="come round to 'test-a'"):
            Bridge(one, prefixed, ["test-a"], rename={"test-a": "a"})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("memory://", "memory://", False),
        ("memory://x", "memory://x", True),
        ("memory://x", "memory://y", False),
        ("kafka://a:9092,b:9092", "kafka://b:9092", True),
        ("kafka://a:9092", "kafka://b:9092", False),
        ("sqlite:///x.db", "sqlite:///./x.db", True),
        ("sqlite:///x.db?schema=shop", "sqlite:///x.db", False),
        ("postgres://a/x?schema=things_kit", "postgresql://a/x", True),
        ("postgres://a/x?schema=shop", "postgres://a/x", False),
        ("kafka://a:9092?topic_prefix=test-", "kafka://a:9092", False),
    ],
)
async def test_one_broker_is_known_by_its_url(one: str, other: str, same: bool) -> None:
    source, target = connect(one), connect(other)
    source._open = target._open = True  # it is only asked for its name
    if same:
        with pytest.raises(ConfigError, match="come round"):
            Bridge(source, target, ["t"])
    else:
        Bridge(source, target, ["t"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"topics": "orders"}, "a bridge needs a list of topics; it is 'orders'"),
        ({"topics": []}, "a bridge needs a list of topics"),
        ({"topics": ["a", "a"]}, "topics must differ"),
        ({"topics": [""]}, "must be a name"),
        ({"topics": ["a"], "rename": {"b": "c"}}, "'b' is renamed, but is none of the topics to be moved: a"),
        ({"topics": ["a"], "dead_letter": "a"}, "names the topic 'a' itself"),
        ({"topics": ["a", "b"], "dead_letter": "b"}, "itself"),
        (
            {"topics": ["a", "a-dlq"], "dead_letter": "{topic}-dlq"},
            "is itself a topic to be moved",
        ),
    ],
)
async def test_wrong_use_is_answered_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    async with connect("memory://") as source, connect("memory://") as target:
        with pytest.raises(ConfigError, match=sentence):
            Bridge(source, target, **arguments)


# --- in which order a batch is sent


def test_only_keys_that_were_refused_before_go_one_by_one() -> None:
    again = message("b", "k").replace(attempt=2)
    batch = [message("a"), message("b", "j"), again, message("c", "k"), message("d", "j"), message("e", "k")]
    assert [list(wave) for wave in waves(batch)] == [[0, 1, 2, 4], [3], [5]]
    assert [list(wave) for wave in waves([message("a", "k"), message("b", "k")])] == [[0, 1]]


def test_messages_without_a_key_wait_for_nobody() -> None:
    batch = [message("a").replace(attempt=2), message("b"), message("c")]
    assert [list(wave) for wave in waves(batch)] == [[0, 1, 2]]
