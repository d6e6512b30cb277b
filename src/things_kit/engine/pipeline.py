"""Compiles a handler, once at start: signature, decoding, threads and middleware become one function."""

import functools
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableSequence, Sequence
from types import MappingProxyType, MethodType, SimpleNamespace
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

from things_kit.engine.apart import apart, apart_batch
from things_kit.engine.decoding import as_meant, decoded, decoded_batch, decoder
from things_kit.engine.results import Publishing, by_kind, carries_lists, collecting, raising
from things_kit.engine.threads import call_in_thread
from things_kit.engine.transforming import batch_undone_first, undoing, undone_first
from things_kit.engine.unrun import discard, ran, yields
from things_kit.messaging.codec import Opening
from things_kit.messaging.errors import ConfigError
from things_kit.messaging.handler import AnyHandler, Handle, HandleBatch, Middleware
from things_kit.messaging.message import Message
from things_kit.messaging.topic import Topic
from things_kit.messaging.transform import Transform

Topics: TypeAlias = Sequence[str | Topic[Any]]

if sys.version_info >= (3, 12):
    from inspect import iscoroutinefunction
else:  # inspect's does not know an AsyncMock before
    from asyncio import iscoroutinefunction


Provides: TypeAlias = Mapping[type, Callable[[], Any]]
NOTHING: Final[Provides] = MappingProxyType({})

_LISTS: Final = {list, Sequence, MutableSequence, Collection, Iterable}
"""What the parameter of a batch handler may be."""


class Steps(NamedTuple):
    """What a consumer calls with a message: `request` where somebody waits for what its handler returns, else `plain`."""

    plain: Handle
    request: Handle


def compile_handler(
    handler: AnyHandler,
    middleware: Sequence[Middleware] = (),
    *,
    watched: bool = False,
    topics: Topics = (),
    provides: Provides = NOTHING,
) -> Handle:
    """One async function of a message, from any handler and the middleware around it, outermost first.

    Args:
        handler: What handles.
        middleware: What is around it.
        watched: Whoever calls the function passes what it returns to `refuse_unrun`: one step less for each message.
        topics: What it is for, by name or contract; nothing where it is not known.
        provides: By type, what fills the handler's other parameters.

    Raises:
        ConfigError: The handler is none, or its parameters cannot be filled.
    """
    step, name, _ = _innermost(handler, topics, (), provides)
    return _around(middleware, step if watched and not middleware else ran(step, name))


def compile_steps(
    handler: AnyHandler,
    *,
    topics: Topics = (),
    publish: Publishing | None = None,
    transforms: Sequence[Transform] = (),
    provides: Provides = NOTHING,
) -> Callable[[Sequence[Middleware]], Steps]:
    """The same for a consumer, whose handler's answers and results go somewhere: by raising `Results`.

    Returns what puts middleware around it, once there is such, outermost first.

    Args:
        handler: What handles; whoever calls passes what it returns to `refuse_unrun`.
        topics: What it is for, by name or contract.
        publish: Where its results go.
        transforms: What was done to values of topics that say nothing of it themselves.
        provides: By type, what fills the handler's other parameters.

    Raises:
        ConfigError: As for `compile_handler`.
    """
    step, name, seen = _innermost(handler, topics, transforms, provides)
    step = apart(step) if seen else step
    collected = collecting(step, name, publish)

    def around(middleware: Sequence[Middleware]) -> Steps:
        if publish is not None:
            whole = _around(middleware, collected)
            whole = raising(apart(whole) if middleware else whole)
            return Steps(whole, whole)
        if not middleware:
            return Steps(step, raising(collected))
        handle = apart(_around(middleware, by_kind(ran(step, name), collected)))
        return Steps(handle, raising(handle))

    return around


def _innermost(
    handler: AnyHandler, topics: Topics, transforms: Sequence[Transform], provides: Provides
) -> tuple[Callable[[Message], Awaitable[Any]], str, bool]:
    """The step that decodes and calls the handler, the handler's name, and whether it sees messages. Raises ConfigError."""
    target, call, name = _callable(handler)
    call, filled = _filling(target, call, provides)
    kind, wants_message = _parameters(target, Message, filled, provides)
    if not _carry_lists(topics) and _element(kind) is not None:
        raise ConfigError(
            f"the handler {name_of(target)} takes a list: say batch=Batch(...), or let it take one message"
        )
    step: Callable[[Message], Awaitable[Any]]
    if kind is Message and not wants_message:
        step = call
    else:
        step = decoded(call, decoder(kind, topics, name), wants_message=wants_message)
    if openers := _openers(topics):
        step = _opening(step, openers)
    if undo := undoing(transforms, _transforms_of(topics)):
        step = undone_first(step, undo)
    return step, name, wants_message or kind is Message


def _around(middleware: Sequence[Middleware], handle: Handle) -> Handle:
    for wrap in reversed(middleware):
        handle = _wrapped(wrap, handle)
    return handle


