"""Flow control keeps its word, and loses nothing, whatever happens to the processes and their broker."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Generator
from datetime import datetime
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from tests.testing.simulation.test_worlds import QUICK, Engine, each_of
from things_kit import Message, Reject
from things_kit.engine.broker import Broker
from things_kit.messaging.errors import RemoteError
from things_kit.middleware import (
    MemoryStore,
    circuit_breaker,
    claim_check,
    compress,
    deduplicate,
    encrypt,
    throttle,
)
from things_kit.testing import Faults, SimulationFailed, World, reached, simulate
from things_kit.testing.simulation.models import MODELS
from things_kit.testing.simulation.models.server import EPOCH

LIVING = Faults.only(
    "stop", "redelivery", "lost_acknowledgement", "unknown_publish", "slow_handler", "outage", "clock_skew"
)
"""Where no process dies."""

SKEW = 5.0
"""Seconds by which a process's clock may be wrong."""


def now() -> float:
    """The simulation's own time, which no process's clock is."""
    return asyncio.get_running_loop().time()


class Throttled(Engine):
    """Three attempts a second in each process, for any interval of a second."""

    rate = 3

    async def setup(self) -> None:
        self.starts: list[list[float]] = []

    def consumers(self, broker: Broker) -> list[Any]:
        starts: list[float] = []
        self.starts.append(starts)

        async def handle(message: Message) -> None:
            starts.append(now())
            if int(message.value) % 5 == 0 and message.attempt == 1:
                raise ConnectionError("not yet")

        consumer = broker.consumer(
            "orders",
            group="g",
            handler=handle,
            concurrency=4,
            retry=QUICK,
            middleware=[throttle(self.rate)],
        )
        return [consumer]

    def eventually(self) -> None:
        super().eventually()
        for starts in self.starts:
            for first, beyond in zip(starts, starts[self.rate :], strict=False):
                assert beyond - first >= 1.0 - 1e-6, f"{self.rate + 1} began within {beyond - first:g} s"
            if len(starts) > self.rate:
                reached("throttled")


class Broken(Engine):
    """A dependency is away for a while: few calls notice, and no message loses its last attempt to that.

    One that is alone in its process goes on failing, as that may be its own fault: its attempts last for as long.
    """

    failures = 3
    reset = 5.0
    away = (0.3, 20.3)

    async def setup(self) -> None:
        self.refused: list[int] = []

    def consumers(self, broker: Broker) -> list[Any]:
        number = len(self.refused)
        self.refused.append(0)

        async def handle(message: Message) -> None:
            if self.away[0] <= now() < self.away[1]:
                self.refused[number] += 1
                raise ConnectionError("it is away")
            await asyncio.sleep(0.02)

        breaker = circuit_breaker(failures=self.failures, reset=self.reset, on=ConnectionError)
        consumer = broker.consumer(
            "orders",
            group="g",
            handler=handle,
            concurrency=4,
            retry=QUICK,
            middleware=[breaker],
        )
        return [consumer]

    def eventually(self) -> None:
        super().eventually()
        most = self.failures + 4 + (self.away[1] - self.away[0]) / self.reset + self.retry.attempts
        assert max(self.refused) <= most, f"a dependency that is away was called {max(self.refused)} times"
        if max(self.refused) > self.failures:
            reached("opened")


class Deduplicated(Engine):
    """An effect that is not idempotent, once for each message; what is not done fails, and is done later."""

    async def setup(self) -> None:
        self.effects: Counter[str] = Counter()
        self.store: Any = MemoryStore()

    def consumers(self, broker: Broker) -> list[Any]:
        return [
            broker.consumer(
                "orders",
                group="g",
                handler=self.handle,
                concurrency=4,
                retry=QUICK,
                middleware=[deduplicate(self.store)],
            )
        ]

    async def handle(self, message: Message) -> None:
        await asyncio.sleep(0.05)
        if int(message.value) % 5 == 0 and message.attempt == 1:
            raise ConnectionError("not yet")
        assert message.id
        self.effects[message.id] += 1

    def eventually(self) -> None:
        super().eventually()
        self.history.effect_once(self.effects)
        if len(self.history.handlings) > self.count + 4:
            reached("again")


class InATable(Deduplicated):
    """The same, with the marks in a database."""

    count = 8

    async def setup(self) -> None:
        await super().setup()
        self.store = create_engine("sqlite://", poolclass=StaticPool)
        await deduplicate(self.store).create()


class Killed(InATable):
    """Processes die as well: each message takes effect, and again only where who did it died before it was noted."""

    async def setup(self) -> None:
        await super().setup()
        self.deaths = 0

    def crashed(self, process: int) -> None:
        self.deaths += 1

    def eventually(self) -> None:
        self.history.nothing_lost()
        assert set(self.effects) == set(self.history.published("orders").ids)
        assert self.effects.total() <= len(self.effects) + 4 * self.deaths


