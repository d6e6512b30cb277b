import msgspec
import pytest

from things_kit import ConfigError, Handler, Message, MessageRouter, UnroutableError


def message(message_type: str | None, value: bytes = b"{}", header: str = "type") -> Message:
    return Message("t", value, headers={} if message_type is None else {header: message_type})


class Order(msgspec.Struct):
    id: int = 0


async def test_a_message_goes_to_the_handler_of_its_type() -> None:
    seen: list[str] = []
    router = MessageRouter()

    @router.on("a", "b")
    async def first(_: Message) -> None:
        seen.append("first")

    @router.on("c")
    async def second(order: Order, message: Message) -> None:
        seen.append(f"second {order.id} {message.headers['type']}")

    for message_type in "abc":
        await router.handle(message(message_type, b'{"id": 7}'))
    assert seen == ["first", "first", "second 7 c"]


async def test_another_header_may_name_the_type() -> None:
    seen: list[Message] = []
    router = MessageRouter(by="kind")
    router.register("a", seen.append)
    await router.handle(message("a", header="kind"))
    assert len(seen) == 1


async def test_no_handler_for_a_type_is_unroutable() -> None:
    with pytest.raises(UnroutableError, match="no handler for the type 'x'"):
        await MessageRouter().handle(message("x"))


async def test_a_message_without_type_is_unroutable() -> None:
    with pytest.raises(UnroutableError, match="has no header 'type'"):
        await MessageRouter().handle(message(None))


async def test_the_default_handles_what_has_no_handler_and_what_has_no_type() -> None:
    seen: list[str | None] = []

    async def default(message: Message) -> None:
        seen.append(message.headers.get("type"))

    router = MessageRouter(default=default)
    await router.handle(message("x"))
    await router.handle(message(None))
    assert seen == ["x", None]


def test_a_type_registered_twice_is_an_error_that_names_both() -> None:
    router = MessageRouter()

    def first(_: Message) -> None: ...
    def second(_: Message) -> None: ...

    router.register("a", first)
    with pytest.raises(ConfigError, match=r"'a' is registered twice: for .*first and for .*second"):
        router.register("a", second)


def test_a_handler_that_cannot_be_called_is_an_error_at_registration() -> None:
    with pytest.raises(ConfigError, match="a handler is a function"):
        MessageRouter().register("a", 5)  # type: ignore[arg-type]


def test_a_decorator_needs_a_type() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        MessageRouter().on()


def test_a_decorator_without_call_is_an_error() -> None:
    def handle(_: Message) -> None: ...

    decorate = MessageRouter().on(handle)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a message type is a string"):
        decorate(handle)


def test_a_decorated_handler_stays_what_it_was() -> None:
    def handle(_: Message) -> None: ...

    assert MessageRouter().on("a")(handle) is handle


async def test_include_merges_the_handlers_of_another() -> None:
    seen: list[str] = []
    inner, outer = MessageRouter(), MessageRouter()
    inner.register("a", lambda _: seen.append("inner"))
    outer.register("b", lambda _: seen.append("outer"))
    outer.include(inner)
    await outer.handle(message("a"))
    await outer.handle(message("b"))
    assert seen == ["inner", "outer"]
    assert inner.types == {"a"}


def test_include_refuses_types_that_both_have() -> None:
    inner, outer = MessageRouter(), MessageRouter()
    inner.register("a", lambda _: None)
    outer.register("a", lambda _: None)
    with pytest.raises(ConfigError, match="both routers have a handler for 'a'"):
        outer.include(inner)


async def test_a_router_is_a_handler_also_of_another_router() -> None:
    inner, outer, seen = MessageRouter(by="version"), MessageRouter(), []
    assert isinstance(inner, Handler)
    inner.register("1", lambda message: seen.append(message.value))
    outer.register("a", inner)
    await outer.handle(Message("t", b"x", headers={"type": "a", "version": "1"}))
    assert seen == [b"x"]
