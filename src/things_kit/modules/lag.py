"""Gauges of how far the consumers of an app lag behind, asked of the brokers now and then, and how old what they hold is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from things_kit.app.app import App
from things_kit.engine.broker import Broker
from things_kit.messaging.errors import BrokerUnavailable
from things_kit.middleware import conventions as words
from things_kit.modules.relays import brokers_of

log = logging.getLogger("things_kit.telemetry")

FIRST: Final = 1.0
"""Seconds until brokers are asked for the first time: consumers start meanwhile."""


class Gauge:
    """The gauge of one provider, which has only one of a name, however many apps run, or how often."""

    def __init__(self, provider: MeterProvider) -> None:
        self.lags: tuple[Lag, ...] = ()
        meter = get_meter(words.SCOPE, meter_provider=provider, schema_url=words.SCHEMA)
        meter.create_observable_gauge(
            words.LAG, [self._observe], "{message}", "Messages that a group has not acknowledged."
        )
        meter.create_observable_gauge(
            words.AGE, [self._observe_ages], "s", "How long the oldest message in hand has been published."
        )

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        return [observation for lag in self.lags for observation in lag.known]

    def _observe_ages(self, _: CallbackOptions) -> Iterable[Observation]:
        return [observation for lag in self.lags for observation in lag.ages]


_gauges: Final[WeakKeyDictionary[MeterProvider, Gauge]] = WeakKeyDictionary()


class Lag:
    """The gauge `things_kit.consumer.lag`: for each topic and group of the app, as of when its broker was last asked.

    Whoever reads the gauge is given what is known, and waits for no broker. What a broker cannot say, or could not when
    it was asked, has no figure; neither has an ephemeral group, whose name means nothing to anybody. The gauge
    `things_kit.consumer.age` is of what this process holds.
    """

    def __init__(self, app: App, provider: MeterProvider) -> None:
        self._app = app
        self._gauge = _gauges.get(provider) or _gauges.setdefault(provider, Gauge(provider))
        self.known: list[Observation] = []
        self.ages: list[Observation] = []

    @asynccontextmanager
    async def watched(self, interval: float) -> AsyncIterator[None]:
        """Ask every `interval` seconds, until left."""
        watching = asyncio.create_task(self._watch(interval), name="lag")
        self._gauge.lags += (self,)
        try:
            yield
        finally:
            self._gauge.lags = tuple(lag for lag in self._gauge.lags if lag is not self)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, interval: float) -> None:
        await asyncio.sleep(min(FIRST, interval))
        while True:
            brokers = brokers_of(self._app)
            self.ages = [observation for broker in brokers for observation in _ages(broker)]
            asked = await asyncio.gather(*(self._ask(broker, interval) for broker in brokers))
            self.known = [observation for each in asked for observation in each]
            await asyncio.sleep(interval)

    async def _ask(self, broker: Broker, patience: float) -> list[Observation]:
        consumed = {
            (topic, group)
            for consumer in broker.consumers
            if (group := consumer.options.group) is not None
            for topic in consumer.options.topics
        }
        answers = await asyncio.gather(
            *(_lag(broker, *each, max(patience, FIRST)) for each in sorted(consumed))
        )
        return [answer for answer in answers if answer is not None]


def _ages(broker: Broker) -> list[Observation]:
    """How old what the consumers of a broker hold is, the oldest of each topic and group."""
    found: dict[tuple[str, str], float] = {}
    for consumer in broker.consumers:
        if (group := consumer.options.group) is not None:
            for topic, age in consumer.ages().items():
                found[topic, group] = max(age, found.get((topic, group), 0.0))
    return [Observation(age, words.of_lag(broker.url.endpoint, *each)) for each, age in found.items()]


async def _lag(broker: Broker, topic: str, group: str, patience: float) -> Observation | None:
    """How far a group lags behind; None where nobody can say now: that is no error of the app."""
    try:
        async with asyncio.timeout(patience):
            lag = await broker.lag(topic, group)
    except (BrokerUnavailable, TimeoutError):
        return None  # health says so
    except Exception as error:  # noqa: BLE001 - as above, but nobody else would say it
        log.debug("%s: the lag of %s as %s cannot be read: %s", broker.url.display, topic, group, error)
        return None
    return None if lag is None else Observation(lag, words.of_lag(broker.url.endpoint, topic, group))
