"""How parts find each other, and what is said where they do not."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec
import pydantic
import pytest

from things_kit import App, Handler, Lifecycle, Message, WiringError, invoke, module, provide


class Database:
    """What others need."""


class Orders:
    """A handler."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def handle(self, message: Message) -> None:
        """Handle it."""


class Payments:
    """Another handler."""

    async def handle(self, message: Message) -> None:
        """Handle it."""


def mistakes(*parts: Any) -> tuple[str, ...]:
    with pytest.raises(WiringError) as caught:
        App(*parts).check()
    return caught.value.mistakes


# --- finding


async def test_a_constructor_gets_what_its_annotations_ask_for() -> None:
    async with App(provide(Orders), provide(Database)) as app:
        assert (await app.get(Orders)).database is await app.get(Database)


async def test_what_is_provided_is_made_once_and_only_when_needed() -> None:
    made: list[str] = []

    def database() -> Database:
        made.append("database")
        return Database()

    def other() -> Payments:
        made.append("other")
        return Payments()

    def use(first: Database, second: Database) -> None:
        assert first is second

    async with App(provide(database), provide(other), invoke(use), invoke(use)):
        assert made == ["database"]


async def test_asking_for_a_protocol_or_a_base_finds_the_class_that_is_one() -> None:
    class Base(ABC):
        @abstractmethod
        def name(self) -> str: ...

    class Concrete(Base):
        def name(self) -> str:
            return "concrete"

    async with App(provide(Concrete), provide(Payments)) as app:
        assert (await app.get(Base)).name() == "concrete"
        assert isinstance(await app.get(Handler), Payments)


async def test_an_exact_type_goes_before_what_only_is_one() -> None:
    class Cached(Database):
        pass

    async with App(provide(Database), provide(Cached)) as app:
        assert type(await app.get(Database)) is Database


async def test_as_chooses_the_one_type_under_which_it_is_found() -> None:
    async with App(provide(Orders), provide(Payments, as_=Handler), provide(Database)) as app:
        assert isinstance(await app.get(Handler), Payments)
        with pytest.raises(WiringError, match="nothing provides Payments"):
            await app.get(Payments)


async def test_what_wraps_another_of_its_kind_gets_the_other() -> None:
    class Logged:
        def __init__(self, inner: Handler) -> None:
            self.inner = inner

        async def handle(self, message: Message) -> None:
            await self.inner.handle(message)

    async with App(provide(Payments), provide(Logged, as_=Handler)) as app:
        outer = await app.get(Handler)
        assert isinstance(outer, Logged)
        assert isinstance(outer.inner, Payments)


async def test_a_default_is_kept_where_nothing_is_provided_and_none_where_none_is_allowed() -> None:
    class Settled:
        def __init__(
            self, database: Database | None, *, size: int = 5, other: Payments | None = None
        ) -> None:
            self.values = (database, size, other)

    async with App(provide(Settled)) as app:
        assert (await app.get(Settled)).values == (None, 5, None)
    async with App(provide(Settled), provide(Payments), provide(lambda: 7, as_=int)) as app:
        database, size, other = (await app.get(Settled)).values
        assert database is None
        assert size == 7
        assert isinstance(other, Payments)


async def test_a_module_is_named_where_two_of_them_have_the_like() -> None:
    first = module("first", provide(lambda: "1", as_=str))
    second = module("second", provide(lambda: "2", as_=str))
    seen = []

    def use(one: Annotated[str, "first"], two: Annotated[str, "second"]) -> None:
        seen.append((one, two))

    async with App(first, module("outer", second), invoke(use)) as app:
        assert seen == [("1", "2")]
        assert await app.get(Annotated[str, "outer"]) == "2"
    assert "of the module 'third'" in mistakes(first, invoke(lambda: None), invoke(use_third))[0]


def use_third(one: Annotated[str, "third"]) -> None: ...


async def test_dataclasses_structs_and_models_can_be_provided() -> None:
    @dataclass
    class Data:
        database: Database

    class Struct(msgspec.Struct):
        data: Data

    class Model(pydantic.BaseModel, arbitrary_types_allowed=True):
        struct: Struct
        size: int = 3

    async with App(provide(Model), provide(Struct), provide(Data), provide(Database)) as app:
        assert isinstance((await app.get(Model)).struct.data.database, Database)


