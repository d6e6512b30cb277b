"""Service Bus: the one connection, TLS, tokens that are replaced, and sessions as consumers have them."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("azure.servicebus")

from azure.servicebus import NEXT_AVAILABLE_SESSION
from azure.servicebus._pyamqp.aio import _cbs_async
from azure.servicebus.exceptions import SessionLockLostError

from things_kit import BrokerUnavailable, Message, Retry, RetryPolicy, connect
from things_kit.brokers.servicebus import incoming
from things_kit.brokers.servicebus.links import Links
from things_kit.testing.conformance.history import merged
from things_kit.testing.conformance.processes import WorkerProcess
from things_kit.testing.conformance.recorder import Gate, Recorder
from things_kit.testing.conformance.waiting import eventually
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import shared, unavailable
from things_kit.testing.servers.relay import Relay
from things_kit.testing.servers.servicebus import RunningServiceBus, ServiceBusServer

servicebus = shared(ServiceBusServer, "servicebus")


@pytest.fixture
def topic() -> str:
    return f"orders-{uuid4().hex[:10]}"


def keyed(topic: str, count: int, keys: int) -> list[Message]:
    return [Message(topic, b"x", key=b"k%d" % (n % keys), id=f"{n}-{uuid4().hex}") for n in range(count)]


# --- the connection


class CountingRelay(Relay):
    """Knows how many connections there have been."""

    count = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        await super()._accept(reader, writer)


async def test_all_topics_and_groups_share_one_connection(servicebus: ServiceBusServer, topic: str) -> None:
    async with CountingRelay(servicebus.ports[0]) as relay:
        url = servicebus.url.replace(f":{servicebus.ports[0]}", f":{relay.port}").replace(
            "?", "?sessions=true&", 1
        )
        async with connect(url) as broker:
            topics = [f"{topic}-{n}" for n in range(3)]
            recorder = Recorder()
            before = relay.count  # one, to see whether anybody is there
            async with broker.consumer(topics, group="billing", handler=recorder, dead_letter=None):
                await broker.producer().publish_batch([m for each in topics for m in keyed(each, 10, 5)])
                await recorder.until_done(30, 15)
                pings = len(topics)  # each subscription looks as well
                assert relay.count - before - pings == 1
            for each in topics:
                await broker.remove(each)


async def test_a_link_that_is_given_up_while_it_opens_leaves_the_connection_to_the_others(
    servicebus: ServiceBusServer, topic: str
) -> None:
    """At whatever moment: before the answer to its AMQP session, or to itself."""

    async def arrived(*_: object) -> None: ...

    async with CountingRelay(servicebus.ports[0]) as relay:
        url = servicebus.url.replace(f":{servicebus.ports[0]}", f":{relay.port}").replace(
            "?", "?sessions=true&", 1
        )
        async with connect(url) as broker:
            recorder = Recorder()
            async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
                await broker.producer().publish(Message(topic, b"x"))
                await recorder.until_done(1, 15)
                before = relay.count
                links: Links = broker._driver._links  # type: ignore[attr-defined]
                for turns in range(30):
                    opening = asyncio.create_task(
                        links.receiver(
                            topic, "billing", arrived, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=5
                        )
                    )
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    opening.cancel()
                    await asyncio.wait({opening})
                    assert opening.cancelled()
                await broker.producer().publish(Message(topic, b"x"))
                await recorder.until_done(2, 15)
                assert relay.count == before
            await broker.remove(topic)


async def test_a_token_is_replaced_while_a_consumer_only_receives(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "RIGHTS", 0.05)
    replaced = asyncio.Event()
    update = _cbs_async.CBSAuthenticator.update_token

    async def noted(self: _cbs_async.CBSAuthenticator) -> None:
        await update(self)
        replaced.set()

    async with connect(servicebus.url) as broker:
        recorder = Recorder()
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            monkeypatch.setattr(_cbs_async.CBSAuthenticator, "update_token", noted)
            monkeypatch.setattr(_cbs_async, "check_expiration_and_refresh_status", lambda *_: (False, True))
            await asyncio.wait_for(replaced.wait(), 15)
            monkeypatch.undo()
            await broker.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)
        await broker.remove(topic)


@pytest.fixture
async def secure(servicebus: ServiceBusServer, tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """The URL of a way to the server by TLS, without its management API, and the certificate to trust."""
    if shutil.which("openssl") is None:
        unavailable(ServerUnavailable("a certificate needs openssl"))
    key, trusted = tmp_path / "key.pem", tmp_path / "ca.pem"
    subprocess.run(  # noqa: ASYNC221 - a moment, before anything runs
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", trusted, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(trusted, key)
    async with Relay(servicebus.ports[0], tls=context) as relay:
        login = servicebus.url.partition("?")[2].partition("&emulator")[0]
        yield f"servicebus://127.0.0.1?{login}&endpoint=127.0.0.1:{relay.port}&declare=false", trusted


async def test_messages_go_over_tls(
    servicebus: ServiceBusServer, secure: tuple[str, Path], topic: str
) -> None:
    url, trusted = secure
    recorder = Recorder()
    async with connect(servicebus.url) as plain, connect(f"{url}&ca={trusted}") as broker:
        await plain.declare(topic, groups=["billing"])
        async with broker.consumer(topic, group="billing", handler=recorder, dead_letter=None):
            await broker.producer().publish(Message(topic, b"x"))
            await recorder.until_done(1, 15)
        await plain.remove(topic)


async def test_a_certificate_that_nobody_signed_is_refused(secure: tuple[str, Path]) -> None:
    url, _ = secure
    with pytest.raises(BrokerUnavailable, match="certificate"):
        await connect(f"{url}&publish_timeout=0.5").open()


async def test_a_service_bus_for_tests_of_users_can_be_had(
    servicebus_container: RunningServiceBus, topic: str
) -> None:
    recorder = Recorder()
    async with (
        connect(servicebus_container.url) as broker,
        broker.consumer(topic, group="billing", handler=recorder, dead_letter=None),
    ):
        await broker.producer().publish(Message(topic, b"x"))
        await recorder.until_done(1, 15)


# --- processes


@pytest.mark.parametrize("options", ["", "&mode=queue", "&sessions=true"], ids=["topic", "queue", "sessions"])
async def test_a_process_that_is_asked_to_stop_under_load_leaves_the_rest_unharmed(
    servicebus: ServiceBusServer, topic: str, options: str
) -> None:
    url = f"{servicebus.url}&lease=5{options}"
    sent: set[str | None] = set()
    async with connect(url) as broker:
        await broker.declare(topic, groups=["billing"])
        stopping, other = [
            await WorkerProcess.start(url, topic, "billing", concurrency=4, delay=0.01, max_in_flight=50)
            for _ in range(2)
        ]

        async def publish() -> None:
            while True:
                messages = keyed(topic, 40, 20)
                await broker.producer().publish_batch(messages)
                sent.update(message.id for message in messages)
                await eventually(lambda: len(other.history.ids("done")) > len(sent) / 2 - 100, 30)

        def handled() -> set[str]:
            return {*stopping.history.ids("done"), *other.history.ids("done")}

        publishing = asyncio.create_task(publish())
        try:
            await eventually(lambda: len(stopping.history.ids("done")) >= 20, 15, "it works")
            await stopping.stop()
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await eventually(lambda: handled() >= sent, 30, "the other handles the rest")
            await other.stop()
        finally:
            publishing.cancel()
            for worker in (stopping, other):
                await worker.kill()
        whole = merged([stopping.history, other.history])
        assert whole.duplicates() == {}
        assert set(stopping.history.ids("began")) == set(stopping.history.ids("done"))
        await broker.remove(topic)


# --- sessions


async def test_sessions_whose_messages_wait_hold_back_no_others(
    servicebus: ServiceBusServer, topic: str
) -> None:
    async def act(message: Message) -> None:
        if message.value == b"bad":
            raise Retry(after=3600)

    async with connect(f"{servicebus.url}&sessions=true&session_receivers=2") as broker:
        recorder = Recorder(act)
        async with broker.consumer(topic, group="billing", handler=recorder, retry=RetryPolicy()):
            bad = [Message(topic, b"bad", key=b"bad-%d" % n) for n in range(6)]
            await broker.producer().publish_batch(bad)
            await eventually(lambda: len(recorder.began) == 6, 15, "all that fail have begun")
            await broker.producer().publish_batch(keyed(topic, 20, 10))
            await recorder.until_done(20, 15)
        await broker.remove(topic)
        await broker.remove(f"{topic}-dlq")


async def test_a_session_that_is_lost_costs_no_other_its_place(
    servicebus: ServiceBusServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in a handler comes again, to whoever has the session next; the others are handled once."""
    keep = incoming.Incoming.renew_session

    async def renew(self: incoming.Incoming) -> None:
        if self._receiver.session.session_id == "k0" and not again.is_set():
            again.set()
            raise SessionLockLostError(message="the lock has expired")
        await keep(self)

    again, gate = asyncio.Event(), Gate()
    monkeypatch.setattr(incoming.Incoming, "renew_session", renew)
    async with connect(f"{servicebus.url}&sessions=true&lease=5") as broker:
        recorder = Recorder(gate)
        async with broker.consumer(topic, group="billing", handler=recorder, concurrency=4, dead_letter=None):
            messages = keyed(topic, 3, 3)
            await broker.producer().publish_batch(messages)
            await eventually(lambda: len(recorder.began) == 3, 15, "all are in their handlers")
            await eventually(lambda: len(recorder.began) >= 3 and again.is_set(), 15, "one is lost")
            gate.open()
            await recorder.until_done(4, 15)
        lost = messages[0].id
        handled = [message.id for message in recorder.done]
        assert handled.count(lost) == 2
        assert len(handled) == 4
        assert await broker.lag(topic, group="billing") == 0
        await broker.remove(topic)
