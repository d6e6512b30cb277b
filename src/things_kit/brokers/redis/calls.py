"""Commands that each message pays for, written and read over the client's connections, without what it does around a command.

Most of what a small command costs is in there: redis-py looks for retries, callbacks and metrics, none of which are used here.
"""

from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import ResponseError


async def answers_of(pool: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """What the server answers, in one round trip; its errors are among the answers. Raises the client's other errors."""
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(b"".join([pack_command(tuple(command)) for command in commands]))
        return [await _answer(connection) for _ in commands]
    finally:
        await pool.release(connection)


async def answer_of(connection: Any, command: Sequence[Any]) -> Any:
    """What the server answers over this connection. Raises the client's errors, and the server's."""
    await connection.send_packed_command(pack_command(tuple(command)))
    return await connection.read_response()


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
