from typing import Any

import msgspec
import pytest

from things_kit import DISCARD, ConfigError, Handler, Message, MessageRouter, Topic, UnroutableError, connect


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

    with pytest.raises(
        ConfigError, match=r"router\.on takes types of messages, and was given <function .*handle"
    ):
        MessageRouter().on(handle)  # type: ignore[call-overload]


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


# --- routers of a topic


class Created(msgspec.Struct):
    id: str


class Cancelled(msgspec.Struct):
    id: str


shop = Topic[Created | Cancelled]("shop", {"order.created": Created, "order.cancelled": Cancelled}, by="kind")


async def test_a_router_of_a_topic_hands_each_class_to_its_handler() -> None:
    seen: list[Any] = []
    router = MessageRouter.of(shop)

    @router.on(Created)
    async def created(event: Created) -> None:
        seen.append(event)

    @router.on(Cancelled)
    async def cancelled(event: Cancelled, message: Message) -> str:
        seen.append((event, message.topic))
        return "result"

    await router.handle(shop.message(Created("a")))
    assert await router.handle(shop.message(Cancelled("b"))) == "result"
    assert seen == [Created("a"), (Cancelled("b"), "shop")]
    assert router.types == {"order.created", "order.cancelled"}


async def test_a_handler_of_a_wider_type_may_take_several_classes() -> None:
    seen: list[Any] = []
    router = MessageRouter.of(shop)

    @router.on(Created, Cancelled)
    async def any_of_them(event: Created | Cancelled) -> None:
        seen.append(event)

    async with connect("memory://") as broker:
        broker.consumer(shop, group="g", handler=router)
    await router.handle(shop.message(Cancelled("b")))
    assert seen == [Cancelled("b")]


async def test_a_handler_of_another_class_is_refused() -> None:
    async def created(event: Created) -> None:
        pass

    with pytest.raises(ConfigError, match="created takes Created, but the topic 'shop' carries Cancelled"):
        MessageRouter.of(shop).register(Cancelled, created)


@pytest.mark.parametrize(
    ("router", "message_type", "why"),
    [
        (MessageRouter.of(shop), Order, "the topic 'shop' carries no Order"),
        (MessageRouter.of(shop), "order.changed", "the topic 'shop' has no type 'order.changed'"),
        (MessageRouter(), Created, "Created is a class; a router knows classes if made by MessageRouter.of"),
        (MessageRouter.of(shop), 5, "a message type is a string, or a class of the topic, not 5"),
    ],
)
def test_what_the_topic_does_not_carry_cannot_be_registered(
    router: MessageRouter, message_type: Any, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        router.register(message_type, lambda message: None)


@pytest.mark.parametrize("topic", ["shop", Topic("orders", Order)])
def test_a_router_is_one_of_a_topic_of_several_types(topic: Any) -> None:
    with pytest.raises(ConfigError, match=r"MessageRouter\.of takes a Topic of several types"):
        MessageRouter.of(topic)


async def test_a_type_that_no_handler_takes_is_an_error_at_start_unless_there_is_a_default() -> None:
    seen: list[Message] = []

    async def default(message: Message) -> None:
        seen.append(message)

    async with connect("memory://") as broker:
        router = MessageRouter.of(shop)
        router.register(Created, default)
        with pytest.raises(ConfigError, match=r"has no handler for 'order\.cancelled', and no default"):
            broker.consumer(shop, group="g", handler=router)
        for other in (MessageRouter.of(shop, default), MessageRouter.of(shop, DISCARD)):
            broker.consumer(shop, group="g", handler=other)
            await other.handle(shop.message(Cancelled("a")))
            await other.handle(Message("shop", b"no type"))
    assert len(seen) == 2


async def test_a_router_of_one_topic_does_not_handle_another() -> None:
    other = Topic[Created]("other", {"order.created": Created}, by="kind")
    router = MessageRouter.of(shop, DISCARD)
    async with connect("memory://") as broker:
        broker.consumer([shop.renamed("shop-dlq"), "shop"], group="g", handler=router)
        with pytest.raises(ConfigError, match=r"the router is one of Topic\('shop'"):
            broker.consumer(other, group="g", handler=router)


async def test_a_handler_decodes_by_the_versions_of_its_type() -> None:
    seen: list[Any] = []
    topic = Topic[Created | Cancelled](
        "shop",
        {"order.created": Created, "order.cancelled": Cancelled},
        by="kind",
        version=2,
        upcast={"order.created": {1: lambda old: {"id": old["name"]}}},
    )
    router = MessageRouter.of(topic)
    router.register(Created, seen.append)
    await router.handle(Message("shop", b'{"name": "a"}', headers={"kind": "order.created"}))


async def test_a_default_that_discards_skips_on_a_plain_router_too() -> None:
    await MessageRouter(default=DISCARD).handle(message("x"))
