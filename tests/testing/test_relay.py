"""What the relay does to a connection, seen from both ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from things_kit.testing.servers.relay import Relay

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listening:
    """A server that answers each line with the same, and keeps what it saw of its connections."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.closed = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                self.heard.append(data)
                writer.write(data)
        except ConnectionResetError:
            pass
        finally:
            self.closed.set()
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Listening]:
    listening = Listening()
    async with await asyncio.start_server(listening.serve, "127.0.0.1", 0) as running:
        listening.port = running.sockets[0].getsockname()[1]
        yield listening


@pytest.fixture
async def relay(server: Listening) -> AsyncIterator[Relay]:
    async with Relay(server.port) as relay:
        yield relay


@asynccontextmanager
async def connected(relay: Relay) -> AsyncIterator[Ends]:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def echo(ends: Ends, data: bytes = b"hello") -> bytes:
    reader, writer = ends
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), 5)


@contextmanager
def is_reset() -> Iterator[None]:
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        yield


async def test_bytes_pass_both_ways(relay: Relay) -> None:
    async with connected(relay) as ends:
        assert await echo(ends) == b"hello"
        assert len(relay.connections) == 1


async def test_a_cut_resets_all_connections_and_lets_new_ones_be_made(
    relay: Relay, server: Listening
) -> None:
    async with connected(relay) as first, connected(relay) as second:
        for ends in (first, second):
            await echo(ends)
        await relay.cut()
        for ends in (first, second):
            with is_reset():
                await echo(ends)
        async with connected(relay) as third:
            assert await echo(third) == b"hello"
    await asyncio.wait_for(server.closed.wait(), 5)


async def test_a_half_open_connection_is_silent_and_not_reset_while_new_ones_work(
    relay: Relay, server: Listening
) -> None:
    async with connected(relay) as old:
        await echo(old)
        relay.half_open()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(echo(old, b"unheard"), 0.2)
        async with connected(relay) as new:
            assert await echo(new) == b"hello"
        assert not old[0].at_eof()
    assert b"unheard" not in b"".join(server.heard)


async def test_neither_side_learns_that_the_other_has_closed_a_half_open_connection(
    relay: Relay, server: Listening
) -> None:
    async with connected(relay) as old:
        await echo(old)
        relay.half_open()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.closed.wait(), 0.2)
    await relay.cut()
    await asyncio.wait_for(server.closed.wait(), 5)


async def test_one_connection_can_fail_alone(relay: Relay) -> None:
    async with connected(relay) as first:
        await echo(first)
        async with connected(relay) as second:
            await echo(second)
            relay.connections[0].cut()
            with is_reset():
                await echo(first)
            assert await echo(second) == b"hello"


async def test_a_slow_network_delays_each_way_also_for_new_connections(relay: Relay) -> None:
    relay.slow(0.1)
    async with connected(relay) as ends:
        began = time.monotonic()
        await echo(ends)
        assert time.monotonic() - began >= 0.2
        relay.slow(600)
        relay.slow(0)
        async with asyncio.timeout(60):
            await echo(ends)


async def test_a_sliced_network_passes_few_bytes_at_once(relay: Relay, server: Listening) -> None:
    relay.sliced(2)
    async with connected(relay) as ends:
        assert await echo(ends, b"abcdef") == b"abcdef"
    assert server.heard[0] == b"ab"


async def test_a_narrow_network_passes_so_many_bytes_a_second(relay: Relay) -> None:
    relay.limited(1000)
    async with connected(relay) as ends:
        began = time.monotonic()
        await echo(ends, b"x" * 100)
        assert time.monotonic() - began >= 0.2


async def test_a_connection_is_reset_in_the_middle_of_what_is_under_way(
    relay: Relay, server: Listening
) -> None:
    async with connected(relay) as ends:
        await echo(ends)
        relay.cut_after(3)
        with is_reset():
            await echo(ends)
    assert b"".join(server.heard) == b"hellohel"


async def test_a_relay_that_ends_leaves_no_connection(server: Listening) -> None:
    async with Relay(server.port) as relay, connected(relay) as ends:
        await echo(ends)
        relay.half_open()
        await relay.__aexit__(None, None, None)
        with is_reset():
            await echo(ends)
        assert relay.connections == ()
