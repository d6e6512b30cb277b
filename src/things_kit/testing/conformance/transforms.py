"""What is done to values on the way, and undone."""

import json
import tempfile
from pathlib import Path

from things_kit import Batch, Message, Topic
from things_kit.messaging.names import DEAD_LETTER_GROUP
from things_kit.middleware import claim_check, compress, encrypt
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Recorder, failing
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually

KEYS = {"2026": b"k" * 32}
LARGE = b"value " * 2000


class TransformSuite(Suite):
    """Values arrive as they were published, whatever was done to them meanwhile."""

    async def test_what_was_done_to_a_value_is_undone(self, stage: Stage) -> None:
        """Line 75: compressed, encrypted and kept elsewhere at once; what is small is only encrypted."""
        topic = stage.topic()
        with tempfile.TemporaryDirectory() as folder:
            chain = (compress("gzip", above=100), encrypt(KEYS), claim_check(Path(folder), above=40))
            recorder = await stage.record(topic, stage.group(), transforms=chain)
            producer = stage.broker.producer(transforms=chain)
            await producer.publish_batch(
                [Message(topic, LARGE, key=b"k"), Message(topic, b"small", key=b"k")]
            )

            seen = await recorder.until_done(2, stage.patience)

        assert [message.value for message in seen] == [LARGE, b"small"]
        assert all("content-encoding" not in message.headers for message in seen)

    async def test_retries_dead_letters_and_replay_carry_the_bytes_untouched(self, stage: Stage) -> None:
        """Line 75: a dead letter is as unreadable at the broker as its message was; replayed, it is read again."""
        topic, group = stage.topic(), stage.group()
        recorder = Recorder(failing(3))
        with tempfile.TemporaryDirectory() as folder:
            chain = (compress("gzip", above=100), encrypt(KEYS), claim_check(Path(folder), above=40))
            await stage.consume(topic, group, recorder, transforms=chain)
            await stage.broker.producer(transforms=chain).publish(Message(topic, LARGE))
            await recorder.until_began(3, stage.patience)

            await stage.until_lag(f"{topic}-dlq", DEAD_LETTER_GROUP, 1)
            replayed = 0
            while not replayed:
                replayed = await stage.broker.replay(f"{topic}-dlq", where=lambda dead: dead.value != LARGE)

            assert [message.value for message in await recorder.until_done(1, stage.patience)] == [LARGE]

    async def test_a_topic_says_what_is_done_to_its_values(self, stage: Stage) -> None:
        """Line 75: both sides take it from the contract; a batch has what is good in it, what is not fails alone."""
        topic = Topic(stage.topic(), dict, transforms=(compress("gzip", above=10), encrypt(KEYS)))
        seen: list[dict[str, str]] = []

        async def handle(payloads: list[dict[str, str]]) -> None:
            seen.extend(payloads)

        await stage.consume(topic, stage.group(), handle, batch=Batch(size=3, wait=0.2))
        made = topic.messages([{"text": "a" * 50}, {"text": "b" * 50}])
        good = [message.replace(key=b"k") for message in made]  # whose order is kept
        bad = good[0].replace(id=None)
        await stage.publish_all([good[0], bad, good[1]])

        (dead,) = await stage.dead_letters(topic.name, 1)
        assert dead.headers["error"].startswith("the value cannot be decrypted")
        await eventually(lambda: len(seen) >= 2, stage.patience, "both are handled")
        assert seen == [{"text": "a" * 50}, {"text": "b" * 50}]
        assert all(b"text" not in message.value for message in good)
        assert json.loads(await _plain(topic, good[0])) == {"text": "a" * 50}


async def _plain(topic: Topic[dict[str, str]], message: Message) -> bytes:
    """What a reader with the keys sees in it."""
    from things_kit.engine.transforming import undoing  # noqa: PLC0415 - of this test alone

    undo = undoing((), {topic.name: topic.transforms})
    assert undo is not None
    return (await undo(message)).value
