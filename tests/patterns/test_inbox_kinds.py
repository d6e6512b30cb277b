"""An inbox's session is for async handlers or for plain ones, and a handler of the other kind is refused before it has a message."""

import functools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from things_kit import App, Batch, ConfigError, Message, WiringError, connect
from things_kit.modules import config, memory
from things_kit.patterns import Inbox, Outbox


async def plain_message(message: Message) -> None: ...


async def with_session(message: Message, session: AsyncSession) -> None: ...


async def with_plain_session(message: Message, session: Session) -> None: ...


async def of_lists(messages: list[Message], session: AsyncSession) -> None: ...


def in_thread(message: Message) -> None: ...


def in_thread_with_session(message: Message, session: Session) -> None: ...


def in_thread_with_async_session(message: Message, session: AsyncSession) -> None: ...


def in_thread_of_lists(messages: list[Message], session: Session) -> None: ...


class Handling:
    async def handle(self, message: Message, session: AsyncSession) -> None: ...


class HandlingInThreads:
    def handle(self, message: Message, session: Session) -> None: ...


class Called:
    async def __call__(self, message: Message) -> None: ...


@functools.wraps(with_session)
def decorated(*arguments: Any, **named: Any) -> Any:
    return with_session(*arguments, **named)


def named(handler: Any) -> str:
    return getattr(handler, "__qualname__", None) or type(handler).__name__


ASYNC = [
    plain_message,
    with_session,
    of_lists,
    Handling(),
    Called(),
    functools.partial(plain_message),
    decorated,
]
PLAIN = [
    in_thread,
    in_thread_with_session,
    in_thread_of_lists,
    HandlingInThreads(),
    functools.partial(in_thread),
]


@pytest.fixture(scope="module")
def inboxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Inbox]]:
    """One with each kind of engine."""
    path: Path = tmp_path_factory.mktemp("inbox") / "app.db"
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    Outbox().create(engine)
    another = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    yield {"Engine": Inbox(engine), "AsyncEngine": Inbox(another)}
    engine.dispose()


async def start(handler: Any, inbox: Inbox) -> None:
    lists = handler in {of_lists, in_thread_of_lists}
    async with connect("memory://") as broker:
        batch = Batch(10, 1) if lists else None
        async with broker.consumer("orders", group="g", handler=handler, middleware=[inbox], batch=batch):
            pass


@pytest.mark.parametrize("handler", ASYNC, ids=named)
async def test_an_async_handler_has_an_async_engine(handler: Any, inboxes: dict[str, Inbox]) -> None:
    await start(handler, inboxes["AsyncEngine"])


@pytest.mark.parametrize("handler", PLAIN, ids=named)
async def test_a_plain_handler_has_an_engine(handler: Any, inboxes: dict[str, Inbox]) -> None:
    await start(handler, inboxes["Engine"])


@pytest.mark.parametrize("handler", [plain_message, Called(), functools.partial(plain_message)], ids=named)
async def test_an_async_handler_is_refused_at_the_start_with_an_engine(
    handler: Any, inboxes: dict[str, Inbox]
) -> None:
    with pytest.raises(ConfigError) as refused:
        await start(handler, inboxes["Engine"])
    assert str(refused.value) == (
        "the inbox of 'g' has an Engine, whose session is for plain handlers, and its handler is async: "
        "make it plain, or give the inbox an AsyncEngine"
    )


@pytest.mark.parametrize(
    "handler", [in_thread, in_thread_with_async_session, functools.partial(in_thread)], ids=named
)
async def test_a_plain_handler_is_refused_at_the_start_with_an_async_engine(
    handler: Any, inboxes: dict[str, Inbox]
) -> None:
    with pytest.raises(ConfigError) as refused:
        await start(handler, inboxes["AsyncEngine"])
    assert str(refused.value) == (
        "the inbox of 'g' has an AsyncEngine, whose session is for async handlers, and its handler is plain: "
        "make it async, or give the inbox an Engine"
    )


OTHERS = [
    Session, Connection, AsyncConnection, sqlite3.Connection, asyncpg.Connection, psycopg.Connection, psycopg.AsyncConnection,
]  # fmt: skip


def taking(kind: type, *, lists: bool) -> Callable[..., Any]:
    async def handle(message: Any, session: Any) -> None: ...

    handle.__annotations__ = {"message": list[Message] if lists else Message, "session": kind}
    return handle


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
@pytest.mark.parametrize("lists", [False, True], ids=["messages", "lists"])
async def test_a_parameter_of_another_session_is_refused_with_the_name_of_the_right_one(
    kind: type, lists: bool, inboxes: dict[str, Inbox]
) -> None:
    async with connect("memory://") as broker:
        with pytest.raises(
            ConfigError, match=r"'session' that nothing fills.* one annotated AsyncSession, by its middleware"
        ):
            broker.consumer(
                "orders", group="g", handler=taking(kind, lists=lists), middleware=[inboxes["AsyncEngine"]],
                batch=Batch(10, 1) if lists else None,
            )  # fmt: skip


async def test_a_parameter_of_an_async_session_is_refused_where_the_inbox_has_plain_ones(
    inboxes: dict[str, Inbox],
) -> None:
    with pytest.raises(
        ConfigError, match=r"'session' that nothing fills.* one annotated Session, by its middleware"
    ):
        await start(in_thread_with_async_session, inboxes["Engine"])


async def test_an_app_does_not_start_with_a_handler_of_another_kind(inboxes: dict[str, Inbox]) -> None:
    app = App(config.module, memory.module)
    app.on("orders", group="g", middleware=[inboxes["Engine"]])(with_plain_session)
    with pytest.raises(ConfigError, match="for plain handlers, and its handler is async"):
        async with app:
            pass


async def test_an_app_says_which_session_nothing_provides(inboxes: dict[str, Inbox]) -> None:
    app = App(config.module, memory.module)
    app.on("orders", group="g", middleware=[inboxes["AsyncEngine"]])(in_thread_with_session)
    with pytest.raises(WiringError, match="nothing provides Session"):
        async with app:
            pass


async def test_a_decorated_function_of_an_app_is_of_the_kind_of_what_it_wraps(
    inboxes: dict[str, Inbox],
) -> None:
    app = App(config.module, memory.module)
    app.on("orders", group="g", middleware=[inboxes["AsyncEngine"]])(decorated)
    async with app:
        pass