async def test_functions_partials_methods_and_objects_can_be_provided() -> None:
    class Factory:
        def __init__(self, size: int) -> None:
            self.size = size

        def number(self) -> float:
            return self.size / 2

    def named(size: int, *, name: str) -> str:
        return name * size

    def size() -> int:
        return 3

    factory = Factory(5)
    async with App(
        provide(factory), provide(factory.number), provide(partial(named, name="x")), provide(size)
    ) as app:
        assert await app.get(Factory) is factory
        assert await app.get(float) == 2.5
        assert await app.get(str) == "xxx"


async def test_the_app_and_its_lifecycle_can_be_asked_for() -> None:
    seen: list[object] = []

    def use(app: App, lifecycle: Lifecycle, /) -> None:
        seen.extend([app, lifecycle])

    async with App(invoke(use)) as app:
        assert seen[0] is app
        assert isinstance(seen[1], Lifecycle)


async def test_a_module_given_twice_counts_once() -> None:
    shared = module("shared", provide(Database))
    async with App(module("a", shared), module("b", shared, provide(Orders))) as app:
        assert isinstance((await app.get(Orders)).database, Database)


# --- cleaning up


async def test_the_second_halves_of_generators_run_at_stop_in_reverse() -> None:
    done: list[str] = []

    def plain() -> Iterator[Database]:
        done.append("open plain")
        yield Database()
        done.append("close plain")

    async def asynchronous(database: Database) -> AsyncIterator[Orders]:
        done.append("open async")
        yield Orders(database)
        done.append("close async")

    async with App(provide(asynchronous), provide(plain)) as app:
        await app.get(Orders)
        assert done == ["open plain", "open async"]
    assert done == ["open plain", "open async", "close async", "close plain"]


async def test_context_managers_are_entered_and_left() -> None:
    done: list[str] = []

    @contextmanager
    def plain() -> Iterator[Database]:
        yield Database()
        done.append("plain")

    @asynccontextmanager
    async def asynchronous(database: Database) -> AsyncIterator[Orders]:
        yield Orders(database)
        done.append("async")

    async with App(provide(plain), provide(asynchronous)) as app:
        assert isinstance(await app.get(Orders), Orders)
    assert done == ["async", "plain"]


async def test_two_that_ask_at_once_get_the_same() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def database() -> AsyncIterator[Database]:
        begun.set()
        await go_on.wait()
        yield Database()

    async with App(provide(database, as_=Database, on_demand=True)) as app:
        asking = [asyncio.create_task(app.get(Database)) for _ in range(2)]
        await begun.wait()
        go_on.set()
        first, second = await asyncio.gather(*asking)
    assert first is second


async def test_what_is_being_made_may_ask_the_app_for_something_else() -> None:
    class Shop:
        """Made of what it asks the app for."""

        def __init__(self, database: Database) -> None:
            self.database = database

    async def shop(app: App) -> Shop:
        return Shop(await app.get(Database))

    async with App(provide(Database), provide(shop)) as app:
        assert (await app.get(Shop)).database is await app.get(Database)


async def test_all_are_cleaned_up_though_one_fails() -> None:
    closed: list[str] = []

    def first() -> Iterator[Database]:
        yield Database()
        closed.append("first")

    def second(database: Database) -> Iterator[Orders]:
        yield Orders(database)
        raise RuntimeError("the second cannot be closed")

    app = App(provide(first), provide(second))
    await app.start()
    await app.get(Orders)
    with pytest.raises(ExceptionGroup) as caught:
        await app.stop()
    assert [str(error) for error in caught.value.exceptions] == ["the second cannot be closed"]
    assert closed == ["first"]


async def test_what_was_made_is_cleaned_up_when_a_later_one_cannot_be_made() -> None:
    closed: list[str] = []

    def database() -> Iterator[Database]:
        yield Database()
        closed.append("database")

    def broken(database: Database) -> Orders:
        raise OSError("no such host")

    def use(orders: Orders) -> None: ...

    with pytest.raises(OSError, match="no such host") as caught:
        await App(provide(database), provide(broken), invoke(use)).start()
    assert closed == ["database"]
    assert any("test_wiring.py" in note for note in caught.value.__notes__)


# --- mistakes


class Unprovided(Protocol):
    def anything(self) -> None: ...


