"""What happens to messages on their way when a server dies or a connection breaks."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("nats")

from things_kit import Message, connect
from things_kit.engine.collected import collect
from things_kit.engine.driver import Subscription
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers.fixtures import own, shared
from things_kit.testing.servers.nats import NATSServer
from things_kit.testing.servers.relay import Relay

nats_server = shared(NATSServer, "nats")
own_nats = own(NATSServer)


async def test_a_server_killed_in_the_middle_of_a_batch_has_each_message_once(own_nats: NATSServer) -> None:
    """What had been stored is sent again under the same id, and stored no second time."""
    async with connect(own_nats.url) as broker:
        await broker.declare("orders", ["g"])
        messages = [Message("orders", b"%d" % n, key=b"k") for n in range(30_000)]
        publishing = asyncio.create_task(broker.producer().publish_batch(messages))

        async def begun() -> bool:
            return bool(await broker.lag("orders", "g"))

        await eventually(begun, 15)
        await asyncio.to_thread(own_nats.kill)
        assert not publishing.done()
        await asyncio.to_thread(own_nats.start)
        await asyncio.wait_for(publishing, 60)
        assert await broker.lag("orders", "g") == 30_000


async def test_a_settlement_ends_only_when_the_server_has_taken_it(own_nats: NATSServer) -> None:
    async with connect(own_nats.url) as broker:
        await broker.producer().publish(Message("settled", b"x"))
        receiver = await collect(broker._driver, Subscription(topic="settled", group="g"))
        deliveries = await receiver.receive(10, 10)
        await asyncio.to_thread(own_nats.pause)
        settling = asyncio.create_task(receiver.settle(deliveries, []))
        done, _ = await asyncio.wait({settling}, timeout=0.3)
        await asyncio.to_thread(own_nats.resume)
        await asyncio.wait_for(settling, 10)
        assert not done
        assert await broker.lag("settled", "g") == 0
        await receiver.close()


async def test_a_consumer_without_a_group_misses_nothing_while_its_connection_is_cut(
    nats_server: NATSServer,
) -> None:
    topic, seen = f"orders-{uuid4().hex[:10]}", Recorder()
    async with Relay(nats_server.ports[0]) as relay, connect(nats_server.url) as publisher:
        await publisher.declare(topic)
        async with connect(f"nats://127.0.0.1:{relay.port}?lease=1") as broker:
            async with broker.consumer(topic, group=None, handler=seen, dead_letter=None):
                for round_ in range(3):
                    await relay.cut()
                    await publisher.producer().publish(Message(topic, b"%d" % round_))
                    await eventually(lambda: b"%d" % round_ in seen.values, 15)  # noqa: B023
            assert await publisher.lag(topic, "g") == 3
        await publisher.remove(topic)


@pytest.mark.parametrize("how", ["cut", "killed"])
async def test_what_was_held_when_the_connection_broke_comes_again_without_waiting_for_its_lease(
    own_nats: NATSServer, how: str
) -> None:
    """A server of 2.9 says after its first restart that the group was made at another time than it had said before."""
    topic, gate = f"orders-{uuid4().hex[:10]}", Gate()
    seen = Recorder(gate)
    async with Relay(own_nats.ports[0]) as relay:
        url = f"nats://127.0.0.1:{relay.port}?lease=3600"
        async with (
            connect(url) as broker,
            broker.consumer(topic, group="g", handler=seen, concurrency=4, dead_letter=None),
        ):
            await broker.producer().publish_batch([Message(topic, b"%d" % n) for n in range(3)])
            await seen.until_began(3, 15)
            if how == "cut":
                await relay.cut()
            else:
                await asyncio.to_thread(own_nats.kill)
                await asyncio.to_thread(own_nats.start)
            await seen.until_began(4, 15)
            gate.open()

            async def settled() -> bool:
                return await broker.lag(topic, "g") == 0

            await eventually(settled, 15)
            assert set(seen.attempts) == {1}
            await broker.remove(topic)


@pytest.mark.parametrize("how", ["stream deleted", "stream declared again", "group deleted"])
async def test_a_consumer_and_a_producer_go_on_after_what_an_operator_deletes(
    nats_server: NATSServer, how: str
) -> None:
    """What is confirmed once the deletion took effect is handled, once or more often."""
    topic, seen = f"orders-{uuid4().hex[:10]}", Recorder()
    async with connect(nats_server.url) as broker, connect(nats_server.url) as operator:
        driver: Any = operator.transmission.driver
        if how == "stream declared again" and driver._connection.version.startswith("2.9."):
            pytest.skip("a server of 2.9 can lose what a stream took that was made anew at once")
        confirmed: list[bytes] = []
        deleted = asyncio.Event()
        ends = asyncio.Event()

        async def publish() -> None:
            number = 0
            while not ends.is_set():
                value, after = b"%d" % number, deleted.is_set()
                await broker.producer().publish(Message(topic, value))
                if after:
                    confirmed.append(value)
                number += 1

        async with broker.consumer(topic, group="g", handler=seen, concurrency=4, dead_letter=None):
            publishing = asyncio.create_task(publish())
            await seen.until_done(20, 10)
            if how == "group deleted":
                await (await driver._streams()).leave(topic, "g")
            else:
                await operator.remove(topic)
            if how == "stream declared again":
                await operator.declare(topic, groups=["g"])
            deleted.set()
            await eventually(lambda: publishing.done() or len(confirmed) > 50, 20)
            ends.set()
            await publishing

            def missing() -> list[bytes]:
                return sorted(set(confirmed) - set(seen.values), key=int)

            await eventually(
                lambda: not missing(), 20, f"all of {len(confirmed)} that were confirmed are handled"
            )
        await operator.remove(topic)
