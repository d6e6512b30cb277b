"""Gauges of consumers: how much they put off, and how their middleware is."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from things_kit.messaging.instrument import Watched
from things_kit.middleware import conventions as words


class Gauges:
    """The gauges of one provider, which has only one of a name, for all consumers that run.

    They are read in the thread of whoever exports them.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._watched: tuple[
            tuple[words.Attributes, Watched], ...
        ] = ()  # replaced, as another thread may read it
        meter = get_meter(words.SCOPE, meter_provider=provider, schema_url=words.SCHEMA)
        meter.create_observable_gauge(
            words.PUT_OFF, [self._put_off], "{message}", "Messages that wait as their handling was put off."
        )
        meter.create_observable_gauge(
            words.STATE, [self._states], "1", "1 for the state that a middleware of a consumer has."
        )

    def watch(self, said: words.Attributes, consumer: Watched) -> Callable[[], None]:
        """Observe a consumer until what this returns is called."""
        watched = said, consumer
        self._watched += (watched,)

        def end() -> None:
            self._watched = tuple(each for each in self._watched if each is not watched)

        return end

    def _put_off(self, _: CallbackOptions) -> Iterable[Observation]:
        totals: Counter[frozenset[tuple[str, str | int]]] = Counter()
        for said, consumer in self._watched:
            totals[frozenset(said.items())] += consumer.put_off
        return [Observation(total, dict(said)) for said, total in totals.items()]

    def _states(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(1, said | {words.STATE_OF: each.name, words.STATE_IS: each.state})
            for said, consumer in self._watched
            for each in consumer.middleware_states
        ]


_gauges: Final[WeakKeyDictionary[MeterProvider, Gauges]] = WeakKeyDictionary()


def gauges_of(provider: MeterProvider) -> Gauges:
    """The gauges of a provider, made when they are first asked for."""
    return _gauges.get(provider) or _gauges.setdefault(provider, Gauges(provider))
