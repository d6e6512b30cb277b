import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NewType
from unittest.mock import AsyncMock, create_autospec

import msgspec
import pytest
from typing_extensions import TypeAliasType

from things_kit import BatchError, ConfigError, DecodeError, Message
from things_kit.engine.pipeline import compile_batch_handler, compile_handler

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers

MESSAGE = Message("t", b'{"id": 7}', headers={"h": "1"})


class Order(msgspec.Struct):
    id: int


class Seen:
    """Where handlers of these tests note what they got."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    async def handle(self, message: Message) -> None:
        self.all.append(message)

    async def other(self, order: Order) -> None:
        self.all.append(order)

    def plain(self, order: Order) -> None:
        self.all.append((order, threading.current_thread() is threading.main_thread()))

    async def __call__(self, order: Order, message: Message) -> None:
        self.all.append((order, message))


async def test_an_object_with_handle_serves() -> None:
    seen = Seen()
    await compile_handler(seen)(MESSAGE)
    assert seen.all == [MESSAGE]


async def test_a_bound_method_serves() -> None:
    seen = Seen()
    await compile_handler(seen.other)(MESSAGE)
    assert seen.all == [Order(7)]


async def test_a_bound_plain_method_runs_in_a_thread() -> None:
    seen = Seen()
    await compile_handler(seen.plain)(MESSAGE)
    assert seen.all == [(Order(7), False)]


async def test_a_callable_object_serves() -> None:
    seen: list[Any] = []

    class Callable:
        async def __call__(self, order: Order, message: Message) -> None:
            seen.append((order, message))

    await compile_handler(Callable())(MESSAGE)
    assert seen == [(Order(7), MESSAGE)]


async def test_a_plain_callable_object_runs_in_a_thread() -> None:
    seen: list[Any] = []

    class Callable:
        def __call__(self, order: Order) -> None:
            seen.append((order, threading.current_thread() is threading.main_thread()))

    await compile_handler(Callable())(MESSAGE)
    assert seen == [(Order(7), False)]


async def test_an_async_function_gets_its_payload() -> None:
    seen: list[Any] = []

    async def handle(order: Order) -> None:
        seen.append(order)

    await compile_handler(handle)(MESSAGE)
    assert seen == [Order(7)]


async def test_a_second_parameter_gets_the_message() -> None:
    seen: list[Any] = []

    async def handle(order: dict[str, int], message: Message) -> None:
        seen.append((order, message))

    await compile_handler(handle)(MESSAGE)
    assert seen == [({"id": 7}, MESSAGE)]


async def test_a_plain_function_may_take_the_message_as_well() -> None:
    seen: list[Any] = []

    def handle(order: Order, message: Message) -> None:
        seen.append((order, message))

    await compile_handler(handle)(MESSAGE)
    assert seen == [(Order(7), MESSAGE)]


async def test_a_parameter_without_annotation_gets_the_message() -> None:
    seen: list[Any] = []

    async def handle(message) -> None:  # type: ignore[no-untyped-def]
        seen.append(message)

    await compile_handler(handle)(MESSAGE)
    assert seen == [MESSAGE]


async def test_any_gets_the_message() -> None:
    seen: list[Any] = []

    async def handle(message: Any) -> None:
        seen.append(message)

    await compile_handler(handle)(MESSAGE)
    assert seen == [MESSAGE]


async def test_variable_arguments_get_the_message_alone() -> None:
    seen: list[Any] = []

    async def handle(*arguments: Any, **named: Any) -> None:
        seen.append((arguments, named))

    await compile_handler(handle)(MESSAGE)
    assert seen == [((MESSAGE,), {})]


async def test_a_lambda_that_returns_a_coroutine_is_awaited() -> None:
    seen = Seen()
    await compile_handler(lambda message, own=seen: own.handle(message))(MESSAGE)
    assert seen.all == [MESSAGE]


@pytest.mark.parametrize("arrange", ["by name", "by place"])
async def test_a_partial_serves(arrange: str) -> None:
    seen: list[Any] = []

    async def handle(database: str, order: Order, message: Message, *, limit: int) -> None:
        seen.append((database, order, message, limit))

    async def named(order: Order, message: Message, database: str, limit: int = 0) -> None:
        seen.append((database, order, message, limit))

    partial = (
        functools.partial(handle, "db", limit=3)
        if arrange == "by place"
        else functools.partial(named, database="db", limit=3)
    )
    await compile_handler(partial)(MESSAGE)
    assert seen == [("db", Order(7), MESSAGE, 3)]


async def test_a_partial_of_a_plain_function_runs_in_a_thread() -> None:
    seen: list[Any] = []

    def handle(names: list[str], order: Order) -> None:
        names.append(threading.current_thread().name)
        seen.append(order)

    names: list[str] = []
    await compile_handler(functools.partial(handle, names))(MESSAGE)
    assert seen == [Order(7)]
    assert names != [threading.main_thread().name]


def through(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return wrapper


async def test_a_decorated_async_function_serves_by_its_own_signature() -> None:
    seen: list[Any] = []

    @through
    async def handle(order: Order, message: Message) -> None:
        seen.append((order, message))

    await compile_handler(handle)(MESSAGE)
    assert seen == [(Order(7), MESSAGE)]


async def test_an_async_mock_serves_as_the_function_that_it_is() -> None:
    mock = AsyncMock(side_effect=ValueError("as told"))
    with pytest.raises(ValueError, match="as told"):
        await compile_handler(mock)(MESSAGE)
    mock.assert_awaited_once_with(MESSAGE)


async def test_a_mock_of_a_handler_serves_as_one() -> None:
    class OrderHandler:
        async def handle(self, message: Message) -> None: ...

    mock = create_autospec(OrderHandler, instance=True)
    await compile_handler(mock)(MESSAGE)
    mock.handle.assert_awaited_once_with(MESSAGE)


NAME: contextvars.ContextVar[str] = contextvars.ContextVar("pipeline", default="nobody")


async def test_a_thread_has_the_context_of_the_call() -> None:
    seen: list[str] = []
    NAME.set("somebody")
    await compile_handler(lambda _: seen.append(NAME.get()))(MESSAGE)
    assert seen == ["somebody"]


async def test_annotations_may_be_strings() -> None:
    seen: list[Any] = []

    async def handle(order: "Order", message: "Message") -> None:
        seen.append((order, message))

    await compile_handler(handle)(MESSAGE)
    assert seen == [(Order(7), MESSAGE)]


async def test_string_annotations_of_a_partial_and_a_callable_are_found_too() -> None:
    seen: list[Any] = []

    async def handle(database: str, order: "Order") -> None:
        seen.append(order)

    class Callable:
        async def __call__(self, order: "Order") -> None:
            seen.append(order)

    await compile_handler(functools.partial(handle, "db"))(MESSAGE)
    await compile_handler(Callable())(MESSAGE)
    assert seen == [Order(7), Order(7)]


def test_an_annotation_that_only_type_checkers_see_is_refused_with_a_sentence() -> None:
    async def handle(order: "OnlyForTypeCheckers") -> None: ...

    with pytest.raises(
        ConfigError, match=r"'OnlyForTypeCheckers' of the handler .*handle cannot be found.*importable"
    ):
        compile_handler(handle)


@pytest.mark.parametrize("annotation", ["msgspec.Missing", "not even python"])
def test_an_annotation_that_cannot_be_found_is_refused_with_a_sentence(annotation: str) -> None:
    async def handle(order: Any) -> None: ...

    handle.__annotations__["order"] = annotation
    with pytest.raises(ConfigError, match="cannot be found"):
        compile_handler(handle)


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (5, "a handler is a function, or an object with a method `handle`; 5 is neither"),
        (None, "is neither"),
        (Seen, "it is a class: pass an instance"),
        (Order, "it is a class: pass an instance"),
        (lambda: None, "takes no parameter"),
    ],
    ids=["number", "none", "handler class", "class", "no parameter"],
)
def test_what_is_no_handler_is_refused_with_a_sentence(handler: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compile_handler(handler)
    assert sentence in str(raised.value)


def test_a_parameter_that_nothing_fills_is_refused_with_its_name() -> None:
    async def more(order: Order, database: str) -> None: ...
    async def keyword(order: Order, *, database: str) -> None: ...
    async def third(order: Order, message: Message, database: str) -> None: ...

    for handle in (more, keyword, third):
        with pytest.raises(ConfigError, match="has a parameter 'database' that nothing fills"):
            compile_handler(handle)


def test_a_parameter_with_a_default_needs_no_filling() -> None:
    async def handle(order: Order, database: str = "db", *, limit: int = 5) -> None: ...

    compile_handler(handle)


async def test_what_cannot_be_decoded_does_not_reach_the_handler() -> None:
    seen = Seen()
    with pytest.raises(DecodeError):
        await compile_handler(seen.other)(MESSAGE.replace(value=b"x"))
    assert seen.all == []


# --- middleware


def noting(name: str, notes: list[str]) -> Callable[[Any], Any]:
    def wrap(handle: Callable[[Message], Awaitable[None]]) -> Callable[[Message], Awaitable[None]]:
        async def noted(message: Message) -> None:
            notes.append(f"{name} in")
            await handle(message)
            notes.append(f"{name} out")

        return noted

    return wrap


async def test_the_first_middleware_is_the_outermost() -> None:
    notes: list[str] = []
    handle = compile_handler(lambda _: notes.append("handler"), [noting("a", notes), noting("b", notes)])
    await handle(MESSAGE)
    assert notes == ["a in", "b in", "handler", "b out", "a out"]


async def test_middleware_sees_what_cannot_be_decoded_fail() -> None:
    seen: list[BaseException] = []

    def catching(handle: Callable[[Message], Awaitable[None]]) -> Callable[[Message], Awaitable[None]]:
        async def caught(message: Message) -> None:
            try:
                await handle(message)
            except DecodeError as error:
                seen.append(error)

        return caught

    await compile_handler(Seen().other, [catching])(MESSAGE.replace(value=b"x"))
    assert len(seen) == 1


def test_middleware_that_is_no_function_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="middleware is a function from Handle to Handle; 5 cannot be called"
    ):
        compile_handler(Seen(), [5])  # type: ignore[list-item]


def test_middleware_that_returns_no_function_is_refused_with_its_name() -> None:
    def forgetful(handle: object) -> None: ...

    with pytest.raises(ConfigError, match=r"the middleware .*forgetful did not return a function, but None"):
        compile_handler(Seen(), [forgetful])  # type: ignore[list-item]


# --- batches


@pytest.mark.parametrize("annotation", [list[Message], Sequence[Message], list, Sequence, Any], ids=str)
async def test_a_batch_handler_gets_messages(annotation: Any) -> None:
    seen: list[Any] = []

    async def handle(messages: Any) -> None:
        seen.append(messages)

    handle.__annotations__["messages"] = annotation
    await compile_batch_handler(handle)([MESSAGE, MESSAGE])
    assert seen == [[MESSAGE, MESSAGE]]


async def test_a_batch_handler_gets_payloads() -> None:
    seen: list[Any] = []

    def handle(orders: list[Order]) -> None:
        seen.append(orders)

    await compile_batch_handler(handle)([MESSAGE, MESSAGE])
    assert seen == [[Order(7), Order(7)]]


async def test_failures_of_a_batch_are_counted_by_the_messages_not_by_what_was_decoded() -> None:
    async def handle(orders: list[Order]) -> None:
        raise BatchError({1: ValueError("the last")})

    bad = MESSAGE.replace(value=b"x")
    with pytest.raises(BatchError) as raised:
        await compile_batch_handler(handle)([bad, MESSAGE, bad, MESSAGE])
    kinds = {index: type(error) for index, error in raised.value.errors.items()}
    assert kinds == {0: DecodeError, 2: DecodeError, 3: ValueError}


async def test_a_batch_of_which_nothing_can_be_decoded_does_not_reach_the_handler() -> None:
    seen: list[Any] = []

    async def handle(orders: list[Order]) -> None:
        seen.append(orders)

    with pytest.raises(BatchError) as raised:
        await compile_batch_handler(handle)([MESSAGE.replace(value=b"x")])
    assert list(raised.value.errors) == [0]
    assert seen == []


async def test_an_error_of_the_handler_is_that_of_all_that_it_got() -> None:
    async def handle(orders: list[Order]) -> None:
        raise ValueError("all")

    with pytest.raises(BatchError) as raised:
        await compile_batch_handler(handle)([MESSAGE, MESSAGE.replace(value=b"x"), MESSAGE])
    kinds = {index: type(error) for index, error in raised.value.errors.items()}
    assert kinds == {0: ValueError, 1: DecodeError, 2: ValueError}


async def test_a_cancelled_batch_is_cancelled() -> None:
    async def handle(orders: list[Order]) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await compile_batch_handler(handle)([MESSAGE, MESSAGE.replace(value=b"x")])


def test_a_batch_handler_must_take_a_list() -> None:
    async def one(order: Order) -> None: ...

    with pytest.raises(ConfigError, match="must take a list, such as"):
        compile_batch_handler(one)


def test_a_batch_handler_takes_the_list_alone() -> None:
    async def handle(orders: list[Order], message: Message) -> None: ...

    with pytest.raises(ConfigError, match="takes one parameter, the list"):
        compile_batch_handler(handle)


Orders = TypeAliasType("Orders", list[Order])


@pytest.mark.parametrize(
    "annotation",
    [list, list[Message], list[Order], Sequence, Sequence[Order], Iterable[Order], "list[Order]", Orders,
     Annotated[list[Order], "as they came"]],
)  # fmt: skip
def test_a_list_without_batch_is_refused_with_a_sentence(annotation: Any) -> None:
    async def handle(orders: Any) -> None: ...

    handle.__annotations__["orders"] = annotation
    with pytest.raises(
        ConfigError, match=r"handle takes a list: say batch=Batch\(\.\.\.\), or let it take one"
    ):
        compile_handler(handle)
    compile_batch_handler(handle)


@pytest.mark.parametrize(
    "annotation", [Message, Order, dict, bytes, str, tuple[Order, ...], list[Order] | None]
)
def test_one_message_with_batch_is_refused_with_a_sentence(annotation: Any) -> None:
    async def handle(order: Any) -> None: ...

    handle.__annotations__["order"] = annotation
    with pytest.raises(ConfigError, match=r"handle must take a list, such as list\[Message\]"):
        compile_batch_handler(handle)
    compile_handler(handle)


def test_a_parameter_without_annotation_serves_both() -> None:
    for handler in (lambda given: None, lambda *given: None):
        compile_handler(handler)
        compile_batch_handler(handler)


# --- what looks as if it ran


def generator(message: Message) -> Any:
    yield message


async def async_generator(message: Message) -> Any:
    yield message


class Generators:
    def method(self, message: Message) -> Any:
        yield message

    async def handle(self, message: Message) -> Any:
        yield message


class CallableGenerator:
    async def __call__(self, message: Message) -> Any:
        yield message


@pytest.mark.parametrize(
    "handler",
    [
        generator,
        async_generator,
        Generators(),
        Generators().method,
        CallableGenerator(),
        functools.partial(generator),
        functools.partial(async_generator),
    ],
)
def test_a_handler_that_yields_is_refused_with_a_sentence(handler: Any) -> None:
    for compiled in (compile_handler, compile_batch_handler):
        with pytest.raises(ConfigError, match="is a generator, so nothing of it would run: it must return"):
            compiled(handler)


@pytest.mark.parametrize("wrapped", [generator, async_generator, CallableGenerator()])
def test_middleware_that_yields_is_refused_with_its_name(wrapped: Any) -> None:
    def around(handle: Any) -> Any:
        return wrapped

    with pytest.raises(ConfigError, match=r"middleware .*around returned a generator function"):
        compile_handler(Seen(), [around])


@pytest.mark.filterwarnings("error")
def test_async_middleware_is_refused_without_a_warning() -> None:
    async def around(handle: Any) -> Any:
        return handle

    with pytest.raises(ConfigError, match=r"around did not return a function"):
        compile_handler(Seen(), [around])  # type: ignore[list-item]


async def other(message: Message) -> None: ...


async def returns_a_coroutine(message: Message) -> Any:
    return other(message)


async def returns_a_generator(message: Message) -> Any:
    return generator(message)


async def returns_an_async_generator(message: Message) -> Any:
    return async_generator(message)


async def returns_a_task(message: Message) -> Any:
    return asyncio.create_task(other(message))


def plain_returns_a_generator(message: Message) -> Any:
    return generator(message)


def plain_returns_a_coroutine_of_a_coroutine(message: Message) -> Any:
    return returns_a_coroutine(message)


UNRUN = [
    (returns_a_coroutine, "a coroutine that nobody awaits: write `return await"),
    (returns_a_generator, "a generator, so nothing of it ran"),
    (returns_an_async_generator, "a generator, so nothing of it ran"),
    (returns_a_task, "a Task that nobody awaits"),
    (plain_returns_a_generator, "a generator, so nothing of it ran"),
    (plain_returns_a_coroutine_of_a_coroutine, "a coroutine that nobody awaits"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("handler", "sentence"), UNRUN)
async def test_an_answer_that_has_yet_to_run_is_a_failure(handler: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=f"the handler {handler.__name__} returned {sentence}"):
        await compile_handler(handler)(MESSAGE)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("handler", "sentence"), UNRUN)
async def test_an_answer_of_a_batch_handler_that_has_yet_to_run_is_a_failure(
    handler: Any, sentence: str
) -> None:
    async def whole(messages: list[Message]) -> Any:
        result = handler(messages[0])
        return await result if inspect.iscoroutine(result) else result

    with pytest.raises(TypeError, match=sentence):
        await compile_batch_handler(whole)([MESSAGE])


@pytest.mark.filterwarnings("error")
async def test_middleware_that_forgets_to_await_the_next_step_is_a_failure() -> None:
    seen = Seen()

    def forgetful(handle: Any) -> Any:
        async def wrapped(message: Message) -> Any:
            return handle(message)

        return wrapped

    def attentive(handle: Any) -> Any:
        async def wrapped(message: Message) -> None:
            await handle(message)

        return wrapped

    with pytest.raises(
        TypeError, match=r"the middleware .*forgetful returned a coroutine that nobody awaits"
    ):
        await compile_handler(seen, [attentive, forgetful])(MESSAGE)
    assert seen.all == []


@pytest.mark.parametrize("answer", [0, "text", [1], (), {"a": 1}, range(3), iter([1]), map(str, [1])])
async def test_any_other_answer_is_fine(answer: Any) -> None:
    async def handle(message: Message) -> Any:
        return answer

    await compile_handler(handle)(MESSAGE)


class OwnMessage(Message, frozen=True):
    """Nothing would make one."""


Raw = NewType("Raw", bytes)
Alias = TypeAliasType("Alias", Raw)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Message | None, MESSAGE),
        (Annotated[Message | None, "mine"], MESSAGE),
        (Raw, MESSAGE.value),
        (Alias, MESSAGE.value),
        (NewType("Text", str), MESSAGE.value.decode()),
        (NewType("Ordered", Order), Order(7)),
    ],
    ids=str,
)
async def test_another_name_of_a_type_says_what_that_type_says(kind: Any, expected: object) -> None:
    seen: list[Any] = []

    async def one(payload: Any) -> None:
        seen.append(payload)

    async def many(payloads: Any) -> None:
        seen.extend(payloads)

    one.__annotations__["payload"] = kind
    many.__annotations__["payloads"] = list[kind]
    await compile_handler(one)(MESSAGE)
    await compile_batch_handler(many)([MESSAGE])
    assert seen == [expected, expected]


async def test_an_optional_second_parameter_gets_the_message_too() -> None:
    seen: list[Any] = []

    async def handle(order: Order, message: Message | None = None) -> None:
        seen.append((order, message))

    await compile_handler(handle)(MESSAGE)
    assert seen == [(Order(7), MESSAGE)]


@pytest.mark.parametrize("kind", [OwnMessage, Message | Order, OwnMessage | None], ids=str)
def test_a_message_that_nothing_would_make_is_refused(kind: Any) -> None:
    async def handle(message: Any) -> None: ...

    handle.__annotations__["message"] = kind
    with pytest.raises(ConfigError, match="it is handed a Message itself, or what a value holds"):
        compile_handler(handle)
