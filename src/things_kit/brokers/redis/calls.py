"""Commands that each message pays for, written and read over the client's connections, without what it does around a command.

Most of what a small command costs is in there: redis-py looks for retries, callbacks and metrics, none of which are used here,
and has a task of its own write each command, where a connection has a timeout (`asyncio.wait_for`, before Python 3.12).
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from hiredis import pack_command
from redis.exceptions import ResponseError

from redis import exceptions


async def answers_of(pool: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """What the server answers, in one round trip; its errors are among the answers. Raises the client's other errors."""
    connection = await pool.get_connection()
    try:
        async with _InTime(connection) as limit:
            await connection.send_packed_command(
                b"".join([pack_command(tuple(command)) for command in commands])
            )
            answers: list[Any] = []
            for _ in commands:
                answers.append(await _answer(connection))
                limit.again()
        return answers
    finally:
        await pool.release(connection)


async def answer_of(connection: Any, command: Sequence[Any]) -> Any:
    """What the server answers over this connection. Raises the client's errors, and the server's."""
    async with _InTime(connection):
        await connection.send_packed_command(pack_command(tuple(command)))
        return await connection.read_response()


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


class _InTime:
    """Keeps the connection's timeout in its place: around an exchange, without a task of its own.

    Leaving it raises the client's TimeoutError where that is over.
    """

    __slots__ = ("_connection", "_patience", "_timeout")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._patience: float | None = connection.socket_timeout
        self._timeout = asyncio.timeout(self._patience)

    def again(self) -> None:
        """The server has answered, and has as long for the next answer."""
        if self._patience is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._patience)

    async def __aenter__(self) -> Self:
        self._connection.socket_timeout = None
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.socket_timeout = self._patience
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            await self._connection.disconnect(nowait=True)
            raise exceptions.TimeoutError(f"the server did not answer within {self._patience:g} s") from error
