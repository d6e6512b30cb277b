"""FastStream beside ours: with the settings that promise most and are fastest with it, and with those of who sets nothing but a group."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import msgspec

from benchmarks.common import messages
from benchmarks.result import Result
from benchmarks.rounds import against, name, ratio
from things_kit import Broker

COUNT: Final = 5_000
"""Messages of one round: it is slower than what it stands beside."""

PATIENCE: Final = 60.0


class Setting(msgspec.Struct, frozen=True):
    """How its subscriber is made, and what that promises."""

    what: str
    guarantee: str
    subscribe: Callable[[Any, str], Callable[[Any], Any]]
    """Takes the broker and the topic, and returns what takes a handler."""

    bound: float | None = None
    """How many times as fast ours is to be at least; None where it promises less than ours."""


def on_error() -> Any:
    """What fails comes again. Raises ModuleNotFoundError."""
    return import_module("faststream").AckPolicy.NACK_ON_ERROR


# --- Kafka


def kafka_safe(broker: Any, topic: str) -> Any:
    return broker.subscriber(
        topic, group_id=name("faststream"), auto_offset_reset="earliest", ack_policy=on_error()
    )


def kafka_default(broker: Any, topic: str) -> Any:
    return broker.subscriber(topic, group_id=name("faststream"), auto_offset_reset="earliest")


# --- RabbitMQ


def _queue(topic: str) -> Any:
    """The queue of our group, as it is."""
    return import_module("faststream.rabbit").RabbitQueue(f"bench.{topic}", declare=False)


def rabbitmq_safe(broker: Any, topic: str) -> Any:
    channel = import_module("faststream.rabbit").Channel(prefetch_count=1000)
    return broker.subscriber(_queue(topic), channel=channel, ack_policy=on_error())


def rabbitmq_default(broker: Any, topic: str) -> Any:
    return broker.subscriber(_queue(topic))


# --- NATS


def nats_safe(broker: Any, topic: str) -> Any:
    package = import_module("faststream.nats")
    return broker.subscriber(
        topic,
        stream=package.JStream(topic, declare=False),
        durable=name("faststream"),
        pull_sub=package.PullSub(batch_size=500),
        ack_policy=on_error(),
    )


def nats_default(broker: Any, topic: str) -> Any:
    stream = import_module("faststream.nats").JStream(topic, declare=False)
    return broker.subscriber(topic, queue=name("faststream"), stream=stream)


# --- Redis


def redis_safe(broker: Any, topic: str) -> Any:
    stream = import_module("faststream.redis").StreamSub(
        topic, group="faststream", consumer="bench", last_id="0", max_records=1000
    )
    return broker.subscriber(stream=stream, ack_policy=on_error())


def redis_default(broker: Any, topic: str) -> Any:
    stream = import_module("faststream.redis").StreamSub(
        topic, group="faststream", consumer="bench", last_id="0"
    )
    return broker.subscriber(stream=stream)


SETTINGS: Final[Mapping[str, tuple[Setting, ...]]] = {
    "kafka": (
        Setting(
            "confluent, NACK_ON_ERROR",
            "at least once: a commit after each message",
            kafka_safe,
            40,
        ),
        Setting(
            "confluent, as by default",
            "may lose what a killed process had: commits by a timer, handled or not; what fails does not come again",
            kafka_default,
        ),
    ),
    "rabbitmq": (
        Setting(
            "prefetch 1,000, NACK_ON_ERROR",
            "at least once, no order by key",
            rabbitmq_safe,
            1,
        ),
        Setting(
            "as by default",
            "a killed process loses nothing, but what fails is rejected, so gone; no bound for what is under way",
            rabbitmq_default,
        ),
    ),
    "nats": (
        Setting(
            "JetStream, pull of 500, NACK_ON_ERROR",
            "at least once, no order by key",
            nats_safe,
            1,
        ),
        Setting(
            "JetStream with a queue, as by default",
            "a killed process loses nothing, but what fails is terminated, so gone",
            nats_default,
        ),
    ),
    "redis": (
        Setting(
            "Streams, 1,000 a read, NACK_ON_ERROR",
            "at least once only with a second subscriber that claims: what fails or was a killed process's stays pending",
            redis_safe,
            1,
        ),
        Setting(
            "Streams with a group, as by default",
            "what fails or was a killed process's stays pending",
            redis_default,
        ),
    ),
}


def broker_of(kind: str, url: str) -> Any:
    """One of FastStream's. Raises ImportError where it is not installed."""
    module, made = {
        "kafka": ("confluent", "KafkaBroker"),
        "rabbitmq": ("rabbit", "RabbitBroker"),
        "nats": ("nats", "NatsBroker"),
        "redis": ("redis", "RedisBroker"),
    }[kind]
    return getattr(import_module(f"faststream.{module}"), made)(url, logger=None)


async def fill(kind: str, broker: Broker, url: str, topic: str) -> None:
    """So many messages for the group `bench`, on Redis in FastStream's own form, as it can read no other."""
    await broker.declare(topic, ["bench"])
    rows = messages(COUNT, topic)
    if kind != "redis":
        await broker.producer().publish_batch(rows)
        return
    async with broker_of(kind, url) as publisher, import_module("redis.asyncio").from_url(url) as client:
        pipeline = client.pipeline(transaction=False)
        for row in rows:
            await publisher.publish(row.value, stream=topic, headers=row.headers, pipeline=pipeline)
        await pipeline.execute()


async def consumed(broker: Any, setting: Setting, topic: str) -> float:
    """Messages a second from the first to the last, so without its start; what came in the patience there is, where that ends."""
    times: list[float] = []
    done = asyncio.Event()

    async def handle(body: bytes) -> None:
        times.append(time.perf_counter())
        if len(times) == COUNT:
            done.set()

    setting.subscribe(broker, topic)(handle)
    async with broker:
        await broker.start()
        try:
            await asyncio.wait_for(done.wait(), PATIENCE)
        except TimeoutError:
            return len(times) / PATIENCE
    return (COUNT - 1) / (times[COUNT - 1] - times[0])


class FastStream:
    """What it came to in each round, with each setting; nothing where it is not installed."""

    def __init__(self, kind: str, url: str) -> None:
        self._kind = kind
        self._url = url
        self._rates: list[list[float]] = [[] for _ in SETTINGS[kind]]

    async def round(self, broker: Broker) -> None:
        """With each setting once more, from a topic of its own that ours fills."""
        for setting, rates in zip(SETTINGS[self._kind], self._rates, strict=True):
            try:
                peer = broker_of(self._kind, self._url)
            except ImportError:
                return
            topic = name("faststream")
            await fill(self._kind, broker, self._url, topic)
            rates.append(await consumed(peer, setting, topic))
            await broker.remove(topic)

    def rows(self, ours: Sequence[float]) -> list[Result]:
        """A row for each setting."""
        return [
            self._row(setting, ours, rates)
            for setting, rates in zip(SETTINGS[self._kind], self._rates, strict=True)
        ]

    def _row(self, setting: Setting, ours: Sequence[float], theirs: Sequence[float]) -> Result:
        what = f"{self._kind}: consume, against FastStream ({setting.what})"
        if not theirs:
            why = "FastStream is not installed: pip install --group bench"
            return Result(what, "not measured", "", True, why)
        times, least = ratio(ours, theirs), setting.bound
        return Result(
            what,
            f"{times:.1f} times",
            "" if least is None else f"at least {least:g}",
            least is None or times >= least,
            f"{against(ours, theirs)}; FastStream's: {setting.guarantee}",
        )
