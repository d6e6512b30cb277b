"""Fidelity: lines 33 to 39: what arrives is what was sent, whatever it is made of."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from things_kit import ConfigError, Message, MessageTooLarge, PublishError, ThingsKitError, UnsupportedError
from things_kit.engine.naming import looks_like_pattern
from things_kit.testing.conformance.base import Suite, random_plans
from things_kit.testing.conformance.recorder import Recorder, failing
from things_kit.testing.conformance.stage import Stage

MILLISECOND = timedelta(milliseconds=1)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
"""Any script, line breaks, quotes, control characters, nothing at all; only lone surrogates are no text."""

header_names = text.filter(lambda name: not name.startswith("tk-") and name != "replay-group")

moments = st.datetimes(
    min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59, 999000), timezones=st.just(UTC)
)

messages = st.lists(
    st.builds(
        Message,
        topic=st.just(""),
        value=st.binary(max_size=200),
        key=st.none() | st.binary(max_size=40),
        headers=st.dictionaries(header_names, text, max_size=12),
        timestamp=st.none() | moments,
    ),
    min_size=1,
    max_size=8,
)

HOSTILE = {
    "star": "orders.*",
    "hash": "orders.#",
    "greater": "orders.>",
    "underscore": "orders_",
    "percent": "orders%",
    "slash": "a/b",
    "parent": "../../etc/passwd",
    "line break": "a\nb",
    "carriage return": "a\r\nb",
    "null": "a\x00b",
    "tab": "a\tb",
    "space": "a b",
    "only space": " ",
    "empty": "",
    "dot": ".",
    "system": "$SYS.x",
    "quote": "a'b\"c`d",
    "semicolon": "x; DROP TABLE messages; --",
    "script": "заказы-注文-🚀",
    "braces": "{topic}-{0}",
    "equals": "a=b&c=d",
    "colon": "a:b::c",
    "comma": "a,b",
    "at": "a@b",
    "backslash": "a\\b",
    "bracket": "a[b]c",
    "question": "a?b",
    "long": "x" * 300,
}
"""Names that mean something to somebody: wildcards, paths, separators, nothing."""


def same(sent: Message, message: Message) -> bool:
    """Whether a message is as it was sent, in every field that is promised to survive."""
    return (
        (message.value, message.key, dict(message.headers), message.id)
        == (sent.value, sent.key, dict(sent.headers), sent.id)
        and message.timestamp is not None
        and message.timestamp.utcoffset() == timedelta(0)
        and (sent.timestamp is None or abs(message.timestamp - sent.timestamp) < MILLISECOND)
    )


class FidelitySuite(Suite):
    """Bytes stay bytes, text stays text, and a message is the same one wherever it has been."""

    @random_plans
    @given(batch=messages)
    async def test_any_key_value_and_headers_arrive_as_they_were_sent(
        self, stage: Stage, batch: list[Message]
    ) -> None:
        """Line 33: any bytes, any script, from the year 1 to the year 9999, through the broker and back."""
        topic = stage.name("orders") + uuid4().hex[:6]
        stage.sweep(topic)
        recorder = Recorder()
        consumer = await stage.consume(topic, stage.group(), recorder, dead_letter=None)
        sent = {uuid4().hex: message for message in batch}
        await stage.publish_all([message.replace(topic=topic, id=id_) for id_, message in sent.items()])
        await recorder.until_done(len(batch), stage.patience)
        await consumer.stop()
        for message in recorder.done:
            original = sent[str(message.id)].replace(id=message.id)
            assert same(original, message), f"sent {original!r}, got {message!r}"
        assert len(recorder.ids) == len(batch)

    async def test_any_id_arrives_as_it_was_sent(self, stage: Stage) -> None:
        """Line 33: an id is text of the user's own."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        ids = ["plain", "with space", "ключ-🚀", "a\nb", "'\"", "%00", "0", "x" * 200]
        await stage.publish_all([Message(topic, b"x", id=id_) for id_ in ids])
        await recorder.until_done(len(ids), stage.patience)
        assert recorder.ids == set(ids)

    async def test_an_id_and_a_timestamp_are_given_to_messages_without(self, stage: Stage) -> None:
        """Line 33: each its own id, and the time of publishing."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        before = datetime.now(UTC) - timedelta(seconds=1)
        await stage.publish_all([Message(topic, b"x") for _ in range(10)])
        await recorder.until_done(10, stage.patience)
        assert len(recorder.ids) == 10
        for message in recorder.done:
            assert message.timestamp is not None
            assert before <= message.timestamp <= datetime.now(UTC) + timedelta(seconds=1)

    async def test_thirty_headers_and_long_ones_arrive(self, stage: Stage) -> None:
        """Line 34: more than some brokers carry natively, and a value of 2 KiB."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        headers = {f"header-{n}": "ü" * n for n in range(29)} | {"long": "€" + "x" * 2045}
        await stage.publish(topic, b"x", headers=headers)
        [message] = await recorder.until_done(1, stage.patience)
        assert message.headers == headers

    async def test_header_names_differ_by_case(self, stage: Stage) -> None:
        """Line 33: two headers stay two."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        headers = {"Type": "1", "type": "2", "TYPE": "3"}
        await stage.publish(topic, b"x", headers=headers)
        [message] = await recorder.until_done(1, stage.patience)
        assert message.headers == headers

    async def test_a_header_of_the_kits_own_prefix_is_refused(self, stage: Stage) -> None:
        """Line 33: `tk-` belongs to the drivers; the rest of the batch is confirmed."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        producer = stage.broker.producer()
        bad = Message(topic, b"bad", headers={"tk-key": "x"})
        with pytest.raises(PublishError):
            await producer.publish(bad)
        with pytest.raises(PublishError) as raised:
            await producer.publish_batch([Message(topic, b"1"), bad, Message(topic, b"2")])
        assert list(raised.value.failures) == [1]
        await recorder.until_done(2, stage.patience)
        assert sorted(recorder.values) == [b"1", b"2"]

    async def test_an_empty_value_and_an_empty_key_arrive_empty(self, stage: Stage) -> None:
        """Line 35: nothing is not missing."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        sent = [Message(topic, b"", key=key, id=uuid4().hex) for key in (b"", None, b"k")]
        await stage.publish_all(sent)
        await recorder.until_done(3, stage.patience)
        assert {m.id: (m.value, m.key) for m in recorder.done} == {m.id: (m.value, m.key) for m in sent}
        assert all(type(message.value) is bytes for message in recorder.done)

    async def test_a_message_is_the_same_through_failure_dead_letter_and_replay(self, stage: Stage) -> None:
        """Line 36: its id all the way, its time to the millisecond."""
        topic, group = stage.topic(), stage.group()
        moment = datetime(2020, 2, 29, 23, 59, 59, 999000, tzinfo=UTC)
        recorder = await stage.record(topic, group, failing(3))
        reader = await stage.record(f"{topic}-dlq", stage.group("reader"))
        [sent] = await stage.publish(topic, b"x", key=b"k", headers={"a": "b"}, timestamp=moment)
        [dead] = await reader.until_done(1, stage.patience)
        await stage.until_lag(f"{topic}-dlq", "dead-letters", 1)
        assert await stage.broker.replay(f"{topic}-dlq") == 1
        await recorder.until_done(1, stage.patience)
        assert recorder.attempts == [1, 2, 3, 1]
        assert dead.id == sent.id
        for message in recorder.began:
            headers = {name: value for name, value in message.headers.items() if name != "replay-group"}
            assert same(sent, message.replace(headers=headers))

    async def test_a_message_of_a_foreign_client_is_a_normal_message(self, stage: Stage) -> None:
        """Line 37: its native key, value and headers; an id is made of its coordinates, the same each time."""
        if stage.target.foreign_publish is None:
            pytest.skip("this target knows no client of the broker but ours")
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        await stage.target.foreign_publish(topic, b"k", b"\xffx", {"type": "foreign"})
        recorder = await stage.record(topic, group, failing(1))
        await recorder.until_done(1, stage.patience)
        assert len({message.id for message in recorder.began}) == 1
        [message] = recorder.done
        assert (message.key, message.value) == (b"k", b"\xffx")
        assert message.headers["type"] == "foreign"
        assert message.timestamp is not None

    async def test_a_foreign_client_reads_our_message(self, stage: Stage) -> None:
        """Line 37: value, key and simple headers are where the broker has them."""
        if stage.target.foreign_read is None:
            pytest.skip("this target knows no client of the broker but ours")
        topic = stage.topic()
        await stage.broker.declare(topic, groups=[stage.group()])
        await stage.publish(topic, b"\xffx", key=b"k", headers={"type": "order"})
        [(key, value, headers)] = await stage.target.foreign_read(topic)
        assert (key, value, headers.get("type")) == (b"k", b"\xffx", "order")

    async def test_a_message_that_is_too_large_has_an_error_of_its_own(self, stage: Stage) -> None:
        """Line 38: MessageTooLarge for it; the rest of its batch is confirmed and handled."""
        broker = await stage.open(**stage.target.size_options)
        limit = broker.capabilities.max_message_bytes
        if limit is None:
            pytest.skip("this broker takes messages of any size")
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, broker=broker)
        producer = broker.producer()
        big = Message(topic, b"x" * (limit + 1))
        with pytest.raises(MessageTooLarge):
            await producer.publish(big)
        with pytest.raises(PublishError) as raised:
            await producer.publish_batch([Message(topic, b"1"), big, Message(topic, b"2")])
        [(index, error)] = raised.value.failures.items()
        assert index == 1
        assert isinstance(error, MessageTooLarge)
        await recorder.until_done(2, stage.patience)
        await stage.until_lag(topic, group, 0)
        assert sorted(recorder.values) == [b"1", b"2"]

    @pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE)
    async def test_a_hostile_topic_name_is_refused_or_carried(self, stage: Stage, word: str) -> None:
        """Line 39: never read as a pattern, a path or another name."""
        decoy = stage.topic("ordersX")
        hostile = word if word.strip(" .") == "" else f"{word}{stage.name('')}"
        near = (
            hostile.replace("*", "X").replace("#", "X").replace(">", "X").replace("%", "X").replace("_", "X")
        )
        await stage.keep(decoy)
        await stage.publish(decoy, b"decoy")
        recorder, group = Recorder(), stage.group()
        try:
            if looks_like_pattern(hostile):
                await self._declared_as_it_is_no_pattern(stage, hostile)
            await stage.consume(hostile, group, recorder, dead_letter=None)
            await stage.publish(hostile, b"hostile")
        except (ConfigError, PublishError, UnsupportedError) as refusal:
            await self._refused_by_publish_too(stage, hostile, refusal)
            return
        stage.sweep(hostile, near)
        if near != hostile:
            await stage.keep(near)
            await stage.publish(near, b"near")
        await stage.publish(hostile, b"again")
        await recorder.until_done(2, stage.patience)
        assert sorted(recorder.values) == [b"again", b"hostile"]
        assert {message.topic for message in recorder.done} == {hostile}
        await stage.until_lag(hostile, group, 0)

    async def test_a_refused_message_harms_no_other_of_its_batch(self, stage: Stage) -> None:
        """Line 39: a topic that cannot be fails its own message, not those that were sent along with it."""
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())
        producer = stage.broker.producer()
        bad = await self._refused_name(stage)
        with pytest.raises(PublishError) as raised:
            await producer.publish_batch([Message(topic, b"1"), Message(bad, b"x"), Message(topic, b"2")])
        assert list(raised.value.failures) == [1]
        results = await asyncio.gather(
            producer.publish(Message(topic, b"3")),
            producer.publish(Message(bad, b"x")),
            producer.publish(Message(topic, b"4")),
            return_exceptions=True,
        )
        assert [isinstance(result, Exception) for result in results] == [False, True, False]
        await recorder.until_done(4, stage.patience)
        assert sorted(recorder.values) == [b"1", b"2", b"3", b"4"]

    async def _refused_name(self, stage: Stage) -> str:
        for name in HOSTILE.values():
            try:
                await stage.broker.declare(name)
            except (ConfigError, PublishError, UnsupportedError):
                return name
            await stage.broker.remove(name)
        pytest.skip("this broker carries every name")

    async def _declared_as_it_is_no_pattern(self, stage: Stage, name: str) -> None:
        """Without a topic of that very name, neither publish nor a consumer takes it."""
        with pytest.raises((ConfigError, PublishError, UnsupportedError)):
            await stage.publish(name, b"x")
        with pytest.raises((ConfigError, UnsupportedError)):
            await stage.consume(name, stage.group(), dead_letter=None, handler=Recorder())
        await stage.broker.declare(name)
        stage.sweep(name)

    async def _refused_by_publish_too(self, stage: Stage, hostile: str, refusal: Exception) -> None:
        with pytest.raises((ConfigError, PublishError, UnsupportedError)):
            await stage.publish(hostile, b"x")
        with pytest.raises((ConfigError, PublishError, UnsupportedError)):
            await stage.broker.declare(hostile, groups=[stage.group()])
        assert str(refusal), "a refusal says why"

    @pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE)
    async def test_a_hostile_group_name_is_refused_or_a_group_of_its_own(
        self, stage: Stage, word: str
    ) -> None:
        """Line 39: it shares nothing with a group whose name is like it."""
        topic = stage.topic()
        group = word if word.strip(" .") == "" else f"{word}{stage.name('')}"
        near = group.replace("*", "X").replace("#", "X").replace(">", "X").replace("%", "X").replace("_", "X")
        recorder, other = Recorder(), Recorder()
        try:
            await stage.consume(topic, group, recorder)
        except ThingsKitError as refusal:
            assert isinstance(refusal, ConfigError | UnsupportedError)
            assert str(refusal), "a refusal says why"
            return
        if near != group:
            await stage.consume(topic, near, other)
        await stage.publish(topic, b"1", b"2")
        for reader in (recorder, other) if near != group else (recorder,):
            await reader.until_done(2, stage.patience)
            assert sorted(reader.values) == [b"1", b"2"]
        await stage.until_lag(topic, group, 0)
