"""Topics that no group has: line 45."""

import pytest

from things_kit import Message, NobodyListens, PublishError
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.stage import Stage


class UnroutedSuite(Suite):
    """Nothing that is published disappears unasked, and what is to disappear does so in silence."""

    async def test_a_message_that_no_group_would_get_is_kept_or_refused(self, stage: Stage) -> None:
        """Line 45: kept for groups to come where the broker retains, else refused with what to do, until one is there."""
        topic, group = stage.topic(), stage.group()
        if not stage.capabilities.retained:
            with pytest.raises(NobodyListens, match="declare") as refused:
                await stage.publish(topic, b"nobody")
            assert topic in str(refused.value)
            await stage.broker.declare(topic, groups=[group])
        await stage.publish(topic, b"somebody")
        recorder = await stage.record(topic, group)
        await recorder.until_done(1, stage.patience)
        assert recorder.values == [b"somebody"]

    async def test_a_batch_confirms_what_somebody_gets_and_refuses_the_rest(self, stage: Stage) -> None:
        """Line 45: each message has an answer of its own."""
        heard, unheard, group = stage.topic("heard"), stage.topic("unheard"), stage.group()
        await stage.broker.declare(heard, groups=[group])
        batch = [Message(heard, b"1"), Message(unheard, b"2"), Message(heard, b"3")]
        if stage.capabilities.retained:
            await stage.publish_all(batch)
        else:
            with pytest.raises(PublishError) as refused:
                await stage.publish_all(batch)
            assert list(refused.value.failures) == [1]
            assert isinstance(refused.value.failures[1], NobodyListens)
        recorder = await stage.record(heard, group)
        await recorder.until_done(2, stage.patience)
        assert sorted(recorder.values) == [b"1", b"3"]

    async def test_a_url_may_say_that_messages_for_nobody_are_dropped(self, stage: Stage) -> None:
        """Line 45: with ?unrouted=drop a publish succeeds; where messages are retained, there is nothing to drop."""
        topic, group = stage.topic(), stage.group()
        broker = await stage.open(unrouted="drop")
        await stage.publish(topic, b"nobody", broker=broker)
        recorder = await stage.record(topic, group, broker=broker)
        await stage.publish(topic, b"somebody", broker=broker)
        expected = [b"nobody", b"somebody"] if stage.capabilities.retained else [b"somebody"]
        await recorder.until_done(len(expected), stage.patience)
        assert sorted(recorder.values) == expected
