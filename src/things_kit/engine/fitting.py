"""The middleware of one consumer: some is made for it, and fills its handler's parameters."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

from things_kit.engine.pipeline import NOTHING, Provides
from things_kit.messaging.handler import FitsConsumer, Fitted, Fitting, HandleBatch, HasState, Middleware
from things_kit.messaging.health import MiddlewareState


def provided_by(middleware: Sequence[Middleware]) -> Provides:
    """What fills a handler's parameters, by type."""
    fitting = [each.provides() for each in middleware if isinstance(each, FitsConsumer)]
    if not fitting:
        return NOTHING
    return MappingProxyType({kind: make for each in fitting for kind, make in each.items()})


def states_of(middleware: Sequence[object]) -> tuple[MiddlewareState, ...]:
    """How these are, where they say so."""
    return tuple(
        MiddlewareState(each.name, each.state)
        for each in middleware
        if isinstance(each, HasState) and isinstance(each.name, str) and isinstance(each.state, str)
    )


class FittedMiddleware:
    """What is around the handler of one consumer, outermost first."""

    def __init__(self, middleware: Sequence[Middleware], fitting: Fitting) -> None:
        self.provides = provided_by(middleware)
        self.single: list[Middleware] = []
        self._lists: list[Callable[[HandleBatch], HandleBatch]] = []
        self._fitted: list[Fitted] = []
        for each in middleware:
            if isinstance(each, FitsConsumer):
                fitted = each.fitted(fitting)
                self._fitted.append(fitted)
                self.single.append(fitted.around)
                self._lists.append(fitted.around_batch)
            else:
                self.single.append(each)
                self._lists += [each.handle_batch] if hasattr(each, "handle_batch") else []

    def around_batch(self, handle: HandleBatch) -> HandleBatch:
        """Around a handler of lists, where all there is knows what to do with them."""
        for wrap in reversed(self._lists):
            handle = wrap(handle)
        return handle

    async def start(self) -> None:
        """Before the first message. Raises ConfigError."""
        for fitted in self._fitted:
            await fitted.start()
