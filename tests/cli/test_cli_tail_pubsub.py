"""`things-kit tail` on a broker that orders keys, not topics."""

from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")

from things_kit import Message, connect
from things_kit.testing.servers.fixtures import shared
from things_kit.testing.servers.pubsub import PubSubServer

pubsub = shared(PubSubServer, "pubsub")


async def test_what_is_published_is_shown_as_it_comes(pubsub: PubSubServer, program: Any) -> None:
    async with connect(pubsub.url) as broker:
        await broker.declare("orders")
    running = program("tail", pubsub.url, "orders", "--limit", "3")
    assert "listening to orders" in running.line("stderr")
    async with connect(pubsub.url) as broker:
        await broker.producer().publish_batch([Message("orders", b"%d" % n, key=b"k") for n in range(3)])
    code, out, _ = running.end()
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()] == ["0", "1", "2"]