def test_what_is_missing_is_named_with_who_asks_for_it_and_where_that_was_provided() -> None:
    (mistake,) = mistakes(provide(Orders))
    assert mistake.startswith("nothing provides Database, which Orders (")
    assert "test_wiring.py:" in mistake
    assert "asks for as 'database'" in mistake


def test_two_that_fit_are_both_named() -> None:
    def use(handler: Handler) -> None: ...

    (mistake,) = mistakes(provide(Orders), provide(Payments), provide(Database), invoke(use))
    assert "Handler" in mistake
    assert "Orders (" in mistake
    assert "Payments (" in mistake


def test_of_two_modules_that_have_it_the_way_to_choose_is_said() -> None:
    def use(database: Database) -> None: ...

    (mistake,) = mistakes(
        module("first", provide(Database)), module("second", provide(Database)), invoke(use)
    )
    assert mistake.endswith("; ask for Annotated[Database, 'first'], the one of that module")


def test_two_that_fit_are_no_mistake_where_nobody_asks() -> None:
    App(provide(Orders), provide(Payments), provide(Database)).check()


class First:
    def __init__(self, second: "Second") -> None: ...


class Second:
    def __init__(self, first: First) -> None: ...


class Itself:
    def __init__(self, other: "Itself") -> None: ...


def test_circles_are_shown() -> None:
    (mistake,) = mistakes(provide(First), provide(Second))
    assert mistake.index("First") < mistake.index("Second") < mistake.rindex("First")
    assert "a circle" in mistake
    assert "a circle" in mistakes(provide(Itself))[0]


class Spare:
    pass


spare = module("spare", provide(Spare))


def test_a_forgotten_module_is_named() -> None:
    def use(spare: Spare) -> None: ...

    (mistake,) = mistakes(invoke(use))
    assert "the module 'spare' (" in mistake
    assert "add it to the App" in mistake


def test_all_mistakes_come_at_once() -> None:
    def nothing(): ...  # type: ignore[no-untyped-def]

    def untyped(this) -> None: ...  # type: ignore[no-untyped-def]

    def unknown(this: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821

    found = "\n".join(
        mistakes(
            provide(Orders),
            provide(First),
            provide(Second),
            provide(nothing),
            provide(Unprovided),
            provide(Payments, as_=Database),
            invoke(untyped),
            invoke(unknown),
            invoke("text"),  # type: ignore[arg-type]
            Database,
            module("inner", Payments),  # type: ignore[arg-type]
        )
    )
    for sentence in (
        "nothing provides Database",
        "a circle",
        "nothing must say what it returns",
        "Unprovided is abstract",
        "Payments gives Payments, which is no Database",
        "the parameter 'this' of untyped has no type",
        "name 'Nowhere' is not defined",
        "invoke takes a function",
        "an App takes parts, and Database is none: write provide(Database)",
        "the module 'inner' takes parts, and Payments is none",
    ):
        assert sentence in found


async def test_what_is_not_of_the_type_that_it_says_is_an_error_at_start() -> None:
    def database() -> Database:
        return None  # type: ignore[return-value]

    def use(database: Database) -> None: ...

    with pytest.raises(TypeError, match=r"database \(.*\) gave None, which is no Database"):
        await App(provide(database), invoke(use)).start()


async def test_what_is_not_of_the_type_that_it_says_is_cleaned_up() -> None:
    closed: list[str] = []

    async def database() -> AsyncIterator[Database]:
        yield None  # type: ignore[misc]
        closed.append("database")

    def use(database: Database) -> None: ...

    with pytest.raises(TypeError, match="which is no Database"):
        async with App(provide(database, as_=Database), invoke(use)):
            pass
    assert closed == ["database"]


def test_what_is_on_demand_may_lack_something_until_somebody_asks() -> None:
    def use(orders: Orders) -> None: ...

    App(provide(Orders, on_demand=True)).check()
    (mistake,) = mistakes(provide(Orders, on_demand=True), invoke(use))
    assert "nothing provides Database" in mistake


async def test_a_mistake_of_what_was_on_demand_is_an_error_when_it_is_asked_for() -> None:
    async with App(provide(Orders, on_demand=True)) as app:
        with pytest.raises(WiringError, match="nothing provides Database"):
            await app.get(Orders)
