"""A real NATS JetStream keeps every promise: shared by the tests, and one of its own for those that take it away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import pytest

pytest.importorskip("nats")

from nats.errors import TimeoutError as NothingLeft

import nats
from things_kit.testing.conformance import ConformanceSuite, Target
from things_kit.testing.conformance.halfopen import HalfOpenSuite
from things_kit.testing.conformance.outages import OutageSuite, falling_silent, outage
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.relay import Relay

SHORT_LEASE = "?lease=1"
"""What a server handed out just before it stood still or died is with nobody until its lease ends."""

nats_server = shared(NATSServer, "nats")
own_nats = own(NATSServer)


class Foreign:
    """Another client of NATS: nats-py alone. NATS has no keys, so it uses the header that we use."""

    def __init__(self, server: NATSServer) -> None:
        self._server = server

    async def publish(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, str]) -> None:
        client = await nats.connect(self._server.url)
        keyed = {**headers, **({} if key is None else {"tk-key": key.decode()})}
        await client.jetstream().publish(topic, value, headers=keyed)
        await client.close()

    @property
    def unreadable(self) -> Sequence[Callable[[str], Awaitable[None]]]:
        return [self.publish_headers_without_a_colon, self.publish_headers_that_are_no_text]

    async def publish_headers_without_a_colon(self, topic: str) -> None:
        await self._publish_raw(topic, b"NATS/1.0\r\nthis is no header\r\n\r\n")

    async def publish_headers_that_are_no_text(self, topic: str) -> None:
        await self._publish_raw(topic, b"NATS/1.0\r\nbytes: \xff\xfe\r\n\r\n")

    async def _publish_raw(self, topic: str, header: bytes) -> None:
        """As no client library would: the protocol alone."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.ports[0])
        await reader.readline()  # INFO
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        writer.write(
            b"HPUB %s %d %d\r\n%sx\r\nPING\r\n" % (topic.encode(), len(header), len(header) + 1, header)
        )
        assert await reader.readline() == b"PONG\r\n"
        writer.close()
        await writer.wait_closed()

    async def read(self, topic: str) -> Sequence[tuple[bytes | None, bytes, dict[str, str]]]:
        client = await nats.connect(self._server.url)
        reader = await client.jetstream().pull_subscribe(topic)
        read = []
        try:
            for msg in await reader.fetch(100, timeout=1):
                headers = msg.headers or {}
                read.append((headers["tk-key"].encode(), msg.data, headers))
                await msg.ack()
        except NothingLeft:
            pass
        finally:
            await client.close()
        return read


class TestNATS(ConformanceSuite):
    @pytest.fixture
    async def target(self, nats_server: NATSServer) -> AsyncIterator[Target]:
        foreign = Foreign(nats_server)
        async with Relay(nats_server.ports[0]) as relay:
            yield Target(
                url=f"nats://127.0.0.1:{relay.port}",
                lease_options={"lease": "0.5"},
                size_options={"max_message_bytes": "4096"},
                absent="nats://127.0.0.1:1",
                cut=relay.cut,
                foreign_publish=foreign.publish,
                foreign_read=foreign.read,
                unreadable=foreign.unreadable,
            )


class TestNATSThatGoesAway(OutageSuite):
    """What the suite has about outages, on a server of its own: standing still, and killed."""

    @pytest.fixture(params=["paused", "killed"])
    async def target(self, request: pytest.FixtureRequest, own_nats: NATSServer) -> AsyncIterator[Target]:
        async with outage(own_nats, request.param, url=own_nats.url + SHORT_LEASE) as target:
            yield target


class TestNATSThatFallsSilent(HalfOpenSuite):
    """Connections hear nothing more, without a reset, while new ones work."""

    @pytest.fixture
    async def target(self, nats_server: NATSServer) -> AsyncIterator[Target]:
        async with Relay(nats_server.ports[0]) as relay:
            yield falling_silent(relay, f"nats://127.0.0.1:{relay.port}{SHORT_LEASE}")