def check_middleware(wrap: Any) -> None:
    """Raise ConfigError for what cannot be middleware, without calling it."""
    if not callable(wrap):
        raise ConfigError(f"middleware is a function from Handle to Handle; {wrap!r} cannot be called")
    if yields(wrap) or iscoroutinefunction(wrap):
        returned = "a coroutine" if iscoroutinefunction(wrap) else "a generator"
        raise ConfigError(
            f"the middleware {name_of(wrap)} did not return a function, but {returned}: it is a plain function that "
            "returns an async one"
        )
    try:
        inspect.signature(wrap).bind(None)
    except ValueError:  # a builtin that does not tell
        return
    except TypeError:
        raise ConfigError(
            f"the middleware {name_of(wrap)} must take one argument, the step that it wraps"
        ) from None


def check_handler(
    handler: Any, *, batch: bool | None, topics: Topics = (), provides: Provides = NOTHING
) -> None:
    """Raise ConfigError for what cannot be a handler: an object, a function, or a class of which one is made later.

    `batch` says whether it will be handed lists; None where that is not known yet. `topics` are what it is for,
    `provides` what fills its parameters.
    """
    if isinstance(handler, type):
        method: Any = inspect.getattr_static(handler, "handle", None)
        if method is None:
            raise ConfigError(
                f"a handler is a function, or an object with a method `handle`; {name_of(handler)} has none"
            )
        handler = MethodType(method, handler) if inspect.isfunction(method) else method.__get__(None, handler)
    if batch is None:  # either will do
        target, call, _ = _callable(handler)
        _, filled = _filling(target, call, provides)
        takes_list = _element(_parameters(target, Message, filled, provides)[0]) is not None
        batch = takes_list and not _carry_lists(topics)
    if batch:
        compile_batch_handler(handler, topics=topics, provides=provides)
    else:
        compile_handler(handler, topics=topics, provides=provides)


def _carry_lists(topics: Topics) -> bool:
    return any(isinstance(topic, Topic) and carries_lists(topic) for topic in topics)


def _wrapped(wrap: Middleware, handle: Handle) -> Handle:
    check_middleware(wrap)
    wrapped = wrap(handle)
    if not callable(wrapped):
        discard(wrapped)
        raise ConfigError(f"the middleware {name_of(wrap)} did not return a function, but {wrapped!r}")
    if yields(wrapped):
        raise ConfigError(
            f"the middleware {name_of(wrap)} returned a generator function, so nothing of it would run: "
            "it must await the next step, not yield"
        )
    return ran(wrapped, f"the middleware {name_of(wrap)}")


def compile_batch_handler(
    handler: AnyHandler,
    *,
    topics: Topics = (),
    transforms: Sequence[Transform] = (),
    provides: Provides = NOTHING,
) -> HandleBatch:
    """One async function of a list of messages, from a handler that takes a list of messages or payloads.

    `topics` are what it is for, by name or contract, and `transforms` what was done to values of those that say nothing of it
    themselves.

    Raises:
        ConfigError: The handler is none, or does not take a list.
    """
    target, unchecked, name = _callable(handler)
    call, filled = _filling(target, ran(unchecked, name), provides)
    kind, wants_message = _parameters(target, list, filled, provides)
    if wants_message:
        raise ConfigError(f"the batch handler {name_of(target)} takes one parameter, the list")
    element = _element(kind)
    if element is None:
        raise ConfigError(
            f"the batch handler {name_of(target)} must take a list, such as list[Message], not {name_of(kind)}"
        )
    decode = decoder(element, topics, name)
    handle: HandleBatch = apart_batch(call) if element is Message else decoded_batch(call, decode)
    if openers := _openers(topics):
        handle = _opening_batches(handle, openers)
    if undo := undoing(transforms, _transforms_of(topics)):
        handle = batch_undone_first(handle, undo)
    return handle


def name_of(function: Any) -> str:
    """What to call a handler or middleware in a sentence."""
    return getattr(function, "__qualname__", None) or repr(function)


def is_plain(handler: AnyHandler) -> bool:
    """Whether a handler is called in a thread; one that only wraps an async function is not meant to be. Raises ConfigError."""
    target, call, _ = _callable(handler)
    return call is not target and not iscoroutinefunction(inspect.unwrap(target))


def _callable(handler: AnyHandler) -> tuple[Any, Callable[..., Awaitable[Any]], str]:
    # An AsyncMock has every attribute, so its class is asked, which is that of its spec
    is_function = iscoroutinefunction(handler) and not hasattr(handler.__class__, "handle")
    method = None if isinstance(handler, type) or is_function else getattr(handler, "handle", None)
    target = method if callable(method) else handler
    if isinstance(target, type) or not callable(target):
        raise ConfigError(
            f"a handler is a function, or an object with a method `handle`; {handler!r} is neither"
            + (" (it is a class: pass an instance)" if isinstance(handler, type) else "")
        )
    name = f"the handler {name_of(target)}"
    if yields(target):
        raise ConfigError(f"{name} is a generator, so nothing of it would run: it must return, not yield")
    if iscoroutinefunction(target) or iscoroutinefunction(getattr(target, "__call__", None)):  # noqa: B004
        return target, target, name

    @functools.wraps(target)
    async def in_thread(*arguments: Any, **named: Any) -> Any:
        function = functools.partial(target, **named) if named else target
        result = await call_in_thread(function, *arguments)
        if inspect.isawaitable(result):  # a plain function that returns a coroutine, such as a decorated one
            return await result
        return result

    return target, in_thread, name


