"""Operations: lines 40 to 44: what whoever runs it may rely on."""

import asyncio
import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import pytest

from things_kit import BrokerUnavailable, ClosedError, ConfigError, Message, Retry, ThingsKitError, connect
from things_kit.engine.driver import Listing
from things_kit.engine.looking import topics_of
from things_kit.engine.replay import Reading
from things_kit.testing.conformance.base import Suite
from things_kit.testing.conformance.recorder import Gate, Recorder, failing
from things_kit.testing.conformance.stage import Stage
from things_kit.testing.conformance.waiting import eventually, throughout

SECRET = "hunter2-geheim"  # noqa: S105 - of nobody


OF_THE_LOOP: Final = "asyncio_"
"""How the threads of a loop's own executor are named. Names are looked up and proxies are found in them, by asyncio itself
and by clients: there are as many as there ever were calls at once, and the loop ends them."""


class Footprint(msgspec.Struct, frozen=True):
    """What a process holds that a closed broker must not."""

    tasks: frozenset[str]
    threads: frozenset[str]
    files: dict[str, int]

    @classmethod
    def now(cls) -> "Footprint":
        """What this process holds at this moment, without the task that asks."""
        gc.collect()
        return cls(
            tasks=frozenset(repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()),
            threads=frozenset(
                f"{thread.name} {thread.ident}"
                for thread in threading.enumerate()
                if not thread.name.startswith(OF_THE_LOOP)
            ),
            files=_open_files(),
        )

    def beyond(self, before: "Footprint") -> list[str]:
        """What is held now and was not held before."""
        files = Counter(self.files) - Counter(before.files)
        return [*sorted(self.tasks - before.tasks), *sorted(self.threads - before.threads), *sorted(files)]


def _open_files() -> dict[str, int]:
    directory = Path("/proc/self/fd")
    if not directory.exists():
        return {}
    targets: Counter[str] = Counter()
    for entry in directory.iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # the one that lists this directory
            continue
        kind, _, _ = target.partition(":[")  # sockets and pipes have numbers for names
        targets[kind] += 1
    return dict(targets)


