"""`@app.on`: functions and methods as consumers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from things_kit import (
    App,
    Batch,
    Broker,
    ConfigError,
    Handle,
    Message,
    Producer,
    Topic,
    WiringError,
    module,
    provide,
)
from things_kit.modules import config, memory, sqlite
from things_kit.testing import MockHandler


class Order(msgspec.Struct):
    id: str
    cents: int


class Invoice(msgspec.Struct):
    order: str


orders = Topic("orders", Order, key="id")
invoices = Topic("invoices", Invoice, key="order")


class Ledger:
    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.changed = asyncio.Event()

    def add(self, entry: Any) -> None:
        self.entries.append(entry)
        self.changed.set()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.entries) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "config.yaml").write_text(text)

    return write


async def test_a_function_handles_a_topic_with_what_it_asks_for_and_its_result_is_published() -> None:
    app = App(config.module, memory.module, provide(Ledger))

    @app.on(orders, group="billing", concurrency=8, publish=invoices)
    async def bill(order: Order, ledger: Ledger, message: Message) -> Invoice:
        ledger.add((order.id, message.key))
        return Invoice(order.id)

    @app.on(invoices, group="post")
    def send(invoice: Invoice, *, ledger: Ledger, copies: int = 2) -> None:
        ledger.add((invoice, copies))

    app.check()
    async with app:
        await (await app.get(Producer)).publish(orders, Order("o-1", 5))
        ledger = await app.get(Ledger)
        await ledger.has(2)
        assert ledger.entries == [("o-1", b"o-1"), (Invoice("o-1"), 2)]
        consumers = (await (await app.get(Broker)).health()).consumers
        assert {(each.topics, each.group) for each in consumers} == {
            (("orders",), "billing"),
            (("invoices",), "post"),
        }
    assert await bill(Order("o-2", 5), Ledger(), Message("orders", b"")) == Invoice("o-2"), "it is unchanged"


class Transaction:
    """What a middleware opens for each message."""


class Opens:
    """A middleware that fills parameters of the type `Transaction`."""

    def __init__(self) -> None:
        self.opened: Transaction | None = None

    def provides(self) -> Mapping[type, Callable[[], Any]]:
        return {Transaction: lambda: self.opened}

    def __call__(self, handle: Handle, /) -> Handle:
        async def handled(message: Message) -> None:
            self.opened = Transaction()
            await handle(message)

        return handled


async def test_what_middleware_fills_is_not_asked_of_the_app() -> None:
    app, one, other = App(config.module, memory.module, provide(Ledger)), Opens(), Opens()

    @app.on(orders, group="billing", middleware=[one])
    async def bill(order: Order, transaction: Transaction, message: Message, *, ledger: Ledger) -> None:
        ledger.add((order.id, transaction is one.opened, message.key))

    @app.on(orders, group="post", middleware=[other])
    def send(order: Order, ledger: Ledger, transaction: Transaction) -> None:
        ledger.add(transaction is other.opened)

    app.check()
    async with app:
        ledger = await app.get(Ledger)
        for _ in range(2):
            await (await app.get(Producer)).publish(orders, Order("o-1", 5))
        await ledger.has(4)
        assert sorted(ledger.entries, key=str) == [("o-1", True, b"o-1")] * 2 + [True] * 2


async def test_a_marked_method_is_that_of_every_provided_class_which_has_it() -> None:
    billing = module("billing")

    class Bills:
        def __init__(self, ledger: Ledger) -> None:
            self.ledger = ledger

        @billing.on("orders", group="billing")
        async def bill(self, order: Order, producer: Producer) -> None:
            self.ledger.add((type(self).__name__, order.id, isinstance(producer, Producer)))

    app = App(config.module, memory.module, billing, provide(Bills), provide(Ledger))
    async with app:
        await (await app.get(Producer)).publish(orders.message(Order("o-1", 5)))
        ledger = await app.get(Ledger)
        await ledger.has(1)
        assert ledger.entries == [("Bills", "o-1", True)]


async def test_it_says_which_broker_where_there_are_two(written: Callable[[str], None]) -> None:
    written("sqlite: {path: events.db}\n")
    app = App(config.module, memory.module, sqlite.module, provide(Ledger))

    @app.on(["orders", invoices], group="audit", broker="sqlite", batch=Batch(size=2))
    async def audit(payloads: list[bytes], ledger: Ledger) -> None:
        for payload in payloads:
            ledger.add(payload)

    async with app:
        await (await app.get(Annotated[Producer, "sqlite"])).publish(Message("orders", b"1"))
        await (await app.get(Ledger)).has(1)


async def test_what_it_does_not_say_is_as_the_section_says(written: Callable[[str], None]) -> None:
    written("memory: {group_id: from-section, concurrency: 5}\n")
    app = App(config.module, memory.module)

    @app.on("orders")
    async def handle(message: Message) -> None: ...

    async with app:
        (consumer,) = (await app.get(Broker)).consumers
        assert (consumer.group, consumer.options.concurrency) == ("from-section", 5)


def _problem(app: App) -> str:
    with pytest.raises(WiringError) as raised:
        app.check()
    assert len(raised.value.mistakes) == 1
    assert "test_decorators.py:" in str(raised.value)
    return raised.value.mistakes[0]


def test_check_finds_a_provider_that_is_missing() -> None:
    app = App(config.module, memory.module)

    @app.on("orders", group="g")
    async def bill(order: Order, ledger: Ledger) -> None: ...

    assert "nothing provides Ledger, which bill (" in _problem(app)
    assert "asks for as 'ledger'" in _problem(app)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ({"concurency": 8}, "bill: has no argument 'concurency'; did you mean 'concurrency'?"),
        ({"concurrency": 0}, "bill: concurrency must be a whole number from 1; it is 0"),
        ({"batch": Batch()}, "bill: the batch handler bill must take a list"),
        (
            {"broker": "kafka"},
            "bill is to consume from 'kafka', which is no broker of this app; there is memory",
        ),
        ({"middleware": [5]}, "bill: middleware is a function"),
        ({"middleware": 5}, "bill: middleware is a list"),
    ],
    ids=str,
)
def test_check_finds_an_argument_that_is_wrong(arguments: dict[str, Any], mistake: str) -> None:
    app = App(config.module, memory.module)

    @app.on("orders", group="g", **arguments)
    async def bill(message: Message) -> None: ...

    assert mistake in _problem(app)


def test_check_finds_a_handler_of_another_payload() -> None:
    app = App(config.module, memory.module)

    @app.on(orders, group="g")  # type: ignore[arg-type] # which is what is to be found
    async def bill(invoice: Invoice) -> None: ...

    found = _problem(app)
    assert "Invoice" in found
    assert "Order" in found


def test_check_finds_a_handler_without_a_parameter_and_a_type_that_cannot_be_found() -> None:
    app = App(config.module, memory.module)

    @app.on("orders", group="g")
    async def nothing() -> None: ...

    assert "the handler nothing takes no parameter" in _problem(app)
    app = App(config.module, memory.module)

    @app.on("orders", group="g")
    async def bill(order: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821

    assert "a type in the signature of bill cannot be found" in _problem(app)


async def yields(message: Message) -> AsyncIterator[int]:
    yield 1


def yields_plainly(message: Message) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("handler", [yields, yields_plainly])
def test_check_finds_a_generator_of_which_nothing_would_run(handler: Any) -> None:
    consuming, periodic = App(config.module, memory.module), App(config.module, memory.module)
    consuming.on("orders", group="g")(handler)
    periodic.every("* * * * *")(handler)
    for app in (consuming, periodic):
        assert f"{handler.__name__} is a generator, so nothing of it would run" in _problem(app)


@pytest.mark.parametrize("made", [App(), module("billing")], ids=["app", "module"])
def test_without_a_topic_it_would_decorate_nothing_and_says_so(made: Any) -> None:
    async def bill(message: Message) -> None: ...

    with pytest.raises(ConfigError, match=r"on takes a topic, and was given .*bill: write on\("):
        made.on(bill)


def test_check_finds_a_method_whose_class_nothing_provides_and_a_broker_that_is_missing() -> None:
    billing = module("billing")

    class Bills:
        @billing.on("orders", group="g")
        async def bill(self, message: Message) -> None: ...

    assert "nothing provides Bills, whose method bill is to handle 'orders'" in _problem(
        App(config.module, memory.module, billing)
    )
    assert "bill needs one broker, and the app has none: add its module" in _problem(
        App(config.module, billing, provide(Bills))
    )
    assert "memory, sqlite: say broker='memory'" in _problem(
        App(config.module, memory.module, sqlite.module, billing, provide(Bills))
    )


async def test_an_app_may_be_asked_for_by_those_it_makes() -> None:
    seen: list[App] = []

    def use(app: App) -> MockHandler:
        seen.append(app)
        return MockHandler()

    app = App(provide(use))
    async with app:
        await app.get(MockHandler)
    assert seen == [app]