class Asked(World):
    """Requests of which some are refused and some come too late: each gets its own answer, or the word that there is none."""

    async def setup(self) -> None:
        self.wrong: list[str] = []
        self.ended: set[int] = set()

    def consumers(self, broker: Broker) -> list[Any]:
        async def price(message: Message) -> int:
            if int(message.value) % 4 == 1:
                raise Reject("there is no price")
            await asyncio.sleep(8.0 if int(message.value) % 4 == 2 else 0.02)
            return 2 * int(message.value)

        async def order(message: Message) -> None:
            number = int(message.value)
            try:
                answer = await broker.request(Message("prices", message.value), reply=int, timeout=5)
            except TimeoutError:
                reached("too late")
            except RemoteError as error:
                reached("refused")
                if number % 4 != 1 or "there is no price" not in str(error):
                    self.wrong.append(f"{number} was refused: {error}")
            else:
                reached("answered")
                if answer != 2 * number or number % 4 == 1:
                    self.wrong.append(f"{number} was answered by {answer}")
            self.ended.add(number)

        common: dict[str, Any] = {"concurrency": 4, "retry": QUICK}
        return [
            broker.consumer("prices", group="pricing", handler=price, **common),
            broker.consumer("orders", group="g", handler=order, **common),
        ]

    async def workload(self, producer: Any) -> None:
        await producer.publish_batch([Message("orders", b"%d" % number) for number in range(8)])

    def always(self) -> None:
        assert not self.wrong

    def eventually(self) -> None:
        assert self.ended == set(range(8))
        for each in self.history.handlings:
            if each.group == "pricing":
                deadline = datetime.fromisoformat(each.message.headers["deadline"]).timestamp()
                late = EPOCH + each.began - deadline
                assert late < 2 * SKEW, f"a request was begun {late:g} s after its deadline"


class Warehouse:
    """A store of claims that is away for a while, and outlives all processes."""

    away = (1.0, 9.0)

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes, /) -> None:
        await self._ask()
        self.values[key] = value

    async def get(self, key: str, /) -> bytes | None:
        await self._ask()
        return self.values.get(key)

    async def sweep(self, before: datetime, /) -> None:
        self.values = {key: value for key, value in self.values.items() if key >= f"{before:%Y-%m-%d}"}

    async def _ask(self) -> None:
        await asyncio.sleep(0.01)
        if self.away[0] <= now() < self.away[1]:
            reached("away")
            raise ConnectionError("the warehouse is away")


class Claimed(Engine):
    """Pictures go by claims, encrypted and compressed: whoever dies, each arrives as it was, and is asked for after retries too."""

    count = 8

    async def setup(self) -> None:
        self.store = Warehouse()
        self.seen: set[int] = set()
        self.transforms = (
            compress("gzip", above=64), encrypt({"k": bytes(32)}), claim_check(self.store, above=256),
        )  # fmt: skip

    def picture(self, number: int) -> bytes:
        """It cannot be compressed."""
        return b"".join(sha256(b"%d of %d" % (part, number)).digest() for part in range(32))

    def consumers(self, broker: Broker) -> list[Any]:
        producer = broker.producer(transforms=self.transforms)

        async def paint(message: Message) -> None:
            await producer.publish(Message("pictures", self.picture(int(message.value)), key=message.value))

        async def show(message: Message) -> None:
            assert message.key is not None
            assert message.value == self.picture(int(message.key))
            if int(message.key) % 5 == 0 and message.attempt == 1:
                raise ConnectionError("not yet")
            self.seen.add(int(message.key))

        common: dict[str, Any] = {"concurrency": 4, "retry": QUICK}
        return [
            broker.consumer("orders", group="g", handler=paint, **common),
            broker.consumer("pictures", group="gallery", handler=show, transforms=self.transforms, **common),
        ]

    def eventually(self) -> None:
        super().eventually()
        assert self.seen == set(range(self.count))
        assert all(len(message.value) < 256 for message in self.history.published("pictures"))


class Question:
    """What a store is asked, and whether anybody waits for the answer."""

    def __init__(self, asking: Coroutine[Any, Any, bytes | None]) -> None:
        self.asking = asking
        self.awaited = False

    def __await__(self) -> Generator[Any, Any, bytes | None]:
        self.awaited = True
        return self.asking.__await__()


class Questioned(Claimed):
    """Nothing is asked and then forgotten, though connections break while the store is away."""

    async def setup(self) -> None:
        await super().setup()
        self.questions: list[Question] = []
        get = self.store.get
        asking: Any = lambda key, /: self.ask(get(key))  # noqa: E731 - in the place of a method
        self.store.get = asking  # type: ignore[method-assign]

    def ask(self, asking: Coroutine[Any, Any, bytes | None]) -> Question:
        self.questions.append(Question(asking))
        return self.questions[-1]

    def eventually(self) -> None:
        super().eventually()
        assert all(question.awaited for question in self.questions), "a question was asked, and forgotten"


EVERYWHERE = [
    (Claimed, ["away"], None),
    (Throttled, ["throttled"], None),
    (Broken, ["opened"], None),
    (Deduplicated, ["again"], LIVING),
    (Asked, ["too late", "refused", "answered"], None),
]


@pytest.mark.parametrize(("world", "sometimes", "faults"), EVERYWHERE)
@pytest.mark.parametrize("broker", MODELS)
def test_on_every_broker(
    broker: str, world: type[World], sometimes: list[str], faults: Faults | None
) -> None:
    simulate(world, seeds=each_of(len(MODELS)), broker=broker, faults=faults, sometimes=sometimes)


@pytest.mark.parametrize(("world", "faults"), [(InATable, LIVING), (Killed, None)])
def test_marks_in_a_table(world: type[World], faults: Faults | None) -> None:
    simulate(world, seeds=each_of(1), broker="sqlite", faults=faults)


def test_what_is_fetched_for_a_message_is_waited_for_though_that_is_lost() -> None:
    simulate(Questioned, seeds=10, broker="nats", faults=LIVING, sometimes=["away"])


def test_without_its_marks_an_effect_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "done", MemoryStore.release)
    with pytest.raises(SimulationFailed, match="took effect 2 times"):
        simulate(Deduplicated, seeds=50, broker="redis", faults=Faults.only("lost_acknowledgement"))