class OperationsSuite(Suite):
    """Outages are waited out, numbers are right, secrets stay secret, and closing leaves nothing behind."""

    async def test_publish_waits_out_an_outage(self, stage: Stage) -> None:
        """Line 40: it returns once the broker is back and has the message."""
        stage.needs_outage()
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group)
        await stage.publish(topic, b"before")
        await recorder.until_done(1, stage.patience)
        async with stage.outage():
            publishing = asyncio.create_task(stage.publish(topic, b"during"))
            done, _ = await asyncio.wait({publishing}, timeout=0.5)
            assert not done, "the broker is away, but publish ended"
        await asyncio.wait_for(publishing, 2 * stage.patience)
        await eventually(lambda: b"during" in recorder.values, stage.patience)

    async def test_publish_fails_in_time_when_the_outage_lasts(self, stage: Stage) -> None:
        """Line 40: after publish_timeout, with BrokerUnavailable; afterwards the same producer works again."""
        stage.needs_outage()
        topic = stage.topic()
        await stage.keep(topic)
        limit = 3.0
        broker = await stage.open(publish_timeout=limit)
        producer = broker.producer()
        await stage.until_published(producer, Message(topic, b"before"))
        async with stage.outage():
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                await producer.publish(Message(topic, b"during"))
            assert 0.9 * limit <= time.monotonic() - began <= limit + stage.patience
        await stage.until_published(producer, Message(topic, b"after"))

    async def test_a_broker_that_is_not_there_is_reported_in_time(self, stage: Stage) -> None:
        """Line 40: at connect or at the first use."""
        if stage.target.absent is None:
            pytest.skip("this target has no URL behind which there is nobody")
        url = stage.target.absent
        broker = connect(f"{url}{'&' if '?' in url else '?'}publish_timeout=0.5")
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            async with broker:
                await broker.producer().publish(Message("orders", b"x"))
        assert time.monotonic() - began <= 0.5 + stage.patience

    async def test_lag_is_what_is_not_acknowledged(self, stage: Stage) -> None:
        """Line 41: by group, handed out or not, through handling, failing and stopping."""
        topic, group, other = stage.topic(), stage.group("billing"), stage.group("shipping")
        await stage.broker.declare(topic, groups=[group, other])
        if not stage.capabilities.lag:
            assert await stage.lag(topic, group) is None
            return
        assert await stage.lag(topic, group) == 0
        await stage.publish(topic, *(b"%d" % n for n in range(5)), key=b"k")
        for of in (group, other):
            await stage.until_lag(topic, of, 5)
        gate = Gate(passing=lambda message: message.value in {b"0", b"1"})
        recorder = Recorder(gate)
        consumer = await stage.consume(topic, group, recorder, drain_timeout=0.1)
        await recorder.until_began(3, stage.patience)
        await stage.until_lag(topic, group, 3)
        await throughout(lambda: len(recorder.done) == 2, 0.1)
        assert await stage.lag(topic, group) == 3
        await consumer.stop()
        await stage.until_lag(topic, group, 3)
        rest = await stage.record(topic, group)
        await rest.until_done(3, stage.patience)
        await stage.until_lag(topic, group, 0)
        await stage.until_lag(topic, other, 5)

    async def test_a_message_in_back_off_lags(self, stage: Stage) -> None:
        """Line 41: it is not acknowledged, wherever it waits."""
        topic, group = stage.topic(), stage.group()
        recorder = await stage.record(topic, group, failing(1, lambda: Retry(after=3600)))
        await stage.publish(topic, b"x", b"y", key=b"k")
        await recorder.until_began(1, stage.patience)
        await stage.until_lag(topic, group, 2)

    async def test_a_removed_topic_is_gone(self, stage: Stage) -> None:
        """Line 41: with its messages and groups; removing twice is fine, and it can be made anew."""
        topic, group = stage.topic(), stage.group()
        await stage.broker.declare(topic, groups=[group])
        await stage.publish(topic, b"old")
        await stage.broker.remove(topic)
        await stage.broker.remove(topic)
        recorder = await stage.record(topic, group)
        await stage.publish(topic, b"new")
        await recorder.until_done(1, stage.patience)
        assert recorder.values == [b"new"]

    async def test_a_removed_group_holds_back_nothing_and_lags_by_nothing(self, stage: Stage) -> None:
        """Line 41: it alone is gone, with all that it had not acknowledged; removing it twice is fine."""
        topic, kept, removed = stage.topic(), stage.group("billing"), stage.group("shipping")
        await stage.broker.declare(topic, groups=[kept, removed])
        await stage.publish(topic, b"before", key=b"k")
        await stage.until_lag(topic, removed, 1)
        await stage.broker.remove(topic, group=removed)
        await stage.broker.remove(topic, group=removed)
        await stage.until_lag(topic, kept, 1)
        recorder = await stage.record(topic, kept)
        await stage.publish(topic, b"after", key=b"k")
        await recorder.until_done(2, stage.patience)
        assert recorder.values == [b"before", b"after"]
        await stage.until_lag(topic, kept, 0)
        await stage.broker.declare(topic, groups=[removed])
        await self._begins_anew(stage, topic, removed)

    async def _begins_anew(self, stage: Stage, topic: str, group: str) -> None:
        """What a group that was removed gets: as any new one, what is retained, and else what comes from now on."""
        retained = [b"before", b"after"] if stage.capabilities.retained else []
        await stage.until_lag(topic, group, len(retained))
        recorder = await stage.record(topic, group)
        await stage.publish(topic, b"later", key=b"k")
        await recorder.until_done(len(retained) + 1, stage.patience)
        assert recorder.values == [*retained, b"later"]

    async def test_it_tells_which_topics_and_groups_there_are(self, stage: Stage) -> None:
        """Line 43: those that were declared, where the driver can tell at all."""
        driver = stage.broker.transmission.driver
        if not await stage.tells_names() or not isinstance(driver, Listing):
            pytest.skip("its broker tells no names")
        topic, missing, group = stage.topic(), stage.topic("missing"), stage.group()
        await stage.keep(topic, group)
        await stage.record(topic, group)
        assert topic in await topics_of(stage.broker)
        assert missing not in await topics_of(stage.broker)

        async def told() -> bool:
            return group in (await driver.groups([topic]))[topic]

        await eventually(told, stage.patience)

    async def test_who_looks_back_gets_what_is_there_and_leaves_no_trace(self, stage: Stage) -> None:
        """Line 43: a look at what a topic has takes nothing from its groups."""
        if not stage.capabilities.retained:
            pytest.skip("its broker keeps nothing for those who come later")
        topic, group = stage.topic(), stage.group()
        await stage.keep(topic, group)
        await stage.publish(topic, b"1", b"2")
        seen: list[bytes] = []
        async with Reading(stage.broker.transmission, topic, None, create=False) as reading:
            async for deliveries in reading.batches():
                seen += [delivery.message.value for delivery in deliveries]
                await reading.acknowledge(deliveries)
            await stage.publish(topic, b"3")
            async for deliveries in reading.follow():
                seen += [delivery.message.value for delivery in deliveries]
                break
        assert sorted(seen) == [b"1", b"2", b"3"]
        await stage.until_lag(topic, group, 3)

    async def test_health_tells_what_a_consumer_does(self, stage: Stage) -> None:
        """Line 42: what it holds and for how long, when it last settled, and that it runs."""
        topic, group = stage.topic(), stage.group()
        gate = Gate()
        recorder = Recorder(gate)
        consumer = await stage.consume(topic, group, recorder)
        before = await stage.broker.health()
        assert (before.ok, before.reason) == (True, None)
        [idle] = before.consumers
        assert (idle.topics, idle.group, idle.running) == ((topic,), group, True)
        assert (idle.in_flight, idle.oldest_in_flight, idle.last_settled) == (0, None, None)
        await stage.publish(topic, b"x")
        await recorder.until_began(1, stage.patience)

        async def held_for(seconds: float) -> bool:
            [busy] = (await stage.broker.health()).consumers
            return busy.in_flight == 1 and (busy.oldest_in_flight or 0.0) >= seconds

        await eventually(lambda: held_for(0.2), stage.patience)
        gate.open()

        async def settled() -> bool:
            [free] = (await stage.broker.health()).consumers
            return free.in_flight == 0 and free.last_settled is not None

        await eventually(settled, stage.patience)
        await consumer.stop()
        assert all(not one.running for one in (await stage.broker.health()).consumers)
        assert (await stage.broker.health()).ok

    async def test_health_turns_bad_when_the_broker_is_gone_and_good_again(self, stage: Stage) -> None:
        """Line 42: with a reason."""
        stage.needs_outage()
        topic = stage.topic()
        recorder = await stage.record(topic, stage.group())

        async def ok() -> bool:
            return (await stage.broker.health()).ok

        assert await ok()
        async with stage.outage():
            publishing = asyncio.create_task(stage.publish(topic, b"during"))  # somebody notices
            await eventually(_ill(stage), stage.patience, "health says that the broker is gone")
        await asyncio.wait_for(publishing, 2 * stage.patience)
        await eventually(ok, 2 * stage.patience, "health says that the broker is back")
        await recorder.until_done(1, stage.patience)

    async def test_no_password_is_shown(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        """Line 43: in no log line at any level, no error and no repr."""
        scheme = stage.target.url.partition("://")[0]
        secrets = [SECRET, *([stage.target.secret] if stage.target.secret else [])]
        said: list[str] = []
        with caplog.at_level(logging.DEBUG):
            for url in (
                f"{scheme}://user:{SECRET}@nowhere.invalid:1/x?no_such_option=1",
                f"{scheme}://user:{SECRET}@nowhere.invalid:1/x?publish_timeout=soon",
                f"{scheme}://user:{SECRET}@nowhere.invalid:1/x#fragment",
                stage.target.at(no_such_option=SECRET),
            ):
                with pytest.raises(ConfigError) as raised:
                    connect(url)
                said += [_chain(raised.value)]
            topic = stage.topic()
            broker = await stage.open()
            recorder = await stage.record(topic, stage.group(), failing(1), broker=broker)
            await stage.publish(topic, b"x", broker=broker)
            await recorder.until_done(1, stage.patience)
            said += [
                repr(broker),
                str(broker),
                repr(broker.url),
                repr(broker.capabilities),
                repr(await broker.health()),
            ]
            await broker.close()
            with pytest.raises(ThingsKitError) as after:
                await broker.lag(topic, group=stage.group())
            said += [_chain(after.value)]
        for secret in secrets:
            assert not [text for text in (*said, *caplog.messages) if secret in text]

    async def test_closing_leaves_nothing_behind(self, stage: Stage) -> None:
        """Line 44: no task, thread, socket or file, whatever was going on."""
        await self._use_everything(stage)  # imports and pools that a process needs once
        before = Footprint.now()
        for _ in range(3):
            await self._use_everything(stage)

        def left() -> list[str]:
            return Footprint.now().beyond(before)

        try:
            await eventually(lambda: not left(), stage.patience, "nothing is left")
        except AssertionError:
            raise AssertionError(f"left behind: {left()}") from None

    async def _use_everything(self, stage: Stage) -> None:
        topic, group = stage.topic(), stage.group()
        async with connect(stage.target.url) as broker:
            fails = broker.consumer(
                topic, group=group, handler=Recorder(failing(9, lambda: Retry(after=3600))), drain_timeout=0.1
            )
            hangs = broker.consumer(
                topic, group=stage.group("hanging"), handler=Recorder(Gate()), drain_timeout=0.1
            )
            seen = threading.Event()
            plain = broker.consumer(topic, group=None, handler=lambda _: seen.set())
            for consumer in (fails, hangs, plain):
                await consumer.start()
            producer = broker.producer()
            await producer.publish(Message(topic, b"x"))
            await eventually(seen.is_set, stage.patience)
            await plain.stop()

    async def test_what_is_closed_says_so(self, stage: Stage) -> None:
        """Line 44: closing twice is fine; using it afterwards is a ClosedError, not a hang."""
        topic = stage.topic()
        await stage.keep(topic)
        broker = await stage.open()
        producer = broker.producer()
        await producer.publish(Message(topic, b"x"))
        await producer.close()
        await producer.close()
        with pytest.raises(ClosedError):
            await producer.publish(Message(topic, b"x"))
        with pytest.raises(ClosedError):
            await producer.publish_batch([Message(topic, b"x")])
        late = broker.producer()
        await broker.close()
        await broker.close()
        with pytest.raises(ClosedError):
            await late.publish(Message(topic, b"x"))
        with pytest.raises(ClosedError):
            broker.producer()


def _chain(error: BaseException | None) -> str:
    """An error's text and repr, with all that it was caused by."""
    told = []
    while error is not None:
        told.append(f"{error} {error!r}")
        error = error.__cause__ or error.__context__
    return " / ".join(told)


def _ill(stage: Stage) -> Callable[[], Awaitable[bool]]:
    async def ill() -> bool:
        health = await stage.broker.health()
        return not health.ok and bool(health.reason)

    return ill
