"""The contract of telemetry: what wraps sending and handling, where somebody wants to see them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from things_kit.messaging.handler import HandleBatch, Middleware
from things_kit.messaging.health import MiddlewareState
from things_kit.messaging.message import Message

Send: TypeAlias = Callable[[Sequence[Message]], Awaitable[dict[int, Exception]]]
"""Sends messages; returns when each is confirmed or has failed, with the errors by index."""


Ask: TypeAlias = Callable[[Message], Awaitable[Message]]
"""Sends a request; returns its reply."""


class Endpoint(msgspec.Struct, frozen=True):
    """The broker at the other end; the host where there is just one."""

    scheme: str
    host: str | None = None
    port: int | None = None


class Instrument(Protocol):
    """Wraps what a broker's producers and consumers do, once for each of them, when it is made.

    What it wraps must be called once, with as many messages in the same order, and its outcome passed on.
    """

    def sending(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """For a producer, also those that publish dead letters, delayed retries and replays."""

    def handling(self, endpoint: Endpoint, group: str | None) -> Middleware:
        """For a consumer, outside of its own middleware. The group is None where it is ephemeral.

        What the handler raises is answered in the context in which this leaves the worker.
        """

    def handling_batches(self, endpoint: Endpoint, group: str | None) -> Callable[[HandleBatch], HandleBatch]:
        """The same for a consumer of batches."""


@runtime_checkable
class FollowsRequests(Protocol):
    """An instrument that also sees requests and their replies.

    What it wraps must be called once with that message, and its outcome passed on.
    """

    def asking(self, endpoint: Endpoint) -> Callable[[Ask], Ask]:
        """For requests, around the sending: until the reply is there."""

    def answering(self, endpoint: Endpoint) -> Callable[[Send], Send]:
        """For replies, in the context in which their handler ended, instead of `sending`: each goes to another topic."""


class Watched(Protocol):
    """A consumer that runs, as an instrument sees it. All of it may be read in any thread."""

    @property
    def topics(self) -> tuple[str, ...]:
        """What it consumes."""

    @property
    def put_off(self) -> int:
        """How many messages wait by `Later`."""

    @property
    def middleware_states(self) -> tuple[MiddlewareState, ...]:
        """How its middleware is, where that has a state."""


@runtime_checkable
class WatchesConsumers(Protocol):
    """An instrument that also looks at consumers from time to time, such as for gauges."""

    def watch(self, endpoint: Endpoint, group: str | None, consumer: Watched) -> Callable[[], None]:
        """A consumer starts; what this returns is called when it has stopped. The group is None where it is ephemeral."""