def _element(kind: Any) -> Any:
    """What a list is of, Message where it does not say; None if it is no list."""
    if typing.get_origin(kind) is Annotated:
        return _element(kind.__origin__)
    if hasattr(kind, "__value__"):  # a `type` statement's
        return _element(kind.__value__)
    if kind not in _LISTS and typing.get_origin(kind) not in _LISTS:
        return None
    (element,) = typing.get_args(kind) or (Message,)
    return as_meant(element)


def _filling(
    target: Any, call: Callable[..., Awaitable[Any]], provides: Provides
) -> tuple[Callable[..., Awaitable[Any]], Collection[str]]:
    """The call with what fills the parameters behind the first, and their names."""
    if not provides:
        return call, ()
    parameters = list(inspect.signature(target).parameters.values())[1:]
    makes = {
        each.name: provides[kind]
        for each in parameters
        if isinstance(kind := _annotation(target, each, None), type) and kind in provides
    }
    if not makes:
        return call, ()

    def filled(*arguments: Any) -> Awaitable[Any]:
        return call(*arguments, **{name: make() for name, make in makes.items()})

    return filled, makes.keys()


def _parameters(target: Any, default: Any, filled: Collection[str], provides: Provides) -> tuple[Any, bool]:
    """The type of the first parameter, `default` if it has none, and whether the second wants the message too."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except ValueError:  # a builtin that does not tell
        return default, False
    positional = [p for p in parameters if p.kind not in {p.KEYWORD_ONLY, p.VAR_KEYWORD}]
    if not positional:
        raise ConfigError(
            f"the handler {name_of(target)} takes no parameter; it must take the message or its payload"
        )
    first, *others = positional
    kind = default if first.kind is first.VAR_POSITIONAL else _annotation(target, first, default)
    second = others[0] if others else None
    wants_message = (
        second is not None
        and second.kind is not second.VAR_POSITIONAL
        and _annotation(target, second, None) is Message
    )
    rest = [*(others[1:] if wants_message else others), *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    for parameter in rest:
        if parameter.name in filled:
            continue
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            also = "".join(f", and one annotated {name_of(kind)}, by its middleware" for kind in provides)
            raise ConfigError(
                f"the handler {name_of(target)} has a parameter {parameter.name!r} that nothing fills; "
                f"after the payload it may take one parameter annotated Message{also}"
            )
    return kind, wants_message


def _annotation(target: Any, parameter: inspect.Parameter, default: Any) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty or annotation is Any:
        return default
    function = inspect.unwrap(target.func if isinstance(target, functools.partial) else target)
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__globals__"):
        function = getattr(type(function).__call__, "__func__", type(function).__call__)
    try:
        hints = typing.get_type_hints(
            SimpleNamespace(__annotations__={"kind": annotation}),
            getattr(function, "__globals__", {}),
            include_extras=True,  # constraints are part of a payload's type
        )
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ConfigError(
            f"the type {annotation!r} of the handler {name_of(target)} cannot be found: {error}; "
            "it must be importable where the handler is defined, not only for type checkers"
        ) from error
    return as_meant(hints["kind"])


Openers: TypeAlias = dict[str, Callable[[Message], Message]]


def _transforms_of(topics: Topics) -> dict[str, Sequence[Transform]]:
    return {topic.name: topic.transforms for topic in topics if isinstance(topic, Topic)}


def _openers(topics: Topics) -> Openers:
    """By topic, what shows handlers the headers that are in values."""
    openers: Openers = {}
    for topic in topics:
        if isinstance(topic, Topic) and isinstance(topic.codec, Opening):
            openers[topic.name] = functools.partial(_opened, topic.codec, topic)
    return openers


def _opened(codec: Opening, topic: Topic[Any], message: Message) -> Message:
    return codec.opened(message, topic)


def _opening(
    handle: Callable[[Message], Awaitable[Any]], openers: Openers
) -> Callable[[Message], Awaitable[Any]]:
    async def opened(message: Message) -> Any:
        return await handle(openers.get(message.topic, _as_it_is)(message))

    return opened


def _opening_batches(handle: HandleBatch, openers: Openers) -> HandleBatch:
    async def opened(messages: list[Message]) -> None:
        await handle([openers.get(each.topic, _as_it_is)(each) for each in messages])

    return opened


def _as_it_is(message: Message) -> Message:
    return message
